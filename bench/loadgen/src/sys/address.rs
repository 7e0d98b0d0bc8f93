//! Addresses as the kernel takes and gives them.

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr};

use libc::{sa_family_t, sockaddr_in6, socklen_t};

use crate::proxy::Family;

/// Room for an address of either family.
#[repr(C)]
#[derive(Clone, Copy)]
pub union RawAddress {
    family: sa_family_t,
    v4: libc::sockaddr_in,
    v6: sockaddr_in6,
}

impl RawAddress {
    /// Bytes of the room.
    pub const ROOM: socklen_t = size_of::<RawAddress>() as socklen_t;

    /// An empty one, to be written by the kernel.
    pub fn empty() -> RawAddress {
        // SAFETY: zeroes are valid for these plain C structures.
        unsafe { zeroed() }
    }

    /// Bytes of an address of a family.
    pub fn length(family: Family) -> socklen_t {
        match family {
            Family::V4 => size_of::<libc::sockaddr_in>() as socklen_t,
            Family::V6 => size_of::<sockaddr_in6>() as socklen_t,
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::empty();
        match address {
            SocketAddr::V4(address) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
            }
            SocketAddr::V6(address) => {
                raw.v6 = sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: 0,
                };
            }
        }
        raw
    }
}

impl From<RawAddress> for SocketAddr {
    fn from(raw: RawAddress) -> SocketAddr {
        // SAFETY: every bit pattern is valid for these plain C structures, all of which the room
        // holds; the family, at the start of both, says which of them was written.
        unsafe {
            if i32::from(raw.family) == libc::AF_INET6 {
                let ip = IpAddr::from(raw.v6.sin6_addr.s6_addr);
                SocketAddr::new(ip, u16::from_be(raw.v6.sin6_port))
            } else {
                let ip = IpAddr::from(raw.v4.sin_addr.s_addr.to_ne_bytes());
                SocketAddr::new(ip, u16::from_be(raw.v4.sin_port))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_as_it_went() {
        for text in ["192.0.2.1:443", "[2001:db8::1]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(RawAddress::from(address)), address);
        }
    }
}
