//! Every system call on sockets, and the kernel's reasons.
//!
//! Callers pass values and get `io::Result`; nothing here keeps state or logs.

use std::cmp::Ordering;
use std::fmt;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, socklen_t};
use socket2::{Domain, Protocol, Socket, Type};

/// An address in the kernel's form, 28 bytes at most: compared and hashed as it is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawAddr {
    storage: libc::sockaddr_in6,
    length: socklen_t,
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
                // SAFETY: the family says that a sockaddr_in lies here; it is the smaller one.
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

/// The bits of a type of service or traffic class that are the DSCP (RFC 2474); the others are ECN.
pub const DSCP: u8 = 0xfc;

/// From now on a UDP socket of the address's family tells the DSCP of what it receives (ip(7),
/// IP_RECVTOS; ipv6(7), IPV6_RECVTCLASS). A socket that cannot tell it carries none.
pub fn receive_dscp(fd: RawFd, addr: SocketAddr) {
    if addr.is_ipv6() {
        let _ = set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVTCLASS, 1);
    }
    // On a dual-stack socket for its IPv4 peers.
    let _ = set_int(fd, libc::SOL_IP, libc::IP_RECVTOS, 1);
}

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

/// Whether this process may use foreign source addresses and, if asked for, marks.
pub fn check_capabilities(mark: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    set_int(socket.as_raw_fd(), libc::SOL_IP, libc::IP_TRANSPARENT, 1)?;
    set_mark(socket.as_raw_fd(), mark)
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

/// From where the upstream sees a connection or a flow come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The proxy's own address, which the kernel picks.
    Own,
    /// The client's address and port; port 0 asks for an ephemeral one.
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
/// asked for: nothing may be sent on it.
#[derive(Debug)]
struct OtherSource;

impl std::error::Error for OtherSource {}

impl fmt::Display for OtherSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the kernel would use another address than the client's")
    }
}

/// What stands for that in place of an errno.
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
    /// With that congestion control in place of the host's own.
    pub reno: bool,
    /// For all its packets: see `peer_dscp`.
    pub dscp: u8,
    /// No search for a free port, where none was found a moment ago: EADDRNOTAVAIL at once.
    pub no_search: bool,
}

/// Starts a TCP connection to the upstream; it is established once the socket is writable. The socket
/// has its client's address, or is none (`is_other_source`).
pub fn connect_tcp(
    source: Source,
    upstream: SocketAddr,
    options: TcpOptions,
) -> io::Result<Opened> {
    with_port_fallback(source, options.no_search, |source| {
        let socket = upstream_socket(libc::SOCK_STREAM, upstream, options.mark)?;
        if options.reno {
            set_reno(socket.as_raw_fd());
        }
        set_dscp(socket.as_raw_fd(), upstream, options.dscp);
        set_int(socket.as_raw_fd(), libc::SOL_TCP, libc::TCP_NODELAY, 1)?;
        // Before the first byte: an urgent one that came earlier would be left out of the stream.
        set_int(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
        if let Source::Client(client) = source {
            // The port may be in TIME_WAIT, or in use towards another upstream: connect(2) then
            // decides by the whole 4-tuple, not bind(2) by the port alone.
            set_int(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
            bind_transparent(socket.as_raw_fd(), client)?;
        }
        match connect(socket.as_raw_fd(), upstream) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        if let Source::Client(client) = source {
            if !has_address(socket.as_raw_fd(), client)? {
                // The connection may stand already: its server must not take it for one that ended.
                reset_on_close(socket.as_raw_fd());
                return Err(io::Error::other(OtherSource));
            }
        }
        Ok(socket)
    })
}

/// Whether a socket has the address of a client and, unless it is 0, the port (getsockname(2)).
fn has_address(fd: RawFd, client: SocketAddr) -> io::Result<bool> {
    let mut own = RawAddr::empty();
    let mut length = RawAddr::ROOM;
    // SAFETY: `own` has `length` bytes of room and outlives the call.
    check(unsafe { libc::getsockname(fd, own.as_mut_ptr().cast(), &mut length) })?;
    own.set_length(length);
    Ok(own.socket_addr().is_some_and(|own| {
        own.ip() == client.ip() && (client.port() == 0 || own.port() == client.port())
    }))
}

/// Whether a UDP socket that is bound to an address would send from another: bind(2) takes a subnet's
/// broadcast address, the kernel then picks the source, and getsockname(2) goes on showing what was
/// bound. connect(2) to it tells: a broadcast address is refused (EACCES) until SO_BROADCAST is set. A
/// route of type `prohibit` is refused in the same way, but then as well.
fn is_broadcast(fd: RawFd, client: SocketAddr) -> bool {
    /// Nothing is sent to it (discard).
    const ANY_PORT: u16 = 9;
    if client.is_ipv6() {
        return false;
    }
    let to = SocketAddr::new(client.ip(), ANY_PORT);
    let is_refused = connect(fd, to).is_err_and(|error| error.raw_os_error() == Some(libc::EACCES));
    is_refused
        && set_int(fd, libc::SOL_SOCKET, libc::SO_BROADCAST, 1).is_ok()
        && connect(fd, to).is_ok()
}

/// Whether an address is this host's, a subnet's broadcast address among them: only those can be bound
/// to without IP_TRANSPARENT. Where net.ipv4.ip_nonlocal_bind allows all of them, none is known to be.
pub fn is_own(ip: IpAddr) -> bool {
    /// Of documentation's own (RFC 5737, RFC 3849): no host has them.
    const NOBODY: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77)),
    ];
    let can_bind = |ip: IpAddr| {
        let addr = SocketAddr::new(ip, 0);
        Socket::new(Domain::for_address(addr), Type::DGRAM.cloexec(), None)
            .and_then(|socket| socket.bind(&addr.into()))
            .is_ok()
    };
    can_bind(ip) && !can_bind(NOBODY[usize::from(ip.is_ipv6())])
}

/// Whether this host's own congestion control spaces segments out, which only slows a connection down
/// that never leaves the host (docs/decisions/0014-reno-over-loopback.md).
pub fn host_paces() -> bool {
    // A new socket has the host's own, also where a sandbox hides /proc/sys.
    Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)
        .and_then(|socket| socket.tcp_congestion())
        .is_ok_and(|name| name.starts_with(b"bbr"))
}

/// Sets reno, which every user may (tcp(7)); a kernel that lacks it keeps the host's own.
fn set_reno(socket: RawFd) {
    const NAME: &std::ffi::CStr = c"reno";
    // SAFETY: the name lives as long as the program, and so many bytes of it are read.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_TCP,
            libc::TCP_CONGESTION,
            NAME.as_ptr().cast(),
            NAME.count_bytes() as socklen_t,
        )
    };
}

/// Opens a UDP socket that speaks to the upstream alone. It has its client's address, or is none
/// (`is_other_source`).
pub fn connect_udp(source: Source, upstream: SocketAddr, mark: u32) -> io::Result<Opened> {
    with_port_fallback(source, false, |source| {
        let socket = upstream_socket(libc::SOCK_DGRAM, upstream, mark)?;
        if let Source::Client(client) = source {
            bind_transparent(socket.as_raw_fd(), client)?;
            if is_broadcast(socket.as_raw_fd(), client) {
                return Err(io::Error::other(OtherSource));
            }
        }
        connect(socket.as_raw_fd(), upstream)?;
        if let Source::Client(client) = source {
            if !has_address(socket.as_raw_fd(), client)? {
                return Err(io::Error::other(OtherSource));
            }
        }
        Ok(socket)
    })
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

fn upstream_socket(kind: c_int, upstream: SocketAddr, mark: u32) -> io::Result<OwnedFd> {
    let family = if upstream.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers are passed.
    let fd =
        check(unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_mark(fd, mark)?;
    Ok(socket)
}

/// Whether this host has a way to an address, and an address of its own for it: the kernel looks for
/// both when a UDP socket is connected, and sends nothing. What else may fail leaves it at yes.
pub fn has_way_to(addr: SocketAddr) -> bool {
    let connected = Socket::new(Domain::for_address(addr), Type::DGRAM.cloexec(), None)
        .and_then(|socket| socket.connect(&addr.into()));
    let errno = connected.err().and_then(|error| error.raw_os_error());
    !matches!(errno, Some(libc::EAFNOSUPPORT | libc::ENETUNREACH | libc::EADDRNOTAVAIL))
}

/// The SYN's headers, from the network layer on, are kept for who asks first (tcp(7)).
const TCP_SAVE_SYN: c_int = 27;
const TCP_SAVED_SYN: c_int = 28;

/// The DSCP of the SYN that opened an accepted connection, as the octet in which it lies; 0 when asked
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
    let (level, name) = match other_end {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TOS),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_TCLASS),
    };
    // A priority that cannot be had is no reason to refuse the client.
    let _ = set_int(fd, level, name, c_int::from(dscp & DSCP));
}

fn set_mark(fd: RawFd, mark: u32) -> io::Result<()> {
    if mark == 0 {
        return Ok(());
    }
    set_int(fd, libc::SOL_SOCKET, libc::SO_MARK, mark as c_int)
}

/// Binds to an address that is not this host's (ip(7), IP_TRANSPARENT).
fn bind_transparent(fd: RawFd, client: SocketAddr) -> io::Result<()> {
    const IPV6_TRANSPARENT: c_int = 75;
    let (level, name) = match client {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::SOL_IPV6, IPV6_TRANSPARENT),
    };
    set_int(fd, level, name, 1)?;
    if client.port() == 0 {
        // Lets connect(2) choose a port that is free for this 4-tuple, not for all of them.
        set_int(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    }
    let raw = RawAddr::from(client);
    // SAFETY: the address is valid for the length of the call.
    check(unsafe { libc::bind(fd, (&raw const raw.storage).cast(), raw.length) })?;
    Ok(())
}

fn connect(fd: RawFd, to: SocketAddr) -> io::Result<()> {
    let raw = RawAddr::from(to);
    // SAFETY: the address is valid for the length of the call.
    check(unsafe { libc::connect(fd, (&raw const raw.storage).cast(), raw.length) })?;
    Ok(())
}

/// Sets a receive buffer, past net.core.rmem_max where the process may (socket(7)).
pub fn set_receive_buffer(fd: RawFd, bytes: c_int) {
    if set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        // Without CAP_NET_ADMIN the limit of the system applies, which is no reason to fail.
        let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
    }
}

/// Makes close(2) send a reset, so that a reset is relayed as one (socket(7), SO_LINGER).
pub fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // A socket that cannot be told is closed in the ordinary way.
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// The error that a socket holds, or 0 (socket(7), SO_ERROR).
pub fn take_error(fd: RawFd) -> i32 {
    let mut error: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: `error` has `length` bytes and outlives the call.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &mut length)
    };
    if result == 0 {
        error
    } else {
        libc::EBADF
    }
}

/// How long nothing has come from the other end of a connection, and how often it was asked in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Milliseconds since data or an acknowledgement came.
    pub ms: u32,
    /// Retransmissions, or probes, that nothing has answered.
    pub tries: u8,
}

/// How things stand with a connection; all is well where the kernel does not say (tcp(7), TCP_INFO).
pub fn unanswered(fd: RawFd) -> Unanswered {
    // SAFETY: zeroes are a valid `tcp_info`.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as socklen_t;
    // SAFETY: `info` has `length` bytes and outlives the call; what an older kernel leaves out stays
    // zero.
    unsafe {
        libc::getsockopt(fd, libc::SOL_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut length)
    };
    Unanswered {
        ms: info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv),
        tries: info.tcpi_retransmits.max(info.tcpi_probes),
    }
}

/// Receives bytes; 0 is the end of the stream (recv(2)).
#[inline]
pub fn receive(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    sized(|| unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), 0) })
}

/// Sends bytes, perhaps not all; a closed peer is an error, not a signal (send(2)).
#[inline]
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    send_with(fd, bytes, 0)
}

/// The same, with the last of the bytes marked as urgent (tcp(7)).
pub fn send_urgent(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    send_with(fd, bytes, libc::MSG_OOB)
}

#[inline]
fn send_with(fd: RawFd, bytes: &[u8], flags: c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: the buffer is valid for its length.
    sized(|| unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Whether the next byte is the one that is marked as urgent (sockatmark(3)).
pub fn is_at_mark(fd: RawFd) -> bool {
    // asm-generic/sockios.h; the crate libc does not have it.
    const SIOCATMARK: libc::Ioctl = 0x8905;
    let mut at: c_int = 0;
    // SAFETY: the kernel writes an int to `at`. A socket that cannot say has no mark.
    unsafe { libc::ioctl(fd, SIOCATMARK, &mut at) == 0 && at != 0 }
}

/// Moves up to `length` bytes between a socket and a pipe, within the kernel (splice(2)).
#[inline]
pub fn splice(from: RawFd, to: RawFd, length: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: null offsets are what sockets and pipes need; no other pointers are passed.
    sized(|| unsafe {
        libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags)
    })
}

/// Ends the sending direction of a connection (shutdown(2)).
pub fn finish_sending(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::shutdown(fd, libc::SHUT_WR) })?;
    Ok(())
}

/// Sets an option that is a number (setsockopt(2)).
pub fn set_int(fd: RawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set_option(fd, level, name, &value)
}

/// Reads an option that is a number (getsockopt(2)).
#[cfg(test)]
pub fn get_int(fd: RawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: `value` has `length` bytes and outlives the call.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) })?;
    Ok(value)
}

fn set_option<T>(fd: RawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is valid for its size and outlives the call.
    check(unsafe {
        libc::setsockopt(fd, level, name, (value as *const T).cast(), size_of::<T>() as socklen_t)
    })?;
    Ok(())
}

/// A result below zero as the error in `errno`.
#[inline]
pub fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A call that moves bytes, again when a signal interrupted it.
#[inline]
pub fn sized(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(size) => return Ok(size),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(addr: SocketAddr) -> io::Result<Socket> {
        tcp_listener(addr, false)
    }

    #[test]
    fn addresses_keep_their_value_in_the_kernels_form() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535", "[fe80::1%3]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddr::from(addr).socket_addr(), Some(addr));
        }
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(RawAddr::from(mapped).socket_addr(), Some("192.0.2.1:80".parse().unwrap()));
    }

    #[test]
    fn a_connection_uses_reno_where_it_is_asked_for() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
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
    fn a_syns_dscp_is_read_and_set_without_the_bits_below() {
        for any in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = listen(any.parse().unwrap()).unwrap();
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

    #[test]
    fn a_search_that_is_not_wanted_costs_nothing_and_an_exact_port_needs_none() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let upstream = listener.local_addr().unwrap().as_socket().unwrap();
        let options = TcpOptions { no_search: true, ..TcpOptions::default() };
        let refused = connect_tcp(Source::Own, upstream, options).err().unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    }

    #[test]
    fn a_busy_port_is_noticed_in_spite_of_reuseport() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let tcp = listen(any).unwrap();
        let taken = tcp.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(
            check_free(taken, true, false).unwrap_err().raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        assert!(listen(taken).is_ok(), "the group itself may grow");
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
        let free = listen(any).unwrap().local_addr().unwrap().as_socket().unwrap();
        check_free(free, true, false).unwrap();
        check_free(free, true, false).unwrap();
    }
}
