//! Routing rules and routes: lists them, and adds and removes those that TypeScript has decided on.

pub mod link;
pub mod local;
mod message;
pub mod reach;
pub mod reply;
mod route;
mod rule;
pub mod tproxy;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{routing, RoutingRecord};
pub use message::Changes;
#[cfg(any(test, feature = "fuzzing"))]
use message::Message;
use message::{Decoded, Refused, Request, Routing};

/// The rules that look in `table`, and its routes, into `entries`; how many there are.
pub fn list(table: u32, entries: &mut [RoutingRecord]) -> Result<i32> {
    let routing = open()?;
    let mut count = 0;
    for family in [4, 6] {
        let rules = all(&routing, &rule::list(family), "rules", |body| rule::read(body, table))?;
        let routes =
            all(&routing, &route::list(family, table), "routes", |body| route::read(body, table))?;
        for entry in rules.into_iter().chain(routes).filter(|entry| entry.family == family) {
            if let Some(room) = entries.get_mut(count) {
                *room = entry;
            }
            count += 1;
        }
    }
    Ok(count as i32)
}

/// Adds a rule or a route. A rule that already exists is not an error.
pub fn add(entry: &RoutingRecord) -> Result<i32> {
    let request = match entry.kind {
        routing::RULE => rule::add(entry),
        routing::ROUTE => route::add(entry)?,
        _ => return Err(Error::invalid("neither a rule nor a route")),
    };
    match open()?.change(&request) {
        Err(refused) if !is_the_same(entry, &refused.error) => Err(explain("set", entry, &refused)),
        _ => Ok(0),
    }
}

/// Removes a rule or a route; one that no longer exists is not an error.
pub fn remove(entry: &RoutingRecord) -> Result<i32> {
    let request = match entry.kind {
        routing::RULE => rule::remove(entry),
        routing::ROUTE => route::remove(entry)?,
        _ => return Err(Error::invalid("neither a rule nor a route")),
    };
    match open()?.change(&request) {
        Err(refused) if !is_gone(&refused.error) => Err(explain("remove", entry, &refused)),
        _ => Ok(0),
    }
}

/// Reads a datagram as if the kernel had sent it, as every answer that there is.
#[cfg(any(test, feature = "fuzzing"))]
pub fn read_datagram(datagram: &[u8]) {
    let mut messages = Vec::new();
    for message in message::messages(datagram) {
        let body = message.payload();
        let _ = message::outcome(body, message::behind_request(message.flags(), body));
        let _ = message::outcome(body, 4);
        messages.push(Message { kind: message.message_type(), body: body.to_vec() });
    }
    for Message { body, .. } in &messages {
        for table in [123, 254] {
            let entries = [rule::read(body, table), route::read(body, table)];
            for entry in entries.into_iter().flatten().flatten() {
                assert_eq!(entry.table, table);
                assert!(matches!(entry.family, 4 | 6));
            }
        }
    }
    local::read_messages(&messages);
    let _ = reach::answer_in(&messages).map(reach::record_of);
    reply::read_messages(&messages);
}

fn open() -> Result<Routing> {
    Routing::open().map_err(|error| Error::system("Cannot reach the kernel's routing", &error))
}

/// What `read` finds in the answers to a listing; nothing if the kernel lacks the family or the table.
fn all<T>(
    routing: &Routing,
    request: &Request,
    what: &str,
    read: impl Fn(&[u8]) -> Decoded<Option<T>>,
) -> Result<Vec<T>> {
    let mut found = Vec::new();
    let listed = routing.exchange(request, |message| {
        found.extend(read(&message.body)?);
        Ok(())
    });
    match listed {
        Err(refused) if !is_absent(&refused.error) => {
            Err(Error::system(format!("Cannot list the routing {what}"), &refused.error))
        }
        _ => Ok(found),
    }
}

fn explain(doing: &str, entry: &RoutingRecord, refused: &Refused) -> Error {
    let what = if entry.kind == routing::RULE { "rule" } else { "route" };
    let words = refused.words.as_ref().map(|words| format!(" ({words})")).unwrap_or_default();
    let RoutingRecord { family, table, .. } = entry;
    Error::system(
        format!("Cannot {doing} an IPv{family} {what} of routing table {table}{words}"),
        &refused.error,
    )
}

/// The kernel compares all of a rule, but of a route only where it leads to.
fn is_the_same(entry: &RoutingRecord, error: &io::Error) -> bool {
    entry.kind == routing::RULE && error.raw_os_error() == Some(libc::EEXIST)
}

/// A rule (ENOENT), a route (ESRCH), or its table (both) is not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT))
}

/// A table without routes is none to the kernel (ENOENT); a family may not be built in.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
    )
}

/// Whether a message whose header names a table is of another one than `table`. A number of more than
/// a byte is in an attribute (`RT_TABLE_COMPAT`).
fn is_elsewhere(header: u8, table: u32) -> bool {
    const RT_TABLE_COMPAT: u8 = 252;
    !matches!(header, libc::RT_TABLE_UNSPEC | RT_TABLE_COMPAT) && u32::from(header) != table
}

/// The kernel's name of a family of 4 or 6.
fn family_number(family: u8) -> AddressFamily {
    if family == 4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn family_of(family: AddressFamily) -> Option<u8> {
    match family {
        AddressFamily::Inet => Some(4),
        AddressFamily::Inet6 => Some(6),
        _ => None,
    }
}

/// How many bits an address has.
fn bits_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() {
        32
    } else {
        128
    }
}

/// An address of zeroes.
fn unspecified(family: u8) -> IpAddr {
    if family == 4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

fn address_of(entry: &RoutingRecord) -> IpAddr {
    let [a, b, c, d, ..] = entry.address;
    if entry.family == 4 {
        [a, b, c, d].into()
    } else {
        entry.address.into()
    }
}

fn set_address(entry: &mut RoutingRecord, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => entry.address[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => entry.address = v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable};

    use super::*;

    /// A device's name as records have it.
    pub fn device(name: &str) -> [u8; 16] {
        link::name_of(name)
    }

    /// A rule or route as the program sets it, of table 123 and `lo`.
    pub fn ours(kind: u8, family: u8) -> RoutingRecord {
        RoutingRecord {
            kind,
            family,
            origin: 123,
            table: 123,
            device: device("lo"),
            ..RoutingRecord::default()
        }
    }

    /// A message's bytes with more attributes, as bytes.
    pub fn with(mut body: Vec<u8>, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        for (kind, value) in attributes {
            let attribute = DefaultNla::new(*kind, value.to_vec());
            let end = body.len();
            body.resize(end + attribute.buffer_len(), 0);
            attribute.emit(&mut body[end..]);
        }
        body
    }

    /// Hexadecimal, four bytes a word.
    #[cfg(target_endian = "little")]
    pub fn shown(bytes: &[u8]) -> String {
        let words = bytes
            .chunks(4)
            .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_kernels_own_table_lists_without_a_capability() {
        const MAIN: u32 = 254;
        let mut rules = [RoutingRecord::default(); 64];
        let count = list(MAIN, &mut rules).unwrap() as usize;
        let main = rules[..count.min(64)].iter().find(|entry| entry.kind == routing::RULE);
        assert_eq!(main.map(|rule| (rule.table, rule.priority)), Some((MAIN, 32_766)));
        assert_eq!(list(MAIN, &mut []).unwrap() as usize, count, "a count needs no room");
    }

    #[test]
    fn a_table_that_nobody_set_is_empty() {
        assert_eq!(list(0x7fff_fff1, &mut []).unwrap(), 0);
    }

    #[test]
    fn whatever_a_datagram_holds_reading_it_ends() {
        let entry =
            RoutingRecord { source_length: 32, port: 53, last_port: 53, ..ours(routing::RULE, 4) };
        let route = RoutingRecord { kind: routing::ROUTE, port: 0, last_port: 0, ..entry };
        let own = RoutingRecord { table: libc::RT_TABLE_LOCAL.into(), family: 6, ..route };
        let (rule, route, own) =
            (rule::add(&entry), route::add(&route).unwrap(), route::add(&own).unwrap());
        let address = local::tests::address([192, 0, 2, 1].into());
        let (rule, route, own) = (rule.bytes(), route.bytes(), own.bytes());
        let mut error = [&[0; 16][..], &(-libc::EINVAL).to_ne_bytes(), rule].concat();
        error[0] = error.len() as u8;
        error[4] = libc::NLMSG_ERROR as u8;
        let whole = [rule, route, own, address.bytes(), &error].concat();
        read_datagram(&whole);
        // Numerical Recipes' generator: the same bytes in each run.
        let mut state = 1u32;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for _ in 0..20_000 {
            let mut datagram = whole.clone();
            for _ in 0..1 + next(4) {
                let at = next(datagram.len());
                datagram[at] = next(256) as u8;
            }
            datagram.truncate(1 + next(datagram.len()));
            read_datagram(&datagram);
        }
    }
}
