//! Sockets to an upstream, bound to the client's address.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use socket2::{Domain, Socket, Type};

use super::dscp::set_dscp;
use super::options::{options, reset_on_close, set_int, set_transparent};
use super::repair::ask_for_segments;

/// From where the upstream sees a connection or a flow come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The proxy's own address, which the kernel picks.
    Own,
    /// The client's address and port; port 0 requests an ephemeral one.
    Client(SocketAddr),
}

impl Source {
    /// The address whose family decides which upstream is meant: the client's, or without one the
    /// peer's.
    pub fn stands_for(self, peer: SocketAddr) -> IpAddr {
        match self {
            Source::Client(client) => client.ip(),
            Source::Own => peer.ip(),
        }
    }
}

/// A connection or flow towards the upstream, and whether the client's port had to be given up.
pub struct Opened {
    pub socket: OwnedFd,
    pub port_fallback: bool,
}

/// The error of an upstream socket that does not have its client's address, or port where that was
/// requested: nothing may be sent on it.
#[derive(Debug)]
struct OtherSource;

impl std::error::Error for OtherSource {}

impl fmt::Display for OtherSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the kernel would use another address than the client's")
    }
}

/// The value that represents this instead of an errno.
pub const OTHER_SOURCE: i32 = -1;

/// An error's errno, or `OTHER_SOURCE`.
pub fn errno(error: &io::Error) -> i32 {
    if is_other_source(error) {
        return OTHER_SOURCE;
    }
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Whether a call failed for want of descriptors, of the process or of the system.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether a socket was not opened because it would not have had its client's address.
pub fn is_other_source(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<OtherSource>())
}

/// How a TCP connection to the upstream is made.
#[derive(Clone, Copy, Default)]
pub struct TcpOptions {
    pub mark: u32,
    /// With that congestion control instead of the host's own.
    pub reno: bool,
    /// For all its packets: see `peer_dscp`.
    pub dscp: u8,
    /// No search for a free port, if none was found a moment ago: EADDRNOTAVAIL at once.
    pub no_search: bool,
    /// The other end is asked for segments no larger than that.
    pub largest_segment: Option<u32>,
}

/// Starts a TCP connection to the upstream; it is established once the socket is writable. The socket
/// has its client's address, or is none (`is_other_source`).
pub fn connect_tcp(
    source: Source,
    upstream: SocketAddr,
    options: TcpOptions,
) -> io::Result<Opened> {
    with_port_fallback(source, options.no_search, |source| {
        let socket = upstream_socket(Type::STREAM, upstream, options.mark)?;
        if options.reno {
            // Every user may set it (tcp(7)); a kernel that lacks it keeps the host's own.
            let _ = socket.set_tcp_congestion(b"reno");
        }
        set_dscp(socket.as_raw_fd(), upstream, options.dscp);
        socket.set_tcp_nodelay(true)?;
        // Before the first byte: an urgent one that came earlier would be left out of the stream.
        socket.set_out_of_band_inline(true)?;
        if let Source::Client(client) = source {
            // The port may be in TIME_WAIT, or in use towards another upstream: connect(2) then
            // decides by the whole 4-tuple, not bind(2) by the port alone.
            socket.set_reuse_address(true)?;
            bind_transparent(&socket, client)?;
        }
        if let Some(largest) = options.largest_segment {
            ask_for_segments(socket.as_raw_fd(), largest);
        }
        match socket.connect(&upstream.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        if let Source::Client(client) = source {
            if !has_address(socket.as_raw_fd(), client)? {
                // The connection may already be established: its server must not take it for one that ended.
                reset_on_close(socket.as_raw_fd());
                return Err(io::Error::other(OtherSource));
            }
        }
        Ok(socket.into())
    })
}

/// The address that a socket is bound to (getsockname(2)).
///
/// # Errors
/// Those of the operating system.
pub fn local_address(fd: RawFd) -> io::Result<SocketAddr> {
    let own = options(fd).local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok(match own.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, own.port()),
        IpAddr::V6(_) => own,
    })
}

/// Whether a socket has the address of a client and, unless it is 0, the port (getsockname(2)).
fn has_address(fd: RawFd, client: SocketAddr) -> io::Result<bool> {
    let own = local_address(fd)?;
    Ok(own.ip() == client.ip() && (client.port() == 0 || own.port() == client.port()))
}

/// Whether a UDP socket that is bound to an address would send from another: bind(2) takes a subnet's
/// broadcast address, the kernel then picks the source, and getsockname(2) continues showing what was
/// bound. connect(2) to it shows this: a broadcast address is refused (EACCES) until SO_BROADCAST is set. A
/// route of type `prohibit` is refused in the same way, but then as well.
fn is_broadcast(socket: &Socket, client: SocketAddr) -> bool {
    /// Nothing is sent to it (discard).
    const ANY_PORT: u16 = 9;
    if client.is_ipv6() {
        return false;
    }
    let to = SocketAddr::new(client.ip(), ANY_PORT).into();
    let is_refused =
        socket.connect(&to).is_err_and(|error| error.raw_os_error() == Some(libc::EACCES));
    is_refused && socket.set_broadcast(true).is_ok() && socket.connect(&to).is_ok()
}

/// Opens a UDP socket connected to the upstream. It has its client's address, or is none
/// (`is_other_source`).
///
/// `shares_port`: other sockets that share theirs may have the client's port as well. The caller sees to it
/// that each has another upstream.
pub fn connect_udp(
    source: Source,
    upstream: SocketAddr,
    mark: u32,
    shares_port: bool,
) -> io::Result<Opened> {
    with_port_fallback(source, false, |source| {
        let socket = upstream_socket(Type::DGRAM, upstream, mark)?;
        if let Source::Client(client) = source {
            // A port of the kernel's choice is to be free.
            if shares_port && client.port() != 0 {
                socket.set_reuse_address(true)?;
            }
            bind_transparent(&socket, client)?;
            if is_broadcast(&socket, client) {
                return Err(io::Error::other(OtherSource));
            }
        }
        socket.connect(&upstream.into())?;
        if let Source::Client(client) = source {
            if !has_address(socket.as_raw_fd(), client)? {
                return Err(io::Error::other(OtherSource));
            }
        }
        Ok(socket.into())
    })
}

/// Whether a socket of another program is as described: a UDP socket connected to this upstream.
///
/// # Errors
/// `InvalidData` where it is something else.
pub fn check_upstream(socket: &OwnedFd, upstream: SocketAddr) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    let peer = socket.peer_addr()?.as_socket();
    let same =
        peer.is_some_and(|peer| (peer.ip(), peer.port()) == (upstream.ip(), upstream.port()));
    if socket.r#type()? == socket2::Type::DGRAM && same {
        return Ok(());
    }
    let what = format!("a flow's socket to {upstream} is something else");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn with_port_fallback(
    source: Source,
    no_search: bool,
    open: impl Fn(Source) -> io::Result<OwnedFd>,
) -> io::Result<Opened> {
    let none_free = || Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
    if no_search && !matches!(source, Source::Client(client) if client.port() != 0) {
        return none_free();
    }
    match (open(source), source) {
        (Err(error), Source::Client(client)) if client.port() != 0 && is_port_taken(&error) => {
            if no_search {
                return none_free();
            }
            let ephemeral = Source::Client(SocketAddr::new(client.ip(), 0));
            Ok(Opened { socket: open(ephemeral)?, port_fallback: true })
        }
        (Ok(socket), Source::Client(client)) => {
            Ok(Opened { socket, port_fallback: client.port() == 0 })
        }
        (opened, _) => Ok(Opened { socket: opened?, port_fallback: false }),
    }
}

/// bind(2) says EADDRINUSE, connect(2) says EADDRNOTAVAIL when the 4-tuple exists (TIME_WAIT). A
/// privileged port needs CAP_NET_BIND_SERVICE, or EACCES.
fn is_port_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL | libc::EACCES))
}

fn upstream_socket(kind: Type, upstream: SocketAddr, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(upstream), kind.nonblocking().cloexec(), None)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

/// Binds to an address that is not this host's (ip(7), IP_TRANSPARENT).
fn bind_transparent(socket: &Socket, client: SocketAddr) -> io::Result<()> {
    set_transparent(socket.as_raw_fd(), client.is_ipv4())?;
    if client.port() == 0 {
        // Lets connect(2) choose a port that is free for this 4-tuple, not for all of them.
        set_int(socket.as_raw_fd(), libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    }
    socket.bind(&client.into())
}

#[cfg(test)]
mod tests {
    use super::super::listen::{tcp_listener, Listen};
    use super::*;

    #[test]
    fn a_connection_uses_reno_where_it_is_asked_for() {
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), Listen::default()).unwrap();
        let upstream = listener.local_addr().unwrap().as_socket().unwrap();
        let control_of = |reno| {
            let options = TcpOptions { reno, ..TcpOptions::default() };
            let connection = connect_tcp(Source::Own, upstream, options).unwrap().socket;
            String::from_utf8(Socket::from(connection).tcp_congestion().unwrap()).unwrap()
        };
        let hosts = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
        assert_eq!(control_of(true).trim_end_matches('\0'), "reno");
        assert_eq!(control_of(false).trim_end_matches('\0'), hosts.trim_end());
    }

    #[test]
    fn a_search_that_is_not_wanted_costs_nothing_and_an_exact_port_needs_none() {
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), Listen::default()).unwrap();
        let upstream = listener.local_addr().unwrap().as_socket().unwrap();
        let options = TcpOptions { no_search: true, ..TcpOptions::default() };
        let refused = connect_tcp(Source::Own, upstream, options).err().unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    }
}
