//! Routing rules and routes: lists, adds and removes what TypeScript has decided on.

pub mod link;
pub mod local;
mod message;
pub mod reply;
mod route;
mod rule;

use std::ffi::{CStr, CString};
use std::io;
use std::net::IpAddr;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{reach, routing, Endpoint, ReachRecord, RoutingRecord};
pub use message::Changes;
use message::{Message, Refused, Request, Routing};

/// The rules that look in `table`, and its routes, into `entries`; how many there are.
pub fn list(table: u32, entries: &mut [RoutingRecord]) -> Result<i32> {
    let routing = open()?;
    let mut count = 0;
    for family in [4, 6] {
        let rules = all(&routing, rule::list(family), "rules")?;
        let routes = all(&routing, route::list(family, table), "routes")?;
        let rules = rules.iter().filter_map(|message| rule::read(&message.body, table));
        let routes = routes.iter().filter_map(|message| route::read(&message.body, table));
        for entry in rules.chain(routes).filter(|entry| entry.family == family) {
            if let Some(room) = entries.get_mut(count) {
                *room = entry;
            }
            count += 1;
        }
    }
    Ok(count as i32)
}

/// Adds a rule or a route. A rule that is there already is no error.
pub fn add(entry: &RoutingRecord) -> Result<i32> {
    let mut request = match entry.kind {
        routing::RULE => rule::add(entry),
        routing::ROUTE => route::add(entry)?,
        _ => return Err(Error::invalid("neither a rule nor a route")),
    };
    match open()?.change(&mut request) {
        Err(refused) if !is_the_same(entry, &refused.error) => Err(explain("set", entry, &refused)),
        _ => Ok(0),
    }
}

/// Removes a rule or a route; one that is gone already is no error.
pub fn remove(entry: &RoutingRecord) -> Result<i32> {
    let mut request = match entry.kind {
        routing::RULE => rule::remove(entry),
        routing::ROUTE => route::remove(entry)?,
        _ => return Err(Error::invalid("neither a rule nor a route")),
    };
    match open()?.change(&mut request) {
        Err(refused) if !is_gone(&refused.error) => Err(explain("remove", entry, &refused)),
        _ => Ok(0),
    }
}

/// How the host reaches an address.
pub fn reach(address: &Endpoint) -> Result<ReachRecord> {
    let to = address.socket_addr().ok_or_else(|| Error::invalid("an address is missing"))?;
    match open()?.ask(&mut route::ask(to)) {
        Ok(answer) => route::read_answer(&answer),
        Err(refused) if is_unreachable(&refused.error) => {
            Ok(ReachRecord { kind: reach::NONE, ..ReachRecord::default() })
        }
        Err(refused) => {
            Err(Error::system(format!("Cannot find the route to {}", to.ip()), &refused.error))
        }
    }
}

/// Reads a datagram as if the kernel had sent it, as every answer that there is.
#[cfg(any(test, feature = "fuzzing"))]
pub fn read_datagram(datagram: &[u8]) {
    let mut messages = Vec::new();
    for (kind, flags, body) in message::messages(datagram) {
        let _ = message::outcome(body, message::behind_request(flags, body));
        let _ = message::outcome(body, 4);
        messages.push(Message { kind, body: body.to_vec() });
    }
    for Message { body, .. } in &messages {
        for table in [123, 254] {
            for entry in [rule::read(body, table), route::read(body, table)].into_iter().flatten() {
                assert_eq!(entry.table, table);
                assert!(matches!(entry.family, 4 | 6));
            }
        }
    }
    let _ = route::read_answer(&messages);
}

fn open() -> Result<Routing> {
    Routing::open().map_err(|error| Error::system("Cannot reach the kernel's routing", &error))
}

/// Every answer to a listing; none where the kernel lacks the family or the table.
fn all(routing: &Routing, mut request: Request, what: &str) -> Result<Vec<Message>> {
    match routing.ask(&mut request) {
        Err(refused) if is_absent(&refused.error) => Ok(Vec::new()),
        Err(refused) => {
            Err(Error::system(format!("Cannot list the routing {what}"), &refused.error))
        }
        Ok(messages) => Ok(messages),
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

fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EACCES
                | libc::EINVAL
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP
                | libc::ENODEV
        )
    )
}

/// The kernel's number of a family of 4 or 6.
fn family_number(family: u8) -> u8 {
    (if family == 4 { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// An address's family and its bytes.
fn octets(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(v4) => (4, v4.octets().to_vec()),
        IpAddr::V6(v6) => (6, v6.octets().to_vec()),
    }
}

fn family_of(number: u8) -> Option<u8> {
    match i32::from(number) {
        libc::AF_INET => Some(4),
        libc::AF_INET6 => Some(6),
        _ => None,
    }
}

fn address_length(family: u8) -> usize {
    if family == 4 {
        4
    } else {
        16
    }
}

fn set_address(entry: &mut RoutingRecord, value: &[u8]) {
    let length = value.len().min(entry.address.len());
    entry.address[..length].copy_from_slice(&value[..length]);
}

/// A device's name as the kernel sent it, with its zero.
fn name_of(value: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    let length = value.len().min(name.len() - 1);
    name[..length].copy_from_slice(&value[..length]);
    name
}

/// A device's name up to its zero and with it.
fn with_zero(name: &[u8; 16]) -> Vec<u8> {
    name.iter().copied().take_while(|byte| *byte != 0).chain([0]).collect()
}

/// The name of a device's number (if_indextoname(3)); empty for one that is gone.
fn name_at(index: u32) -> [u8; 16] {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: there is room for the longest name and its zero.
    unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    name
}

/// The number of a device's name (if_nametoindex(3)).
fn index_of(name: &[u8; 16]) -> Result<u32> {
    let name = CString::from_vec_with_nul(with_zero(name))
        .map_err(|_| Error::invalid("a device's name is malformed"))?;
    // SAFETY: the name ends in a zero and outlives the call.
    match unsafe { libc::if_nametoindex(CStr::as_ptr(&name)) } {
        0 => Err(Error::system(
            format!("Cannot find the device {}", name.to_string_lossy()),
            &io::Error::last_os_error(),
        )),
        index => Ok(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device's name as records have it.
    pub fn device(name: &str) -> [u8; 16] {
        name_of(name.as_bytes())
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

    /// Hexadecimal, four bytes a word.
    #[cfg(target_endian = "little")]
    pub fn shown(bytes: &[u8]) -> String {
        let words = bytes
            .chunks(4)
            .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_address_of_this_host_is_local() {
        let loopback = Endpoint::from("127.0.0.1:1".parse::<std::net::SocketAddr>().unwrap());
        assert_eq!(reach(&loopback).unwrap().kind, reach::LOCAL);
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
}
