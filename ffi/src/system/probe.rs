//! Tries a connection to the upstream once, plain or from a client's address. For the doctor and for readiness; never
//! on the data path.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{protocol, Probe};
use crate::net::socket::{self, Listen, Source, TcpOptions};
use crate::proxy::port::Transport;

/// Tries it and waits for the outcome, no longer than the probe says.
///
/// TCP: 0 once it is connected. UDP: sends `payload`, 0 once anything comes back. Otherwise the
/// operating system's error: ETIMEDOUT when nothing came in time, ECONNREFUSED when nobody listens.
pub fn run(probe: &Probe, payload: &[u8]) -> Result<i32> {
    let upstream =
        probe.upstream.socket_addr().ok_or_else(|| Error::invalid("a probe needs an upstream"))?;
    let source = match probe.client.socket_addr() {
        None => Source::Own,
        Some(client) if client.is_ipv4() == upstream.is_ipv4() => Source::Client(client),
        Some(_) => return Err(Error::invalid("client and upstream are of two families")),
    };
    let deadline = Instant::now() + Duration::from_millis(u64::from(probe.timeout_ms));
    let outcome = match probe.protocol {
        protocol::TCP => try_tcp(source, upstream, probe.mark, deadline),
        protocol::UDP => try_udp(source, upstream, probe.mark, deadline, payload),
        _ => return Err(Error::invalid("a probe takes one protocol")),
    };
    Ok(outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0))
}

/// Tries whether a connection or a datagram of this host gets through to an address on which it listens, and
/// waits for the outcome: 0, or the operating system's error, ETIMEDOUT when it was lost. If nobody listens
/// yet, a listener is opened for that long; a wildcard address is tried by its loopback address.
///
/// A connection then comes to the program that listens there; a datagram would prove nothing, and is only
/// sent if nobody does.
pub fn reach_own(listen: SocketAddr, transport: Transport, timeout: Duration) -> Result<i32> {
    let deadline = Instant::now() + timeout;
    let outcome = match transport {
        Transport::Tcp => own_tcp(listen, deadline),
        Transport::Udp => own_udp(listen, deadline),
    };
    Ok(outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0))
}

/// The listener that is opened to try it.
const OWN: Listen = Listen { only_v6: true, transparent: false };

fn own_tcp(listen: SocketAddr, deadline: Instant) -> io::Result<()> {
    // Beside a listener in use this one would take a part of its connections.
    let is_free = socket::check_free(listen, true, OWN).is_ok();
    let _listener = is_free.then(|| socket::tcp_listener(listen, OWN)).transpose()?;
    try_tcp(Source::Own, reachable(listen), 0, deadline)
}

fn own_udp(listen: SocketAddr, deadline: Instant) -> io::Result<()> {
    socket::check_free(listen, false, OWN)?;
    let listener = socket::udp_listener(listen, OWN)?;
    let sender = socket::connect_udp(Source::Own, reachable(listen), 0, false)?;
    socket::send(sender.socket.as_raw_fd(), b"mmproxy")?;
    wait(&listener, libc::POLLIN, deadline)
}

/// An address that leads to a listener.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listen.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listen.port()).into(),
        _ => listen,
    }
}

fn try_tcp(source: Source, upstream: SocketAddr, mark: u32, deadline: Instant) -> io::Result<()> {
    let options = TcpOptions { mark, ..TcpOptions::default() };
    let opened = socket::connect_tcp(source, upstream, options)?;
    wait(&opened.socket, libc::POLLOUT, deadline)?;
    match socket::take_error(opened.socket.as_raw_fd()) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn try_udp(
    source: Source,
    upstream: SocketAddr,
    mark: u32,
    deadline: Instant,
    payload: &[u8],
) -> io::Result<()> {
    let opened = socket::connect_udp(source, upstream, mark, false)?;
    socket::send(opened.socket.as_raw_fd(), payload)?;
    wait(&opened.socket, libc::POLLIN, deadline)?;
    // An ICMP refusal arrives as the error of this call (udp(7)).
    socket::receive(opened.socket.as_raw_fd(), &mut [0; 1])?;
    Ok(())
}

/// Waits until the socket is ready, or has an error (poll(2)).
fn wait(socket: &impl AsRawFd, events: libc::c_short, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is slept and not spun.
        let timeout = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
        // SAFETY: `poll` is one entry and outlives the call.
        match socket::check(unsafe { libc::poll(&mut poll, 1, timeout) }) {
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::abi::layout::Endpoint;

    fn probe(upstream: SocketAddr, protocol: u32) -> Probe {
        Probe {
            client: Endpoint::default(),
            upstream: upstream.into(),
            protocol,
            mark: 0,
            timeout_ms: 100,
        }
    }

    #[test]
    fn tcp_is_connected_or_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(run(&probe(addr, protocol::TCP), b"").unwrap(), 0);
        drop(listener);
        assert_eq!(run(&probe(addr, protocol::TCP), b"").unwrap(), libc::ECONNREFUSED);
    }

    #[test]
    fn udp_is_answered_silent_or_refused() {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = upstream.local_addr().unwrap();
        let asked = probe(addr, protocol::UDP);
        assert_eq!(run(&asked, b"anyone?").unwrap(), libc::ETIMEDOUT);
        let answering = std::thread::spawn(move || {
            let mut room = [0; 16];
            // The first is the one that found silence.
            for _ in 0..2 {
                let (length, from) = upstream.recv_from(&mut room).unwrap();
                assert_eq!(&room[..length], b"anyone?");
                let _ = upstream.send_to(b"yes", from);
            }
        });
        assert_eq!(run(&Probe { timeout_ms: 5_000, ..asked }, b"anyone?").unwrap(), 0);
        answering.join().unwrap();
        assert_eq!(run(&asked, b"anyone?").unwrap(), libc::ECONNREFUSED);
    }

    #[test]
    fn what_listens_or_could_is_reached() {
        let wait = Duration::from_secs(5);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(reach_own(addr, Transport::Tcp, wait).unwrap(), 0);
        listener.accept().unwrap();
        drop(listener);
        for addr in [addr, SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port()))] {
            assert_eq!(reach_own(addr, Transport::Tcp, wait).unwrap(), 0, "{addr}");
            assert_eq!(reach_own(addr, Transport::Udp, wait).unwrap(), 0, "{addr}");
        }
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        assert_eq!(reach_own(addr, Transport::Udp, wait).unwrap(), libc::EADDRINUSE);
    }

    #[test]
    fn a_probe_that_makes_no_sense_is_refused() {
        let addr: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let sane = probe(addr, protocol::TCP);
        let other: SocketAddr = "[2001:db8::1]:0".parse().unwrap();
        for wrong in [
            Probe { protocol: protocol::TCP | protocol::UDP, ..sane },
            Probe { upstream: Endpoint::default(), ..sane },
            Probe { client: other.into(), ..sane },
        ] {
            assert!(run(&wrong, b"").is_err(), "{wrong:?}");
        }
    }
}
