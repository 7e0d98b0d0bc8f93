//! Routes (ip-route(8)) as messages: `struct rtmsg` and RTA_* of linux/rtnetlink.h.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::{address_length, family_number, family_of, index_of, name_at, netlink, set_address};
use crate::errors::{Error, Result};
use crate::layout::{reach, routing, Endpoint, ReachRecord, RoutingRecord};
use netlink::{attributes, u16_at, u32_at, Message, Request};

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
    let answer = messages.iter().find(|message| message.kind == libc::RTM_NEWROUTE);
    let malformed = || Error::invalid("the kernel's answer about a route is malformed");
    answer.and_then(|answer| answer_in(&answer.body)).ok_or_else(malformed)
}

fn answer_in(body: &[u8]) -> Option<ReachRecord> {
    let fixed = body.get(..FIXED)?;
    let kind = match fixed[7] {
        libc::RTN_LOCAL => reach::LOCAL,
        libc::RTN_UNICAST => reach::REMOTE,
        _ => reach::NONE,
    };
    let mut found = ReachRecord { kind, ..ReachRecord::default() };
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

fn octets(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(v4) => (4, v4.octets().to_vec()),
        IpAddr::V6(v6) => (6, v6.octets().to_vec()),
    }
}
