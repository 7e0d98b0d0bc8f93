//! Routes (ip-route(8)) as messages: `struct rtmsg` and RTA_* of linux/rtnetlink.h.

use std::net::{SocketAddr, SocketAddrV6};

use super::message::{attributes, u16_at, u32_at, Message, Request};
use super::{address_length, family_number, family_of, index_of, name_at, octets, set_address};
use crate::abi::errors::{Error, Result};
use crate::abi::layout::{reach, routing, Endpoint, ReachRecord, RoutingRecord};

const RTA_DST: u16 = libc::RTA_DST;
const RTA_OIF: u16 = libc::RTA_OIF;
const RTA_GATEWAY: u16 = libc::RTA_GATEWAY;
const RTA_PRIORITY: u16 = libc::RTA_PRIORITY;
const RTA_PREFSRC: u16 = libc::RTA_PREFSRC;
const RTA_CACHEINFO: u16 = libc::RTA_CACHEINFO;
const RTA_TABLE: u16 = libc::RTA_TABLE;
/// An IPv4 route's gateway that is an IPv6 address (`struct rtvia`).
const RTA_VIA: u16 = 18;
/// IPv6 router preference: `medium` for whoever set none.
const RTA_PREF: u16 = 20;

/// Bytes of `struct rtmsg`.
const FIXED: usize = 12;

/// The request that adds `local default dev <device>` to a table: deliver here whatever looks there.
pub fn add(route: &RoutingRecord) -> Result<Request> {
    request(route, libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK)
}

/// The request that removes such a route.
pub fn remove(route: &RoutingRecord) -> Result<Request> {
    request(route, libc::RTM_DELROUTE, libc::NLM_F_ACK)
}

/// The request for every route of one table. A kernel before 4.20 answers with those of all.
pub fn list(family: u8, table: u32) -> Request {
    let mut fixed = [0; FIXED];
    fixed[0] = family_number(family);
    let mut request = Request::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &fixed);
    request.attribute(RTA_TABLE, &table.to_ne_bytes());
    request
}

/// The attributes stand in the order in which iproute2 has them.
fn request(route: &RoutingRecord, kind: u16, flags: i32) -> Result<Request> {
    let short_table = u8::try_from(route.table).ok();
    // IPv6 routes have no scope.
    let scope = if route.family == 4 { libc::RT_SCOPE_HOST } else { libc::RT_SCOPE_UNIVERSE };
    let fixed = [
        family_number(route.family),
        0,
        0,
        0,
        short_table.unwrap_or(libc::RT_TABLE_UNSPEC),
        route.origin,
        scope,
        libc::RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    let mut request = Request::new(kind, flags, &fixed);
    if route.family == 6 {
        request.attribute(RTA_DST, &[0; 16]);
    }
    if route.source_length > 0 {
        request.attribute(RTA_PREFSRC, &route.address[..address_length(route.family)]);
    }
    if route.priority != 0 {
        request.attribute(RTA_PRIORITY, &route.priority.to_ne_bytes());
    }
    if short_table.is_none() {
        request.attribute(RTA_TABLE, &route.table.to_ne_bytes());
    }
    request.attribute(RTA_OIF, &index_of(&route.device)?.to_ne_bytes());
    Ok(request)
}

/// A route of `table` from its message, or `None` for one of another table. Anything but
/// `local default dev …` sets `other`.
pub fn read(body: &[u8], table: u32) -> Option<RoutingRecord> {
    let fixed = body.get(..FIXED)?;
    let mut route = RoutingRecord {
        kind: routing::ROUTE,
        family: family_of(fixed[0])?,
        table: u32::from(fixed[4]),
        origin: fixed[5],
        // A destination, a source, a TOS, another type.
        other: u8::from(
            fixed[1] != 0 || fixed[2] != 0 || fixed[3] != 0 || fixed[7] != libc::RTN_LOCAL,
        ),
        ..RoutingRecord::default()
    };
    for (kind, value) in attributes(&body[FIXED..]) {
        match kind {
            RTA_PREFSRC => {
                set_address(&mut route, value);
                route.source_length = 8 * address_length(route.family) as u8;
            }
            RTA_OIF => route.device = name_at(u32_at(value, 0)?),
            RTA_TABLE => route.table = u32_at(value, 0)?,
            RTA_PRIORITY => route.priority = u32_at(value, 0)?,
            RTA_CACHEINFO | RTA_PREF => {}
            _ => route.other = 1,
        }
    }
    (route.table == table).then_some(route)
}

/// The request that asks by which route the host sends to an address.
pub fn ask(to: SocketAddr) -> Request {
    let (family, address) = octets(to.ip());
    let mut fixed = [0; FIXED];
    fixed[0] = family_number(family);
    fixed[1] = 8 * address.len() as u8;
    let mut request = Request::new(libc::RTM_GETROUTE, libc::NLM_F_ACK, &fixed);
    request.attribute(RTA_DST, &address);
    if let SocketAddr::V6(v6) = to {
        if v6.scope_id() != 0 {
            request.attribute(RTA_OIF, &v6.scope_id().to_ne_bytes());
        }
    }
    request
}

/// How the host reaches an address, from the answer to `ask`.
pub fn read_answer(messages: &[Message]) -> Result<ReachRecord> {
    found_in(messages, answer_in)
}

/// What `read` makes of the route among these messages, which answer RTM_GETROUTE.
pub fn found_in<T>(messages: &[Message], read: fn(&[u8]) -> Option<T>) -> Result<T> {
    let answer = messages.iter().find(|message| message.kind == libc::RTM_NEWROUTE);
    let malformed = || Error::invalid("the kernel's answer about a route is malformed");
    answer.and_then(|answer| read(&answer.body)).ok_or_else(malformed)
}

/// A route's type (`rtm_type`) as one of `reach`.
pub fn reach_of(kind: u8) -> u8 {
    match kind {
        libc::RTN_LOCAL => reach::LOCAL,
        libc::RTN_UNICAST => reach::REMOTE,
        _ => reach::NONE,
    }
}

fn answer_in(body: &[u8]) -> Option<ReachRecord> {
    let fixed = body.get(..FIXED)?;
    let mut found = ReachRecord { kind: reach_of(fixed[7]), ..ReachRecord::default() };
    for (kind, value) in attributes(&body[FIXED..]) {
        match kind {
            RTA_OIF => found.device = name_at(u32_at(value, 0)?),
            RTA_PREFSRC => found.source = endpoint(value)?,
            RTA_GATEWAY => found.gateway = endpoint(value)?,
            // The family, then the address.
            RTA_VIA if u16_at(value, 0).is_some() => found.gateway = endpoint(&value[2..])?,
            _ => {}
        }
    }
    Some(found)
}

fn endpoint(address: &[u8]) -> Option<Endpoint> {
    if let Ok(v4) = <[u8; 4]>::try_from(address) {
        return Some(Endpoint::from(SocketAddr::from((v4, 0))));
    }
    let v6 = <[u8; 16]>::try_from(address).ok()?;
    Some(Endpoint::from(SocketAddr::V6(SocketAddrV6::new(v6.into(), 0, 0, 0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::{device, ours, shown};

    fn record(family: u8) -> RoutingRecord {
        ours(routing::ROUTE, family)
    }

    /// The bytes are those that iproute2 6.1 sends for the command, but for the sequence number.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_route_is_what_iproute2_sends() {
        // ip route add local default dev lo src 127.0.0.1 table 123 proto 123
        let mut v4 = RoutingRecord { source_length: 32, ..record(4) };
        v4.address[..4].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(
            shown(add(&v4).unwrap().bytes()),
            "2c000000 18000506 00000000 00000000 02000000 7b7bfe02 00000000 \
             08000700 7f000001 08000400 01000000"
        );
        // ip -6 route add local default dev lo src ::1 table 70000 proto 123
        let mut v6 = RoutingRecord { source_length: 128, table: 70_000, ..record(6) };
        v6.address[15] = 1;
        assert_eq!(
            shown(add(&v6).unwrap().bytes()),
            "54000000 18000506 00000000 00000000 0a000000 007b0002 00000000 \
             14000100 00000000 00000000 00000000 00000000 \
             14000700 00000000 00000000 00000000 00000001 08000f00 70110100 08000400 01000000"
        );
        // ip route del local default dev lo table 123 proto 123
        assert_eq!(
            shown(remove(&record(4)).unwrap().bytes()),
            "24000000 19000500 00000000 00000000 02000000 7b7bfe02 00000000 08000400 01000000"
        );
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let gone = add(&RoutingRecord { device: device("nowhere0"), ..record(4) });
        let error = gone.err().expect("there is no such device");
        assert!(error.text().starts_with("Cannot find the device nowhere0: "), "{}", error.text());
    }

    #[test]
    fn a_route_reads_as_it_was_written() {
        let mut full = RoutingRecord { source_length: 32, priority: 9, table: 70_000, ..record(4) };
        full.address[..4].copy_from_slice(&[192, 0, 2, 1]);
        for route in [full, record(4)] {
            let body = add(&route).unwrap().bytes()[16..].to_vec();
            assert_eq!(read(&body, route.table), Some(route));
            assert_eq!(read(&body, route.table + 1), None);
        }
    }

    #[test]
    fn any_other_route_is_another_one() {
        let mut via = add(&record(4)).unwrap();
        via.attribute(RTA_GATEWAY, &[192, 0, 2, 1]);
        assert_eq!(read(&via.bytes()[16..], 123).map(|route| route.other), Some(1));
        // A destination's length, a source's, a TOS, a type (unicast).
        for (offset, value) in [(1, 24), (2, 24), (3, 0x10), (7, 1)] {
            let mut body = add(&record(4)).unwrap().bytes()[16..].to_vec();
            body[offset] = value;
            assert_eq!(read(&body, 123).map(|route| route.other), Some(1), "{offset}");
        }
    }

    fn answered(kind: u8, attributes: &[(u16, &[u8])]) -> ReachRecord {
        let mut fixed = [0; FIXED];
        fixed[7] = kind;
        let mut message = Request::new(libc::RTM_NEWROUTE, 0, &fixed);
        for (kind, value) in attributes {
            message.attribute(*kind, value);
        }
        let body = message.bytes()[16..].to_vec();
        read_answer(&[Message { kind: libc::RTM_NEWROUTE, body }]).unwrap()
    }

    #[test]
    fn an_answer_tells_how_an_address_is_reached() {
        let loopback = (RTA_OIF, &1u32.to_ne_bytes()[..]);
        assert_eq!(answered(libc::RTN_LOCAL, &[loopback]).kind, reach::LOCAL);
        assert_eq!(answered(libc::RTN_BLACKHOLE, &[]).kind, reach::NONE);
        let through = answered(
            libc::RTN_UNICAST,
            &[loopback, (RTA_PREFSRC, &[192, 0, 2, 1]), (RTA_GATEWAY, &[192, 0, 2, 9])],
        );
        assert_eq!(through.kind, reach::REMOTE);
        assert_eq!(through.device, device("lo"));
        assert_eq!(through.source.socket_addr(), Some("192.0.2.1:0".parse().unwrap()));
        assert_eq!(through.gateway.socket_addr(), Some("192.0.2.9:0".parse().unwrap()));
    }

    #[test]
    fn an_ipv4_route_may_have_an_ipv6_gateway() {
        let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        via.extend_from_slice(&"fe80::9".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let through = answered(libc::RTN_UNICAST, &[(RTA_VIA, &via)]);
        assert_eq!(through.gateway.socket_addr(), Some("[fe80::9]:0".parse().unwrap()));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernel_is_asked_for_one_address() {
        // As `ip route get 127.0.0.1` and `ip -6 route get fe80::1 dev lo`, with an acknowledgement.
        assert_eq!(
            shown(ask("127.0.0.1:80".parse().unwrap()).bytes()),
            "24000000 1a000500 00000000 00000000 02200000 00000000 00000000 08000100 7f000001"
        );
        assert_eq!(
            shown(ask("[fe80::1%1]:80".parse().unwrap()).bytes()),
            "38000000 1a000500 00000000 00000000 0a800000 00000000 00000000 \
             14000100 fe800000 00000000 00000000 00000001 08000400 01000000"
        );
    }
}
