//! Listening sockets, and what they accept.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;
use socket2::{Domain, Socket, Type};

use super::address::RawAddr;
use super::call::check;
use super::dscp::{receive_dscp, TCP_SAVE_SYN};
use super::options::{is_transparent, set_int, set_receive_buffer, set_transparent};

/// What a listening socket takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Listen {
    /// An IPv6 wildcard leaves IPv4 to others.
    pub only_v6: bool,
    /// What TPROXY hands it, whatever that was addressed to.
    pub transparent: bool,
}

impl Listen {
    /// By which another program knows it.
    pub fn number(self) -> u8 {
        u8::from(self.only_v6) | u8::from(self.transparent) << 1
    }

    /// The one of a number.
    pub fn of_number(number: u8) -> Option<Listen> {
        (number < 4).then_some(Listen { only_v6: number & 1 != 0, transparent: number & 2 != 0 })
    }
}

/// A listening TCP socket of a reuseport group (socket(7), SO_REUSEPORT).
///
/// Its options are inherited by what it accepts (tcp(7)), which saves system calls a connection: a
/// relay must not wait to fill segments, and urgent bytes keep their place in the stream.
pub fn tcp_listener(addr: SocketAddr, how: Listen) -> io::Result<Socket> {
    let socket = bound(addr, Type::STREAM, Sharing::Reuseport, how)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    // A kernel that cannot keep them (before Linux 4.2) only costs the DSCP.
    let _ = set_int(socket.as_raw_fd(), libc::SOL_TCP, TCP_SAVE_SYN, 1);
    socket.listen(4096)?;
    Ok(socket)
}

/// A UDP socket of a reuseport group. On a wildcard address it reports the destination address; a
/// transparent one which address and port.
pub fn udp_listener(addr: SocketAddr, how: Listen) -> io::Result<Socket> {
    let socket = bound(addr, Type::DGRAM, Sharing::Reuseport, how)?;
    if how.transparent {
        tell_original(socket.as_raw_fd(), addr)?;
    } else if addr.ip().is_unspecified() {
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

/// Asks for the address and port that each datagram was addressed to (ip(7), IP_RECVORIGDSTADDR).
fn tell_original(fd: RawFd, addr: SocketAddr) -> io::Result<()> {
    const IPV6_RECVORIGDSTADDR: c_int = 74;
    if addr.is_ipv6() {
        set_int(fd, libc::SOL_IPV6, IPV6_RECVORIGDSTADDR, 1)?;
    }
    // IPv4 datagrams of a dual-stack socket have the message of IPv4.
    set_int(fd, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1)
}

/// Enough for a burst; more only moves the queue out of the caches.
const LISTENER_BUFFER: c_int = 512 << 10;

/// Whether anything else listens on the address. A reuseport group would let a second program of the
/// same user in without a word, and each would see half of the connections.
pub fn check_free(addr: SocketAddr, stream: bool, how: Listen) -> io::Result<()> {
    let kind = if stream { Type::STREAM } else { Type::DGRAM };
    let socket = bound(addr, kind, Sharing::Alone, how)?;
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

fn bound(addr: SocketAddr, kind: Type, sharing: Sharing, how: Listen) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind.nonblocking().cloexec(), None)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if let Sharing::Reuseport = sharing {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        // Unless IPv4 has a socket of its own, `[::]` serves both, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(how.only_v6)?;
    }
    if how.transparent {
        set_transparent(socket.as_raw_fd(), addr.is_ipv4())?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// A UDP socket to send from an address and port that need not be this host's. Nothing is to be received on
/// it: where other sockets of the same user may have the address too, TPROXY continues to hand datagrams to
/// the listening socket, since this one is not connected.
///
/// # Errors
/// EADDRINUSE where something else has the port.
pub fn reply_source(from: SocketAddr, ipv6: bool) -> io::Result<OwnedFd> {
    let from = match from {
        SocketAddr::V4(v4) if ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        from => from,
    };
    let how = Listen { transparent: true, only_v6: false };
    let socket = bound(from, Type::DGRAM, Sharing::Reuseport, how)?;
    // The least that there can be: what comes to it is nobody's.
    set_int(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
    Ok(socket.into())
}

/// Whether a socket of another program is what that said: a listening one, or one that takes datagrams, at an
/// address.
///
/// # Errors
/// `InvalidData` where it is something else.
pub fn check_listening(
    socket: &Socket,
    addr: SocketAddr,
    stream: bool,
    how: Listen,
) -> io::Result<()> {
    let kind = if stream { Type::STREAM } else { Type::DGRAM };
    let same = socket.r#type()? == kind
        && socket.local_addr()?.as_socket() == Some(addr)
        && socket.is_listener()? == stream
        && socket.reuse_port()?
        && is_transparent(socket.as_raw_fd(), addr.is_ipv4())? == how.transparent
        && (addr.is_ipv4() || socket.only_v6()? == how.only_v6);
    if !same {
        let what = format!("a socket for {addr} is something else");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    socket.set_nonblocking(true)
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
        let tcp = tcp_listener(any, Listen::default()).unwrap();
        let taken = tcp.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(
            check_free(taken, true, Listen::default()).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        assert!(tcp_listener(taken, Listen::default()).is_ok(), "the group itself may grow");
        let udp = udp_listener(any, Listen::default()).unwrap();
        let taken = udp.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(
            check_free(taken, false, Listen::default()).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        assert!(udp_listener(taken, Listen::default()).is_ok());
    }

    #[test]
    fn a_free_port_is_free_twice() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let free = tcp_listener(any, Listen::default())
            .unwrap()
            .local_addr()
            .unwrap()
            .as_socket()
            .unwrap();
        check_free(free, true, Listen::default()).unwrap();
        check_free(free, true, Listen::default()).unwrap();
    }
}
