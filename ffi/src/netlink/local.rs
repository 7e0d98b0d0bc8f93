//! This host's own addresses, and those on which it listens as one of many: the addresses of its
//! interfaces (`struct ifaddrmsg`) and its table `local` (`struct rtmsg`) as messages.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::message::{attributes, u32_at, Changes, Message, Request, Routing};
use super::{family_number, family_of, route};
use crate::net::subnet::Subnet;

/// What tells of a change: links, addresses and routes of both families (linux/rtnetlink.h).
const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;

/// Addresses and prefixes of one kind are kept up to this number: 5 MiB.
const MOST: usize = 1 << 18;

const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
/// Bytes of `struct ifaddrmsg`, and of `struct rtmsg`.
const ADDRESS_FIXED: usize = 8;
const ROUTE_FIXED: usize = 12;
/// linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

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
        for mut request in [addresses(family), route::list(family, LOCAL)] {
            match routing.exchange(&mut request, |message| found.add(&message)) {
                // The family may not be built in.
                Err(refused) if !super::is_absent(&refused.error) => return Err(refused.error),
                _ => {}
            }
        }
    }
    Ok(found)
}

/// Where the kernel tells of each change of what `read` finds.
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
            route_of(&message.body).is_some_and(|(kind, ..)| is_ours(kind))
        }
        // The kernel drops a link's routes with it, and says so only of the link.
        libc::RTM_NEWADDR | libc::RTM_DELADDR | libc::RTM_NEWLINK | libc::RTM_DELLINK => true,
        _ => false,
    }
}

/// The request for the addresses of all interfaces.
fn addresses(family: u8) -> Request {
    let mut fixed = [0; ADDRESS_FIXED];
    fixed[0] = family_number(family);
    Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &fixed)
}

fn is_ours(kind: u8) -> bool {
    matches!(kind, libc::RTN_LOCAL | libc::RTN_BROADCAST | libc::RTN_ANYCAST)
}

impl Found {
    fn add(&mut self, message: &Message) {
        match message.kind {
            libc::RTM_NEWROUTE => self.add_route(&message.body),
            libc::RTM_NEWADDR => self.add_address(&message.body),
            _ => {}
        }
    }

    fn add_route(&mut self, body: &[u8]) {
        let Some((kind, LOCAL, prefix)) = route_of(body) else { return };
        match kind {
            libc::RTN_LOCAL => keep(&mut self.own, prefix, &mut self.too_many),
            libc::RTN_BROADCAST => keep(&mut self.broadcast, prefix, &mut self.too_many),
            libc::RTN_ANYCAST => keep(&mut self.anycast, prefix, &mut self.too_many),
            _ => {}
        }
    }

    /// An address of an interface whose routes are in a table of its own (a VRF) is this host's, too.
    fn add_address(&mut self, body: &[u8]) {
        let Some(fixed) = body.get(..ADDRESS_FIXED) else { return };
        let value = |wanted| {
            attributes(&body[ADDRESS_FIXED..])
                .find(|(kind, _)| *kind == wanted)
                .and_then(|(_, value)| prefix(family_of(fixed[0])?, value, None))
        };
        // `IFA_ADDRESS` is the other end's where there is a local one beside it.
        if let Some(own) = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS)) {
            keep(&mut self.own, own, &mut self.too_many);
        }
        if let Some(broadcast) = value(IFA_BROADCAST) {
            keep(&mut self.broadcast, broadcast, &mut self.too_many);
        }
    }
}

fn keep(list: &mut Vec<Subnet>, prefix: Subnet, too_many: &mut bool) {
    if list.len() < MOST {
        list.push(prefix);
    } else {
        *too_many = true;
    }
}

/// A route's type, table and destination.
fn route_of(body: &[u8]) -> Option<(u8, u32, Subnet)> {
    let fixed = body.get(..ROUTE_FIXED)?;
    let (mut table, mut destination) = (u32::from(fixed[4]), &[][..]);
    for (kind, value) in attributes(&body[ROUTE_FIXED..]) {
        match kind {
            libc::RTA_DST => destination = value,
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some((fixed[7], table, prefix(family_of(fixed[0])?, destination, Some(fixed[1]))?))
}

/// An address with so many bits of it, all of them without a number; zeroes for one that is missing.
fn prefix(family: u8, address: &[u8], bits: Option<u8>) -> Option<Subnet> {
    let (address, before, all) = if family == 4 {
        let octets = if address.is_empty() { [0; 4] } else { address.try_into().ok()? };
        (Ipv4Addr::from(octets).to_ipv6_mapped(), 96, 32)
    } else {
        let octets: [u8; 16] =
            if address.is_empty() { [0; 16] } else { address.try_into().ok()? };
        (Ipv6Addr::from(octets), 0, 128)
    };
    let bits = bits.unwrap_or(all);
    (bits <= all).then(|| Subnet { address: address.octets(), prefix: before + u32::from(bits) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(kind: u8, table: u8, bits: u8, destination: &[u8]) -> Message {
        let family = if destination.len() == 4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let fixed = [family, bits, 0, 0, table, 2, 0, kind, 0, 0, 0, 0];
        let mut request = Request::new(libc::RTM_NEWROUTE, 0, &fixed);
        request.attribute(libc::RTA_DST, destination);
        Message { kind: libc::RTM_NEWROUTE, body: request.bytes()[16..].to_vec() }
    }

    fn addressed(attributes: &[(u16, [u8; 4])]) -> Message {
        let mut request =
            Request::new(libc::RTM_NEWADDR, 0, &[libc::AF_INET as u8, 24, 0, 0, 1, 0, 0, 0]);
        for (kind, value) in attributes {
            request.attribute(*kind, value);
        }
        Message { kind: libc::RTM_NEWADDR, body: request.bytes()[16..].to_vec() }
    }

    fn record(address: [u8; 4], bits: u32) -> Subnet {
        let address = Ipv4Addr::from(address).to_ipv6_mapped().octets();
        Subnet { address, prefix: 96 + bits }
    }

    #[test]
    fn routes_are_sorted_by_their_type_and_other_tables_are_left_out() {
        let mut found = Found::default();
        found.add(&routed(libc::RTN_LOCAL, 255, 8, &[127, 0, 0, 0]));
        found.add(&routed(libc::RTN_BROADCAST, 255, 32, &[198, 51, 100, 255]));
        found.add(&routed(libc::RTN_ANYCAST, 255, 128, &[9; 16]));
        found.add(&routed(libc::RTN_UNICAST, 255, 24, &[192, 0, 2, 0]));
        // The program's own: `local default dev lo table 123`.
        found.add(&routed(libc::RTN_LOCAL, 123, 0, &[0; 4]));
        assert_eq!(found.own, [record([127, 0, 0, 0], 8)]);
        assert_eq!(found.broadcast, [record([198, 51, 100, 255], 32)]);
        assert_eq!(found.anycast, [Subnet { address: [9; 16], prefix: 128 }]);
    }

    #[test]
    fn an_interfaces_address_is_its_local_one() {
        let mut found = Found::default();
        let (own, other, broadcast) = ([192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 255]);
        found.add(&addressed(&[
            (IFA_ADDRESS, other),
            (IFA_LOCAL, own),
            (IFA_BROADCAST, broadcast),
        ]));
        found.add(&addressed(&[(IFA_ADDRESS, other)]));
        assert_eq!(found.own, [record(own, 32), record(other, 32)]);
        assert_eq!(found.broadcast, [record(broadcast, 32)]);
    }

    #[test]
    fn malformed_messages_are_left_out() {
        let mut found = Found::default();
        let whole = routed(libc::RTN_LOCAL, 255, 32, &[192, 0, 2, 1]);
        for length in 0..whole.body.len() {
            found.add(&Message { kind: whole.kind, body: whole.body[..length].to_vec() });
        }
        // Cut inside its destination's attribute, a route is one of all addresses: with 32 bits, of 0.0.0.0.
        assert!(found.own.iter().all(|own| *own == record([0; 4], 32)));
        found.own.clear();
        found.add(&routed(libc::RTN_LOCAL, 255, 33, &[192, 0, 2, 1]));
        found.add(&routed(libc::RTN_LOCAL, 255, 8, &[1; 5]));
        assert!(found.own.is_empty());
    }

    #[test]
    fn a_table_without_an_end_is_bounded() {
        let mut found = Found::default();
        for index in 0..MOST as u32 + 9 {
            found.add(&routed(libc::RTN_LOCAL, 255, 32, &index.to_be_bytes()));
        }
        assert_eq!(found.own.len(), MOST);
        assert!(found.too_many);
    }

    #[test]
    fn what_changes_no_address_of_this_host_is_of_no_concern() {
        assert!(concerns(&routed(libc::RTN_BROADCAST, 255, 32, &[198, 51, 100, 255])));
        assert!(!concerns(&routed(libc::RTN_UNICAST, 254, 24, &[192, 0, 2, 0])));
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
