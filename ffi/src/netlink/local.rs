//! This host's addresses, including those that it shares with other hosts (anycast, broadcast): the addresses of
//! its interfaces and the table `local`, as messages.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{Parseable, NLM_F_DUMP};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};

use super::message::{Changes, Decoded, Message, Request, Routing};
use super::{bits_of, family_number, family_of, route, unspecified};
use crate::net::subnet::Subnet;

/// Reports of changes: links, addresses and routes of both families (linux/rtnetlink.h).
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// Addresses and prefixes of one kind are kept up to this number: 5 MiB.
const MOST: usize = 1 << 18;

const LOCAL: u8 = libc::RT_TABLE_LOCAL;

/// What was found, as prefixes.
#[derive(Default)]
pub struct Found {
    pub own: Vec<Subnet>,
    pub broadcast: Vec<Subnet>,
    pub anycast: Vec<Subnet>,
    /// There are more than `MOST` of one kind: the rest was left out.
    pub too_many: bool,
}

/// Asks the kernel for all of them; needs no capability.
pub fn read() -> io::Result<Found> {
    let routing = Routing::open()?;
    let mut found = Found::default();
    for family in [4, 6] {
        for request in [addresses(family), route::list(family, LOCAL.into())] {
            match routing.exchange(&request, |message| found.add(&message)) {
                // The family may not be built in.
                Err(refused) if !super::is_absent(&refused.error) => return Err(refused.error),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// The socket on which the kernel reports each change of what `read` finds.
pub fn changes() -> io::Result<Changes> {
    #[cfg(feature = "fault-injection")]
    if std::env::var_os("MMPROXY_NO_NETLINK").is_some() {
        return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
    }
    Changes::open(GROUPS)
}

/// Waits for a change of what `read` finds.
pub fn wait(changes: &Changes) -> io::Result<()> {
    changes.wait(concerns)
}

/// Whether a message that came unasked is about what `read` finds.
fn concerns(message: &Message) -> bool {
    match message.kind {
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            RouteHeader::parse(&message.body).map_or(true, |route| is_ours(route.kind))
        }
        // The kernel drops a link's routes with the link, and reports only the link.
        libc::RTM_NEWADDR | libc::RTM_DELADDR | libc::RTM_NEWLINK | libc::RTM_DELLINK => true,
        _ => false,
    }
}

/// The request for the addresses of all interfaces.
fn addresses(family: u8) -> Request {
    let mut addresses = AddressMessage::default();
    addresses.header.family = family_number(family);
    Request::new(libc::RTM_GETADDR, NLM_F_DUMP, &addresses)
}

fn is_ours(kind: RouteType) -> bool {
    matches!(kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast)
}

/// Reads messages as if the kernel had sent them.
#[cfg(any(test, feature = "fuzzing"))]
pub fn read_messages(messages: &[Message]) {
    let mut found = Found::default();
    for message in messages {
        let _ = found.add(message);
        concerns(message);
    }
}

impl Found {
    /// What a message says. One that the crate cannot read may be of an address of this host, so it is
    /// an error.
    fn add(&mut self, message: &Message) -> Decoded<()> {
        match message.kind {
            libc::RTM_NEWROUTE => self.add_route(&message.body),
            libc::RTM_NEWADDR => self.add_address(&message.body),
            _ => Ok(()),
        }
    }

    fn add_route(&mut self, body: &[u8]) -> Decoded<()> {
        let header = RouteHeader::parse(body)?;
        if header.table != LOCAL || !is_ours(header.kind) {
            return Ok(());
        }
        let Some(family) = family_of(header.address_family) else { return Ok(()) };
        let attributes = RouteMessage::parse(body)?.attributes;
        let destination = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => route::ip_of(address),
            _ => None,
        });
        let prefix = prefix(
            destination.unwrap_or_else(|| unspecified(family)),
            header.destination_prefix_length,
        )?;
        let list = match header.kind {
            RouteType::Local => &mut self.own,
            RouteType::Broadcast => &mut self.broadcast,
            _ => &mut self.anycast,
        };
        keep(list, prefix, &mut self.too_many);
        Ok(())
    }

    /// An address of an interface whose routes are in a table of its own (a VRF) is this host's, too.
    fn add_address(&mut self, body: &[u8]) -> Decoded<()> {
        let (mut local, mut address) = (None, None);
        for attribute in AddressMessage::parse(body)?.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Address(ip) => address = Some(ip),
                AddressAttribute::Broadcast(ip) => {
                    keep(&mut self.broadcast, prefix(ip.into(), 32)?, &mut self.too_many);
                }
                _ => {}
            }
        }
        // `IFA_ADDRESS` is the other end's if there is a local one next to it.
        if let Some(own) = local.or(address) {
            keep(&mut self.own, prefix(own, bits_of(own))?, &mut self.too_many);
        }
        Ok(())
    }
}

fn keep(list: &mut Vec<Subnet>, prefix: Subnet, too_many: &mut bool) {
    if list.len() < MOST {
        list.push(prefix);
    } else {
        *too_many = true;
    }
}

fn prefix(address: IpAddr, bits: u8) -> Decoded<Subnet> {
    Subnet::new(address, bits).ok_or_else(|| format!("{address}/{bits} is not a prefix").into())
}

#[cfg(test)]
pub(super) mod tests {
    use netlink_packet_route::route::RouteAddress;

    use super::*;
    use crate::netlink::message::HEADER;
    use crate::netlink::tests::with;

    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_BROADCAST: u16 = 4;

    fn routed(kind: RouteType, table: u8, bits: u8, destination: impl Into<IpAddr>) -> Message {
        let destination = destination.into();
        let mut route = RouteMessage::default();
        route.header = RouteHeader {
            address_family: family_number(if destination.is_ipv4() { 4 } else { 6 }),
            destination_prefix_length: bits,
            table,
            kind,
            ..RouteHeader::default()
        };
        route.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
        let body = Request::new(libc::RTM_NEWROUTE, 0, &route).bytes()[HEADER..].to_vec();
        Message { kind: libc::RTM_NEWROUTE, body }
    }

    /// What the kernel says of an address that an interface has.
    pub fn address(ip: IpAddr) -> Request {
        let mut address = AddressMessage::default();
        address.header.family = family_number(4);
        address.attributes.push(AddressAttribute::Local(ip));
        Request::new(libc::RTM_NEWADDR, 0, &address)
    }

    fn addressed(attributes: &[(u16, &[u8])]) -> Message {
        let mut address = AddressMessage::default();
        address.header.family = family_number(4);
        let body = Request::new(libc::RTM_NEWADDR, 0, &address).bytes()[HEADER..].to_vec();
        Message { kind: libc::RTM_NEWADDR, body: with(body, attributes) }
    }

    fn record(address: [u8; 4], bits: u8) -> Subnet {
        Subnet::new(address.into(), bits).unwrap()
    }

    #[test]
    fn routes_are_sorted_by_their_type_and_other_tables_are_left_out() {
        let mut found = Found::default();
        for route in [
            routed(RouteType::Local, LOCAL, 8, [127, 0, 0, 0]),
            routed(RouteType::Broadcast, LOCAL, 32, [198, 51, 100, 255]),
            routed(RouteType::Anycast, LOCAL, 128, [9; 16]),
            routed(RouteType::Unicast, LOCAL, 24, [192, 0, 2, 0]),
            // The program's own: `local default dev lo table 123`.
            routed(RouteType::Local, 123, 0, [0; 4]),
        ] {
            found.add(&route).unwrap();
        }
        assert_eq!(found.own, [record([127, 0, 0, 0], 8)]);
        assert_eq!(found.broadcast, [record([198, 51, 100, 255], 32)]);
        assert_eq!(found.anycast, [Subnet { address: [9; 16], prefix: 128 }]);
    }

    #[test]
    fn an_interfaces_address_is_its_local_one() {
        let mut found = Found::default();
        let (own, other, broadcast) = ([192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 255]);
        let attributes =
            [(IFA_ADDRESS, &other[..]), (IFA_LOCAL, &own), (IFA_BROADCAST, &broadcast)];
        found.add(&addressed(&attributes)).unwrap();
        found.add(&addressed(&[(IFA_ADDRESS, &other)])).unwrap();
        assert_eq!(found.own, [record(own, 32), record(other, 32)]);
        assert_eq!(found.broadcast, [record(broadcast, 32)]);
    }

    #[test]
    fn a_malformed_message_is_an_error() {
        let whole = routed(RouteType::Local, LOCAL, 32, [192, 0, 2, 1]);
        let mut found = Found::default();
        for length in (0..whole.body.len()).filter(|length| *length != 12) {
            let cut = Message { kind: whole.kind, body: whole.body[..length].to_vec() };
            assert!(found.add(&cut).is_err(), "{length}");
            assert!(concerns(&cut), "{length}");
        }
        assert!(found.add(&routed(RouteType::Local, LOCAL, 33, [192, 0, 2, 1])).is_err());
        assert!(found.add(&addressed(&[(IFA_LOCAL, &[1; 5])])).is_err());
        assert!(found.own.is_empty());
    }

    #[test]
    fn a_table_without_an_end_is_bounded() {
        let mut found = Found::default();
        for index in 0..MOST as u32 + 9 {
            found.add(&routed(RouteType::Local, LOCAL, 32, index.to_be_bytes())).unwrap();
        }
        assert_eq!(found.own.len(), MOST);
        assert!(found.too_many);
    }

    #[test]
    fn what_changes_no_address_of_this_host_is_of_no_concern() {
        assert!(concerns(&routed(RouteType::Broadcast, LOCAL, 32, [198, 51, 100, 255])));
        assert!(!concerns(&routed(RouteType::Unicast, 254, 24, [192, 0, 2, 0])));
        assert!(concerns(&addressed(&[])));
        assert!(!concerns(&Message { kind: libc::RTM_NEWNEIGH, body: Vec::new() }));
    }

    #[test]
    fn the_kernel_is_asked_without_a_capability() {
        let found = read().unwrap();
        assert!(found.own.contains(&record([127, 0, 0, 1], 32)), "lo has its address");
        assert!(!found.too_many);
    }
}
