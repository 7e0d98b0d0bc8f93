//! The DSCP of packets, read and set (RFC 2474).

use std::net::SocketAddr;
use std::os::fd::RawFd;

use libc::{c_int, socklen_t};

use super::options::options;

/// The bits of a type of service or traffic class that are the DSCP (RFC 2474); the others are ECN.
pub const DSCP: u8 = 0xfc;

/// From now on a UDP socket of the address's family reports the DSCP of what it receives (ip(7),
/// IP_RECVTOS; ipv6(7), IPV6_RECVTCLASS). If it cannot, no DSCP is copied.
pub fn receive_dscp(fd: RawFd, addr: SocketAddr) {
    let options = options(fd);
    if addr.is_ipv6() {
        let _ = options.set_recv_tclass_v6(true);
    }
    // On a dual-stack socket for its IPv4 peers.
    let _ = options.set_recv_tos_v4(true);
}

/// The SYN's headers, from the network layer on, are kept for who asks first (tcp(7)).
pub(super) const TCP_SAVE_SYN: c_int = 27;
const TCP_SAVED_SYN: c_int = 28;

/// The DSCP of the SYN that opened an accepted connection, as the octet in which it is; 0 when asked
/// again, or where the kernel has not kept the SYN (under SYN cookies).
pub fn peer_dscp(fd: RawFd) -> u8 {
    let mut headers = [0u8; 256];
    let mut length = headers.len() as socklen_t;
    // SAFETY: `headers` has `length` bytes and outlives the call.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_TCP, TCP_SAVED_SYN, headers.as_mut_ptr().cast(), &mut length)
    };
    if result != 0 {
        return 0;
    }
    dscp_of(&headers[..headers.len().min(length as usize)])
}

/// The DSCP of a packet that begins with its network header (RFC 791, RFC 8200); 0 without one.
fn dscp_of(packet: &[u8]) -> u8 {
    let &[first, second, ..] = packet else { return 0 };
    let traffic_class = match first >> 4 {
        4 => second,
        6 => first << 4 | second >> 4,
        _ => 0,
    };
    traffic_class & DSCP
}

/// Gives all packets that a TCP socket sends from now on a DSCP; `other_end` says which family they
/// have. Congestion's bits stay the kernel's (ip(7), IP_TOS).
pub fn set_dscp(fd: RawFd, other_end: SocketAddr, dscp: u8) {
    if dscp == 0 {
        return;
    }
    let dscp = u32::from(dscp & DSCP);
    // Failing to set a priority is no reason to refuse the client.
    let _ = match other_end {
        SocketAddr::V4(_) => options(fd).set_tos_v4(dscp),
        SocketAddr::V6(_) => options(fd).set_tclass_v6(dscp),
    };
}

#[cfg(test)]
mod tests {
    use super::super::listen::{accept, tcp_listener, Listen};
    use super::super::upstream::{connect_tcp, Source, TcpOptions};
    use super::*;
    use socket2::Socket;
    use std::io;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_syns_dscp_is_read_and_set_without_the_bits_below() {
        for any in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = tcp_listener(any.parse().unwrap(), Listen::default()).unwrap();
            let mut upstream = listener.local_addr().unwrap().as_socket().unwrap();
            if upstream.ip().is_unspecified() {
                // IPv4 by way of an IPv6 socket.
                upstream.set_ip([127, 0, 0, 1].into());
            }
            for dscp in [0, 0xb8, 0x04] {
                let options = TcpOptions { dscp: dscp | 3, ..TcpOptions::default() };
                let _peer = connect_tcp(Source::Own, upstream, options).unwrap();
                let accepted = loop {
                    match accept(listener.as_raw_fd()) {
                        Ok((accepted, _)) => break accepted,
                        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    }
                };
                assert_eq!(peer_dscp(accepted.as_raw_fd()), dscp, "{any}");
                assert_eq!(peer_dscp(accepted.as_raw_fd()), 0, "the kernel has let it go");
                set_dscp(accepted.as_raw_fd(), upstream, dscp | 1);
                let accepted = Socket::from(accepted);
                let set = match upstream {
                    SocketAddr::V4(_) => accepted.tos_v4(),
                    SocketAddr::V6(_) => accepted.tclass_v6(),
                };
                assert_eq!(set.unwrap(), u32::from(dscp), "{any}");
            }
        }
    }

    #[test]
    fn a_dscp_is_six_bits_of_either_header() {
        assert_eq!(dscp_of(&[0x45, 0xbb, 0, 60]), 0xb8);
        assert_eq!(dscp_of(&[0x6b, 0xb0, 0, 0]), 0xb8);
        assert_eq!(dscp_of(&[0x60, 0x30, 0, 0]), 0);
        for none in [&[][..], &[0x45], &[0x15, 0xb8]] {
            assert_eq!(dscp_of(none), 0);
        }
    }
}
