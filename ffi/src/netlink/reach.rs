//! The route from this host to an address (`ip route get`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{Parseable, NLM_F_ACK};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType, RouteVia};

use super::link::name_at;
use super::message::{Message, Request, Routing};
use super::route::ip_of;
use super::{bits_of, family_number, open};
use crate::abi::errors::{Error, Result};
use crate::abi::layout::{reach, Endpoint, ReachRecord};

/// How the host reaches an address.
pub fn find(address: &Endpoint) -> Result<ReachRecord> {
    let to = address.socket_addr().ok_or_else(|| Error::invalid("an address is missing"))?;
    let answer = ask(&open()?, &request(to), to.ip())?;
    Ok(answer
        .map_or_else(|_| ReachRecord { kind: reach::NONE, ..ReachRecord::default() }, record_of))
}

/// Asks for the route to an address: the route, or the error for which the kernel has none.
pub fn ask(
    routing: &Routing,
    request: &Request,
    to: IpAddr,
) -> Result<std::result::Result<RouteMessage, io::Error>> {
    match routing.ask(request) {
        Ok(messages) => answer_in(&messages).map(Ok),
        Err(refused) if is_unreachable(&refused.error) => Ok(Err(refused.error)),
        Err(refused) => {
            Err(Error::system(format!("Cannot find the route to {to}"), &refused.error))
        }
    }
}

/// No route, or one that refuses; EXDEV is the answer where `rp_filter` would drop what comes in.
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
                | libc::EXDEV
        )
    )
}

fn request(to: SocketAddr) -> Request {
    let mut route = leading_to(to.ip());
    if let SocketAddr::V6(v6) = to {
        if v6.scope_id() != 0 {
            route.attributes.push(RouteAttribute::Oif(v6.scope_id()));
        }
    }
    Request::new(libc::RTM_GETROUTE, NLM_F_ACK, &route)
}

/// The message that asks for the route to an address.
pub fn leading_to(ip: IpAddr) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family_number(if ip.is_ipv4() { 4 } else { 6 });
    route.header.destination_prefix_length = bits_of(ip);
    route.attributes.push(RouteAttribute::Destination(ip.into()));
    route
}

/// The route among the messages that answer RTM_GETROUTE.
pub fn answer_in(messages: &[Message]) -> Result<RouteMessage> {
    let answer = messages.iter().find(|message| message.kind == libc::RTM_NEWROUTE);
    answer
        .and_then(|answer| RouteMessage::parse(&answer.body[..]).ok())
        .ok_or_else(|| Error::invalid("the kernel's answer about a route is malformed"))
}

/// A route's type as one of `reach`.
pub fn kind_of(route: &RouteMessage) -> u8 {
    match route.header.kind {
        RouteType::Local => reach::LOCAL,
        RouteType::Unicast => reach::REMOTE,
        _ => reach::NONE,
    }
}

pub fn record_of(route: RouteMessage) -> ReachRecord {
    let endpoint = |ip| Endpoint::from(SocketAddr::new(ip, 0));
    let mut found = ReachRecord { kind: kind_of(&route), ..ReachRecord::default() };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.device = name_at(*index),
            RouteAttribute::PrefSource(address) => {
                found.source = ip_of(address).map_or(found.source, endpoint);
            }
            RouteAttribute::Gateway(address) => {
                found.gateway = ip_of(address).map_or(found.gateway, endpoint);
            }
            RouteAttribute::Via(RouteVia::Inet(v4)) => found.gateway = endpoint((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => found.gateway = endpoint((*v6).into()),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::HEADER;
    use crate::netlink::tests::{device, shown, with};

    const RTA_OIF: u16 = libc::RTA_OIF;
    const RTA_GATEWAY: u16 = libc::RTA_GATEWAY;
    const RTA_PREFSRC: u16 = libc::RTA_PREFSRC;
    const RTA_VIA: u16 = 18;

    #[test]
    fn an_address_of_this_host_is_local() {
        let loopback = Endpoint::from("127.0.0.1:1".parse::<SocketAddr>().unwrap());
        assert_eq!(find(&loopback).unwrap().kind, reach::LOCAL);
    }

    fn answered(kind: RouteType, attributes: &[(u16, &[u8])]) -> ReachRecord {
        let mut route = RouteMessage::default();
        route.header.address_family = family_number(4);
        route.header.kind = kind;
        let request = Request::new(libc::RTM_NEWROUTE, 0, &route);
        let body = with(request.bytes()[HEADER..].to_vec(), attributes);
        record_of(answer_in(&[Message { kind: libc::RTM_NEWROUTE, body }]).unwrap())
    }

    #[test]
    fn an_answer_tells_how_an_address_is_reached() {
        let loopback = (RTA_OIF, &1u32.to_ne_bytes()[..]);
        assert_eq!(answered(RouteType::Local, &[loopback]).kind, reach::LOCAL);
        assert_eq!(answered(RouteType::BlackHole, &[]).kind, reach::NONE);
        let through = answered(
            RouteType::Unicast,
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
        let through = answered(RouteType::Unicast, &[(RTA_VIA, &via)]);
        assert_eq!(through.gateway.socket_addr(), Some("[fe80::9]:0".parse().unwrap()));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernel_is_asked_for_one_address() {
        // As `ip route get 127.0.0.1` and `ip -6 route get fe80::1 dev lo`, with an acknowledgement.
        assert_eq!(
            shown(request("127.0.0.1:80".parse().unwrap()).bytes()),
            "24000000 1a000500 00000000 00000000 02200000 00000000 00000000 08000100 7f000001"
        );
        assert_eq!(
            shown(request("[fe80::1%1]:80".parse().unwrap()).bytes()),
            "38000000 1a000500 00000000 00000000 0a800000 00000000 00000000 \
             14000100 fe800000 00000000 00000000 00000001 08000400 01000000"
        );
    }
}
