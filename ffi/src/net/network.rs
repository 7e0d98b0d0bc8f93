//! Addresses that count as one: an IPv4 address, or an IPv6 /64.

use std::net::IpAddr;

/// An IPv4 address, or an IPv6 /64, which is what one host is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    V4(u32),
    V6(u64),
}

impl Network {
    pub fn of(ip: IpAddr) -> Network {
        match ip {
            IpAddr::V4(v4) => Network::V4(v4.to_bits()),
            IpAddr::V6(v6) => Network::V6((v6.to_bits() >> 64) as u64),
        }
    }
}
