//! The abilities of this host and this process, found out by trying.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Whether this process may use foreign source addresses and, if requested, marks.
pub fn check_capabilities(mark: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.set_ip_transparent_v4(true)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(())
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

/// Whether this host has a way to an address, and an address of its own for it: the kernel looks for
/// both when a UDP socket is connected, and sends nothing. What else may fail leaves it at yes.
pub fn has_way_to(addr: SocketAddr) -> bool {
    let connected = Socket::new(Domain::for_address(addr), Type::DGRAM.cloexec(), None)
        .and_then(|socket| socket.connect(&addr.into()));
    let errno = connected.err().and_then(|error| error.raw_os_error());
    !matches!(errno, Some(libc::EAFNOSUPPORT | libc::ENETUNREACH | libc::EADDRNOTAVAIL))
}
