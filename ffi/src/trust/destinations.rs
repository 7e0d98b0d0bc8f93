//! Allowed destinations of a listener whose upstream is the destination in the header.

use std::net::{IpAddr, SocketAddr};

use crate::abi::layout::DestinationRecord;
use crate::net::subnet::{number_of, Subnet};
use crate::trust::addresses::Nature;

/// Subnets with ports. Nothing is allowed that none of them holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Destinations(Box<[Entry]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    first: u128,
    last: u128,
    first_port: u16,
    last_port: u16,
}

impl Destinations {
    /// `None` if a prefix is longer than an address, or ports are in no order.
    pub fn new(records: &[DestinationRecord]) -> Option<Destinations> {
        let entry = |record: &DestinationRecord| {
            let DestinationRecord { address, prefix, first_port, last_port } = *record;
            let (first, last) = Subnet { address, prefix }.range()?;
            (first_port <= last_port).then_some(Entry { first, last, first_port, last_port })
        };
        Some(Destinations(records.iter().map(entry).collect::<Option<_>>()?))
    }

    /// Whether a header may lead there. What is nobody's address never is: the unspecified one, by which
    /// connect(2) reaches this host, and those of many hosts, whatever the subnets say.
    ///
    /// `nature`: what an address is to this host.
    pub fn allow(&self, to: SocketAddr, nature: impl Fn(IpAddr) -> Nature) -> bool {
        let (ip, port) = (to.ip().to_canonical(), to.port());
        let is_nobodys = match ip {
            IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_broadcast() || v4.is_multicast(),
            IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
        };
        if port == 0 || is_nobodys || matches!(nature(ip), Nature::Broadcast | Nature::Anycast) {
            return false;
        }
        let ip = number_of(ip);
        self.0.iter().any(|entry| {
            (entry.first..=entry.last).contains(&ip)
                && (entry.first_port..=entry.last_port).contains(&port)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::addresses::tests::host;
    use crate::trust::table::tests::record;

    fn destinations(entries: &[(&str, u16, u16)]) -> Option<Destinations> {
        let records: Vec<DestinationRecord> = entries
            .iter()
            .map(|(subnet, first_port, last_port)| {
                let subnet = record(subnet, 1);
                DestinationRecord {
                    address: subnet.address,
                    prefix: subnet.prefix,
                    first_port: *first_port,
                    last_port: *last_port,
                }
            })
            .collect();
        Destinations::new(&records)
    }

    #[test]
    fn only_what_an_entry_holds_is_allowed() {
        let entries =
            [("127.0.0.0/8", 1024, 65535), ("10.0.0.5/32", 22, 22), ("2001:db8::/32", 443, 443)];
        let allowed = destinations(&entries).unwrap();
        for (to, expected) in [
            ("127.0.0.1:1024", true),
            ("127.0.0.1:1023", false),
            ("127.255.255.255:1024", false),
            ("[::ffff:127.0.0.1]:1024", true),
            ("10.0.0.5:22", true),
            ("10.0.0.5:23", false),
            ("10.0.0.4:22", false),
            ("[2001:db8::1]:443", true),
            ("[2001:db8:5::]:443", false),
            ("[2001:db9::1]:443", false),
        ] {
            let to: SocketAddr = to.parse().unwrap();
            assert_eq!(allowed.allow(to, |ip| host().nature_of(ip)), expected, "{to}");
        }
        assert!(!Destinations::default().allow("127.0.0.1:80".parse().unwrap(), |_| Nature::Own));
    }

    #[test]
    fn what_is_nobodys_address_is_no_destination_even_where_all_are_allowed() {
        let all = destinations(&[("::/0", 0, 65535)]).unwrap();
        let allows = |to: &str| all.allow(to.parse().unwrap(), |ip| host().nature_of(ip));
        for to in [
            "0.0.0.0:80",
            "0.1.2.3:80",
            "[::]:80",
            "[::ffff:0.0.0.0]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "198.51.100.255:80",
            "[ff02::1]:80",
            "203.0.113.1:0",
        ] {
            assert!(!allows(to), "{to}");
        }
        assert!(allows("203.0.113.1:80") && allows("[2001:db8::1]:80"));
    }

    #[test]
    fn records_that_say_nothing_are_refused() {
        assert_eq!(destinations(&[("10.0.0.0/33", 1, 2)]), None);
        assert_eq!(destinations(&[("10.0.0.0/8", 2, 1)]), None);
    }
}
