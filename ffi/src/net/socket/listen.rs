//! Listening sockets, and what they accept.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;
use socket2::{Domain, Socket, Type};

use super::address::RawAddr;
use super::call::check;
use super::dscp::{receive_dscp, TCP_SAVE_SYN};
use super::options::{set_int, set_receive_buffer};

/// A listening TCP socket of a reuseport group (socket(7), SO_REUSEPORT).
///
/// Its options are inherited by what it accepts (tcp(7)), which saves system calls a connection: a
/// relay must not wait to fill segments, and urgent bytes keep their place in the stream.
pub fn tcp_listener(addr: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = bound(addr, Type::STREAM, Sharing::Reuseport, only_v6)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    // A kernel that cannot keep them (before Linux 4.2) only costs the DSCP.
    let _ = set_int(socket.as_raw_fd(), libc::SOL_TCP, TCP_SAVE_SYN, 1);
    socket.listen(4096)?;
    Ok(socket)
}

/// A UDP socket of a reuseport group; on a wildcard address it tells which address was spoken to.
pub fn udp_listener(addr: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = bound(addr, Type::DGRAM, Sharing::Reuseport, only_v6)?;
    if addr.ip().is_unspecified() {
        let (level, name) = match addr {
            SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_PKTINFO),
            // Covers IPv4 peers too: their address comes in its mapped form.
            SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO),
        };
        set_int(socket.as_raw_fd(), level, name, 1)?;
    }
    receive_dscp(socket.as_raw_fd(), addr);
    // Here and not by the worker: once the sandbox holds, the limit of the system applies.
    set_receive_buffer(socket.as_raw_fd(), LISTENER_BUFFER);
    Ok(socket)
}

/// Enough for a burst; more only moves the queue out of the caches.
const LISTENER_BUFFER: c_int = 512 << 10;

/// Whether anything else listens on the address. A reuseport group would let a second program of the
/// same user in without a word, and each would see half of the connections.
pub fn check_free(addr: SocketAddr, stream: bool, only_v6: bool) -> io::Result<()> {
    let kind = if stream { Type::STREAM } else { Type::DGRAM };
    let socket = bound(addr, kind, Sharing::Alone, only_v6)?;
    if stream {
        // bind(2) alone accepts an address whose listener set SO_REUSEADDR; listen(2) does not.
        socket.listen(1)?;
    }
    Ok(())
}

enum Sharing {
    Alone,
    Reuseport,
}

/// `only_v6`: an IPv6 wildcard leaves IPv4 to others.
fn bound(addr: SocketAddr, kind: Type, sharing: Sharing, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind.nonblocking().cloexec(), None)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if let Sharing::Reuseport = sharing {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        // Unless IPv4 has a socket of its own, `[::]` serves both, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// The next connection of a listening socket, with its peer (accept4(2)).
pub fn accept(listener: RawFd) -> io::Result<(OwnedFd, RawAddr)> {
    let mut peer = RawAddr::empty();
    let mut length = RawAddr::ROOM;
    // SAFETY: `peer` has `length` bytes of room and outlives the call.
    let fd = check(unsafe {
        libc::accept4(
            listener,
            peer.as_mut_ptr().cast(),
            &mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    peer.set_length(length);
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, peer))
}

/// Whether a connection waits at a listening socket (poll(2)). accept(2) does not say: without a free
/// descriptor it fails before it looks.
pub fn is_waiting(listener: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for the length of the call.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_is_noticed_in_spite_of_reuseport() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let tcp = tcp_listener(any, false).unwrap();
        let taken = tcp.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(
            check_free(taken, true, false).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        assert!(tcp_listener(taken, false).is_ok(), "the group itself may grow");
        let udp = udp_listener(any, false).unwrap();
        let taken = udp.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(
            check_free(taken, false, false).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        assert!(udp_listener(taken, false).is_ok());
    }

    #[test]
    fn a_free_port_is_free_twice() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let free = tcp_listener(any, false).unwrap().local_addr().unwrap().as_socket().unwrap();
        check_free(free, true, false).unwrap();
        check_free(free, true, false).unwrap();
    }
}
