//! Addresses in the kernel's form.

use std::cmp::Ordering;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{c_int, socklen_t};

/// An address in the kernel's form, 28 bytes at most: compared and hashed as it is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawAddr {
    pub(super) storage: libc::sockaddr_in6,
    pub(super) length: socklen_t,
}

impl RawAddr {
    /// Room for the kernel to write a peer's address to.
    pub fn empty() -> RawAddr {
        // SAFETY: zeroes are a valid, unspecified address.
        RawAddr { storage: unsafe { zeroed() }, length: 0 }
    }

    /// Where the kernel reads or writes the address, and how much room there is.
    pub fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        (&raw mut self.storage).cast()
    }

    /// Bytes of room.
    pub const ROOM: socklen_t = size_of::<libc::sockaddr_in6>() as socklen_t;

    /// An address as the kernel has written it elsewhere.
    pub fn from_bytes(bytes: &[u8]) -> RawAddr {
        let mut raw = RawAddr::empty();
        raw.set_length(bytes.len() as socklen_t);
        let length = raw.length as usize;
        // SAFETY: the room has `length` bytes at least, and any bytes are a valid address.
        unsafe { raw.as_mut_ptr().cast::<u8>().copy_from(bytes.as_ptr(), length) };
        raw
    }

    /// Whether it has the form of IPv6; an IPv4-mapped one has.
    pub fn is_ipv6(&self) -> bool {
        c_int::from(self.storage.sin6_family) == libc::AF_INET6
    }

    /// Tells how much of the room the kernel used.
    pub fn set_length(&mut self, length: socklen_t) {
        self.length = length.min(Self::ROOM);
    }

    /// The kernel's bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the storage is initialised and `length` never exceeds its size.
        unsafe {
            std::slice::from_raw_parts((&raw const self.storage).cast(), self.length as usize)
        }
    }

    /// The address, IPv4-mapped IPv6 as IPv4; `None` for another family.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match c_int::from(self.storage.sin6_family) {
            libc::AF_INET => {
                // SAFETY: the family says that a sockaddr_in is here; it is the smaller one.
                let v4: libc::sockaddr_in = unsafe { std::mem::transmute_copy(&self.storage) };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
            }
            libc::AF_INET6 => {
                let port = u16::from_be(self.storage.sin6_port);
                let ip = Ipv6Addr::from(self.storage.sin6_addr.s6_addr);
                Some(match ip.to_ipv4_mapped() {
                    Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, port)),
                    None => {
                        let scope = self.storage.sin6_scope_id;
                        SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope))
                    }
                })
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for RawAddr {
    fn from(addr: SocketAddr) -> RawAddr {
        let mut raw = RawAddr::empty();
        match addr {
            SocketAddr::V4(v4) => {
                let storage = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                raw.length = size_of_val(&storage) as socklen_t;
                // SAFETY: a sockaddr_in is smaller than the storage and may be written over it.
                unsafe { raw.as_mut_ptr().cast::<libc::sockaddr_in>().write(storage) };
            }
            SocketAddr::V6(v6) => {
                raw.storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                raw.storage.sin6_port = v6.port().to_be();
                raw.storage.sin6_addr.s6_addr = v6.ip().octets();
                raw.storage.sin6_scope_id = v6.scope_id();
                raw.length = Self::ROOM;
            }
        }
        raw
    }
}

impl PartialEq for RawAddr {
    fn eq(&self, other: &RawAddr) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for RawAddr {}

impl Ord for RawAddr {
    fn cmp(&self, other: &RawAddr) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for RawAddr {
    fn partial_cmp(&self, other: &RawAddr) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_value_in_the_kernels_form() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535", "[fe80::1%3]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddr::from(addr).socket_addr(), Some(addr));
        }
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(RawAddr::from(mapped).socket_addr(), Some("192.0.2.1:80".parse().unwrap()));
    }
}
