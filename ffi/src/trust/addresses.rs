//! The relation of an address to this host: its own, a subnet's broadcast address, or another host's.

use std::net::IpAddr;

use crate::netlink::local::Found;
use crate::trust::subnets::Subnets;

/// What an address is to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Another host's, as far as this one knows.
    Foreign,
    /// One of this host's own, loopback among them.
    Own,
    /// The broadcast address of one of its subnets.
    Broadcast,
    /// One that it answers as one of many hosts (RFC 4291, 2.6).
    Anycast,
}

/// This host's addresses at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    own: Subnets,
    broadcast: Subnets,
    anycast: Subnets,
}

impl Addresses {
    /// From what the kernel lists; `None` if a prefix is longer than an address, which it never is.
    pub fn new(found: &Found) -> Option<Addresses> {
        Some(Addresses {
            own: Subnets::new(&found.own)?,
            broadcast: Subnets::new(&found.broadcast)?,
            anycast: Subnets::new(&found.anycast)?,
        })
    }

    /// What an address is. A broadcast address within an own prefix (127.255.255.255) is one.
    pub fn nature_of(&self, ip: IpAddr) -> Nature {
        if self.broadcast.contain(ip) {
            Nature::Broadcast
        } else if self.anycast.contain(ip) {
            Nature::Anycast
        } else if self.own.contain(ip) {
            Nature::Own
        } else {
            Nature::Foreign
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::net::subnet::Subnet;

    fn records(texts: &[(&str, u32)]) -> Vec<Subnet> {
        let record = |(text, bits): &(&str, u32)| match text.parse().unwrap() {
            IpAddr::V4(v4) => Subnet { address: v4.to_ipv6_mapped().octets(), prefix: 96 + bits },
            IpAddr::V6(v6) => Subnet { address: v6.octets(), prefix: *bits },
        };
        texts.iter().map(record).collect()
    }

    /// A host with 198.51.100.10/24 and 2001:db8:5::10/64.
    pub fn host() -> Addresses {
        Addresses::new(&Found {
            own: records(&[
                ("127.0.0.0", 8),
                ("127.0.0.1", 32),
                ("198.51.100.10", 32),
                ("::1", 128),
                ("2001:db8:5::10", 128),
            ]),
            broadcast: records(&[("127.255.255.255", 32), ("198.51.100.255", 32)]),
            anycast: records(&[("2001:db8:5::", 128)]),
            too_many: false,
        })
        .unwrap()
    }

    #[test]
    fn each_address_is_what_the_kernel_lists_it_as() {
        for (text, nature) in [
            ("198.51.100.10", Nature::Own),
            ("::ffff:198.51.100.10", Nature::Own),
            ("198.51.100.11", Nature::Foreign),
            ("198.51.100.255", Nature::Broadcast),
            ("127.3.2.1", Nature::Own),
            ("127.255.255.255", Nature::Broadcast),
            ("2001:db8:5::", Nature::Anycast),
            ("2001:db8:5::10", Nature::Own),
            ("2001:db8:5::11", Nature::Foreign),
        ] {
            assert_eq!(host().nature_of(text.parse().unwrap()), nature, "{text}");
        }
        let nothing = Addresses::default();
        assert_eq!(nothing.nature_of("127.0.0.1".parse().unwrap()), Nature::Foreign);
    }
}
