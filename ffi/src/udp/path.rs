//! The source of a datagram, and the address of this host to which it was sent.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::net::socket::RawAddr;

/// A peer, and the local address that it spoke to: what a reply needs to reach it.
///
/// Paths are compared, hashed and ordered by the kernel's bytes of their addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    pub peer: RawAddr,
    pub local: Local,
}

/// An address of this host, to reply from. Family 0: the listening socket's own.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Local {
    /// 4, 6, or 0.
    pub family: u8,
    /// Network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// The interface of a link-local address, which is ambiguous without it; otherwise 0.
    pub interface: u32,
    /// The port that was addressed, where the listening socket is transparent; otherwise 0, its own.
    pub port: u16,
}

impl Path {
    /// The path of a peer that spoke to the listening socket's own address.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn of(peer: std::net::SocketAddr) -> Path {
        Path { peer: peer.into(), local: Local::default() }
    }

    /// All of it in one piece: one call of the hasher is cheaper than several.
    #[inline]
    fn bytes(&self) -> [u8; 52] {
        let mut bytes = [0; 52];
        let peer = self.peer.bytes();
        bytes[..peer.len()].copy_from_slice(peer);
        bytes[28..44].copy_from_slice(&self.local.address);
        bytes[44..48].copy_from_slice(&self.local.interface.to_ne_bytes());
        bytes[48] = self.local.family;
        bytes[49..51].copy_from_slice(&self.local.port.to_ne_bytes());
        bytes
    }
}

impl Local {
    /// The destination that a transparent listening socket reports, in the kernel's form.
    pub fn original(of: &RawAddr) -> Local {
        let mut local = Local::default();
        match of.socket_addr() {
            Some(SocketAddr::V4(v4)) => {
                (local.family, local.port) = (4, v4.port());
                local.address[..4].copy_from_slice(&v4.ip().octets());
            }
            Some(SocketAddr::V6(v6)) => {
                (local.family, local.port) = (6, v6.port());
                local.address = v6.ip().octets();
                if v6.ip().is_unicast_link_local() {
                    local.interface = v6.scope_id();
                }
            }
            None => {}
        }
        local
    }

    /// The address and port, where the listening socket is transparent.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let ip = self.ip().filter(|_| self.port != 0)?;
        Some(match ip {
            IpAddr::V6(ip) => SocketAddrV6::new(ip, self.port, 0, self.interface).into(),
            ip => (ip, self.port).into(),
        })
    }

    /// The address; `None` where it is the listening socket's own.
    pub fn ip(&self) -> Option<IpAddr> {
        let [a, b, c, d, ..] = self.address;
        match self.family {
            4 => Some(Ipv4Addr::new(a, b, c, d).into()),
            6 => Some(Ipv6Addr::from(self.address).into()),
            _ => None,
        }
    }
}

impl Hash for Path {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.bytes());
    }
}
