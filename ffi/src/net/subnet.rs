//! A subnet as a value.

use std::net::IpAddr;

/// A subnet of either family: IPv4 as `::ffff:a.b.c.d`, with 96 added to its prefix. Host bits are of no
/// account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub address: [u8; 16],
    /// 0 to 128.
    pub prefix: u32,
}

impl Subnet {
    /// The subnet of an address's first bits; `None` for more bits than the address has.
    pub fn new(address: IpAddr, bits: u8) -> Option<Subnet> {
        let (address, before) = match address {
            IpAddr::V4(v4) if bits <= 32 => (v4.to_ipv6_mapped(), 96),
            IpAddr::V6(v6) if bits <= 128 => (v6, 0),
            _ => return None,
        };
        Some(Subnet { address: address.octets(), prefix: before + u32::from(bits) })
    }

    /// Whether an address is in it.
    pub fn holds(&self, ip: IpAddr) -> bool {
        let number = number_of(ip);
        self.range().is_some_and(|(first, last)| (first..=last).contains(&number))
    }

    /// Its first and its last address as numbers; `None` if the prefix is longer than 128.
    pub fn range(&self) -> Option<(u128, u128)> {
        let host_bits = 128u32.checked_sub(self.prefix)?;
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        let first = u128::from_be_bytes(self.address) & mask;
        Some((first, first | !mask))
    }
}

/// An address as a number among those of subnets: a mapped one is its IPv4 self.
pub fn number_of(ip: IpAddr) -> u128 {
    u128::from_be_bytes(match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}
