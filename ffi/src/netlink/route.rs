//! Routes (ip-route(8)) as messages.

use std::net::IpAddr;

use netlink_packet_core::{Parseable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType,
};

use super::link::{index_of, name_at};
use super::message::{Decoded, Request};
use super::{
    address_of, bits_of, family_number, family_of, is_elsewhere, set_address, unspecified,
};
use crate::abi::errors::Result;
use crate::abi::layout::{routing, RoutingRecord};

/// The request that adds `local default dev <device>` to a table: deliver here whatever looks there.
pub fn add(route: &RoutingRecord) -> Result<Request> {
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    Ok(Request::new(libc::RTM_NEWROUTE, flags, &message(route)?))
}

/// The request that removes such a route.
pub fn remove(route: &RoutingRecord) -> Result<Request> {
    Ok(Request::new(libc::RTM_DELROUTE, NLM_F_ACK, &message(route)?))
}

/// The request for every route of one table. A kernel before 4.20 answers with those of all.
pub fn list(family: u8, table: u32) -> Request {
    let mut routes = RouteMessage::default();
    routes.header.address_family = family_number(family);
    routes.attributes.push(RouteAttribute::Table(table));
    Request::new(libc::RTM_GETROUTE, NLM_F_DUMP, &routes)
}

/// The attributes are in the order in which iproute2 has them.
fn message(route: &RoutingRecord) -> Result<RouteMessage> {
    let short_table = u8::try_from(route.table).ok();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family_number(route.family),
        table: short_table.unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: route.origin.into(),
        // IPv6 routes have no scope.
        scope: if route.family == 4 { RouteScope::Host } else { RouteScope::Universe },
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.family == 6 {
        attributes.push(RouteAttribute::Destination(unspecified(6).into()));
    }
    if route.source_length > 0 {
        attributes.push(RouteAttribute::PrefSource(address_of(route).into()));
    }
    if route.priority != 0 {
        attributes.push(RouteAttribute::Priority(route.priority));
    }
    if short_table.is_none() {
        attributes.push(RouteAttribute::Table(route.table));
    }
    attributes.push(RouteAttribute::Oif(index_of(&route.device)?));
    Ok(message)
}

/// A route of `table` from its message, or `None` for one of another table. Anything but
/// `local default dev …` sets `other`.
///
/// # Errors
///
/// A route that may be of `table` and that the crate cannot read.
pub fn read(body: &[u8], table: u32) -> Decoded<Option<RoutingRecord>> {
    if is_elsewhere(RouteHeader::parse(body)?.table, table) {
        return Ok(None);
    }
    let RouteMessage { header, attributes, .. } = RouteMessage::parse(body)?;
    let Some(family) = family_of(header.address_family) else { return Ok(None) };
    let mut route = RoutingRecord {
        kind: routing::ROUTE,
        family,
        table: u32::from(header.table),
        origin: header.protocol.into(),
        // A destination, a source, a TOS, another type.
        other: u8::from(
            header.destination_prefix_length != 0
                || header.source_prefix_length != 0
                || header.tos != 0
                || header.kind != RouteType::Local,
        ),
        ..RoutingRecord::default()
    };
    for attribute in attributes {
        match attribute {
            RouteAttribute::PrefSource(address) => match ip_of(&address) {
                Some(address) => {
                    route.source_length = bits_of(address);
                    set_address(&mut route, address);
                }
                None => route.other = 1,
            },
            RouteAttribute::Oif(index) => route.device = name_at(index),
            RouteAttribute::Table(number) => route.table = number,
            RouteAttribute::Priority(priority) => route.priority = priority,
            RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_) => {}
            _ => route.other = 1,
        }
    }
    Ok((route.table == table).then_some(route))
}

/// An address of IPv4 or IPv6; `None` for one of another family.
pub fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::HEADER;
    use crate::netlink::tests::{device, ours, shown, with};

    const RTA_GATEWAY: u16 = libc::RTA_GATEWAY;
    const RTA_PREFSRC: u16 = libc::RTA_PREFSRC;

    /// A route's message behind the header.
    fn written(route: &RoutingRecord) -> Vec<u8> {
        add(route).unwrap().bytes()[HEADER..].to_vec()
    }

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
            let body = written(&route);
            assert_eq!(read(&body, route.table).unwrap(), Some(route));
            assert_eq!(read(&body, route.table + 1).unwrap(), None);
        }
    }

    #[test]
    fn any_other_route_is_another_one() {
        let via = with(written(&record(4)), &[(RTA_GATEWAY, &[192, 0, 2, 1])]);
        assert_eq!(read(&via, 123).unwrap().map(|route| route.other), Some(1));
        // A destination's length, a source's, a TOS, a type (unicast).
        for (offset, value) in [(1, 24), (2, 24), (3, 0x10), (7, 1)] {
            let mut body = written(&record(4));
            body[offset] = value;
            let route = read(&body, 123).unwrap();
            assert_eq!(route.map(|route| route.other), Some(1), "{offset}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_but_in_another_table() {
        let whole = written(&record(4));
        for length in (0..12).chain([whole.len() - 1]) {
            assert!(read(&whole[..length], 123).is_err(), "{length}");
        }
        assert_eq!(read(&whole[..whole.len() - 1], 124).unwrap(), None);
        let odd = with(whole, &[(RTA_PREFSRC, &[192, 0, 2])]);
        assert!(read(&odd, 123).is_err());
    }
}
