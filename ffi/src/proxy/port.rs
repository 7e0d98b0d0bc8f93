//! A port of a listener: its sockets, one for each worker and transport, and its upstreams.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use socket2::Socket;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{port_flag, protocol, PortRecord};
use crate::net::socket::{self, Listen, Source};
use crate::system::sync::lock;
use crate::udp::Directory;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Where each family's clients go, if anywhere; or where headers without a client go, where clients go to
/// their header's destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstreams {
    v4: Option<SocketAddr>,
    v6: Option<SocketAddr>,
    by_destination: bool,
    /// A port of 0 stands for the one that the traffic was addressed to.
    transparent: bool,
}

/// A checked `PortRecord`.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub listen: SocketAddr,
    pub upstreams: Upstreams,
    pub tcp: bool,
    pub udp: bool,
    pub how: Listen,
}

/// The listening sockets of an address and transport, by worker. A worker closes its own; until then it
/// outlives the thread that serves it, so that a restart loses nothing in its queue.
pub struct Sockets {
    /// No others of the proxy have it, ever.
    pub id: u32,
    pub how: Listen,
    by_worker: Box<[Mutex<Option<Socket>>]>,
    /// UDP flows by owner, over all workers.
    pub flows: Arc<Directory>,
}

/// A port of a listener. It never changes: a port whose upstream or listener changes is another one with
/// the same sockets.
pub struct Port {
    /// Where it listens. A port of 0 was replaced by the kernel's choice.
    pub listen: SocketAddr,
    pub upstreams: Upstreams,
    pub tcp: Option<Arc<Sockets>>,
    pub udp: Option<Arc<Sockets>>,
}

impl Transport {
    pub const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Udp];

    /// By which another program knows it.
    pub fn number(self) -> u8 {
        match self {
            Transport::Tcp => 1,
            Transport::Udp => 2,
        }
    }

    /// The one of a number.
    pub fn of_number(number: u8) -> Option<Transport> {
        Transport::BOTH.into_iter().find(|transport| transport.number() == number)
    }

    fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        }
    }
}

impl Upstreams {
    /// # Errors
    /// `INVALID` if there is none but has to be one, or one is not of its family, or has no port.
    ///
    /// `flags`: bits of `port_flag`.
    pub fn new(v4: Option<SocketAddr>, v6: Option<SocketAddr>, flags: u32) -> Result<Upstreams> {
        let by_destination = flags & port_flag::DESTINATION != 0;
        let transparent = flags & port_flag::TRANSPARENT != 0;
        if v4.is_some_and(|upstream| !upstream.is_ipv4())
            || v6.is_some_and(|upstream| !upstream.is_ipv6())
        {
            return Err(Error::invalid("an upstream is not of its family"));
        }
        if v4.is_none() && v6.is_none() && !by_destination {
            return Err(Error::invalid("a port has no upstream"));
        }
        let upstreams = Upstreams { v4, v6, by_destination, transparent };
        if upstreams.all().any(|upstream| upstream.port() == 0) && !transparent {
            return Err(Error::invalid("an upstream has no port"));
        }
        Ok(upstreams)
    }

    /// Where traffic of a source goes: to the upstream of the client's family, if there is one. The
    /// proxy's own address is nobody's: where the peer's family has no upstream, the other's will do.
    ///
    /// `addressed`: the port that the traffic was addressed to.
    pub fn of(&self, source: Source, peer: SocketAddr, addressed: u16) -> Option<SocketAddr> {
        let (own, other) = match source.stands_for(peer) {
            IpAddr::V4(_) => (self.v4, self.v6),
            IpAddr::V6(_) => (self.v6, self.v4),
        };
        let mut upstream = own.or(other.filter(|_| source == Source::Own))?;
        if upstream.port() == 0 {
            upstream.set_port(addressed);
        }
        Some(upstream)
    }

    /// Whether the upstream depends on the port that the traffic was addressed to.
    pub fn follow_port(&self) -> bool {
        self.all().any(|upstream| upstream.port() == 0)
    }

    /// Whether what one client sends to the port may go to several upstreams.
    pub fn are_many(&self) -> bool {
        self.by_destination || self.follow_port()
    }

    /// Whether clients go to their header's destination.
    pub fn is_by_destination(&self) -> bool {
        self.by_destination
    }

    /// Every upstream that is named.
    pub fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.v4.into_iter().chain(self.v6)
    }
}

impl Wanted {
    /// # Errors
    /// `INVALID` where something is missing.
    pub fn new(record: &PortRecord) -> Result<Wanted> {
        let missing = || Error::invalid("a port has no address to listen on");
        let wanted = Wanted {
            listen: record.listen.socket_addr().ok_or_else(missing)?,
            upstreams: Upstreams::new(
                record.upstream4.socket_addr(),
                record.upstream6.socket_addr(),
                record.flags,
            )?,
            tcp: record.protocols & protocol::TCP != 0,
            udp: record.protocols & protocol::UDP != 0,
            how: Listen {
                only_v6: record.flags & port_flag::ONLY_V6 != 0,
                transparent: record.flags & port_flag::TRANSPARENT != 0,
            },
        };
        if !wanted.tcp && !wanted.udp {
            return Err(Error::invalid("a port has no protocol that there is"));
        }
        Ok(wanted)
    }

    /// A TCP port of the kernel's choice with an upstream, for tests to change.
    #[cfg(test)]
    pub fn for_tests(upstream: SocketAddr) -> Wanted {
        Wanted {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            upstreams: Upstreams::new(Some(upstream), None, 0).unwrap(),
            tcp: true,
            udp: false,
            how: Listen::default(),
        }
    }

    /// A port as it is.
    #[cfg(test)]
    pub fn of(port: &Port) -> Wanted {
        Wanted {
            listen: port.listen,
            upstreams: port.upstreams,
            tcp: port.tcp.is_some(),
            udp: port.udp.is_some(),
            how: port
                .tcp
                .as_ref()
                .or(port.udp.as_ref())
                .map(|sockets| sockets.how)
                .unwrap_or_default(),
        }
    }

    /// Whether it is served over a transport.
    pub fn has(&self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self.tcp,
            Transport::Udp => self.udp,
        }
    }
}

impl Sockets {
    /// Opens one for each of this many workers, if nobody else listens.
    ///
    /// `is_own`: this program itself listens there, with another address or for other families.
    fn open(
        wanted: &Wanted,
        transport: Transport,
        id: u32,
        is_own: bool,
        workers: usize,
    ) -> Result<Arc<Sockets>> {
        if !is_own {
            check_free(wanted.listen, transport, wanted.how)?;
        }
        Sockets::fill(wanted, transport, id, Vec::new(), workers)
    }

    /// One for each of this many workers: those that are there already, by worker, and new ones.
    fn fill(
        wanted: &Wanted,
        transport: Transport,
        id: u32,
        there: Vec<Option<Socket>>,
        workers: usize,
    ) -> Result<Arc<Sockets>> {
        let (mut listen, how) = (wanted.listen, wanted.how);
        let mut sockets = Vec::with_capacity(workers);
        let there = there.into_iter().chain(std::iter::repeat_with(|| None)).take(workers);
        for known in there {
            let opened = match (known, transport) {
                (Some(known), _) => Ok(known),
                (None, Transport::Tcp) => socket::tcp_listener(listen, how),
                (None, Transport::Udp) => socket::udp_listener(listen, how),
            };
            let opened = opened.map_err(|error| cannot_listen(listen, transport, &error))?;
            if listen.port() == 0 {
                let own = opened.local_addr().ok().and_then(|own| own.as_socket());
                listen = own.unwrap_or(listen);
            }
            sockets.push(Mutex::new(Some(opened)));
        }
        Ok(Arc::new(Sockets { id, how, by_worker: sockets.into(), flows: Arc::default() }))
    }

    /// Whether they take what TPROXY hands them.
    pub fn are_transparent(&self) -> bool {
        self.how.transparent
    }

    /// The descriptor of a worker's socket, unless it was closed.
    pub fn fd(&self, worker: u32) -> Option<RawFd> {
        lock(self.by_worker.get(worker as usize)?).as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Closes a worker's socket.
    pub fn close(&self, worker: u32) {
        if let Some(socket) = self.by_worker.get(worker as usize) {
            *lock(socket) = None;
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        lock(self.by_worker.first()?).as_ref()?.local_addr().ok()?.as_socket()
    }
}

impl Port {
    /// Opens a port's sockets, but for those that `kept` has for a transport. Whether a socket has IPv4 as
    /// well cannot be changed (ipv6(7)), and a transparent one reports the destination of each datagram:
    /// if either changes, it is opened again.
    ///
    /// `inherited`: sockets of a predecessor by worker. `is_own`: as for `Sockets::open`.
    ///
    /// # Errors
    /// Those of the operating system, with the address; nothing that was opened stays open then.
    pub fn open(
        wanted: &Wanted,
        kept: impl Fn(Transport) -> Option<Arc<Sockets>>,
        inherited: impl Fn(Transport) -> Option<Vec<Option<Socket>>>,
        new_id: impl Fn() -> u32,
        is_own: impl Fn(Transport) -> bool,
        workers: usize,
    ) -> Result<Port> {
        let open = |transport| {
            let kept = || kept(transport).filter(|sockets| sockets.how == wanted.how);
            let open = || match inherited(transport) {
                Some(there) => Sockets::fill(wanted, transport, new_id(), there, workers),
                None => Sockets::open(wanted, transport, new_id(), is_own(transport), workers),
            };
            wanted.has(transport).then(|| kept().map_or_else(open, Ok)).transpose()
        };
        let (tcp, udp) = (open(Transport::Tcp)?, open(Transport::Udp)?);
        let mut listen = wanted.listen;
        if listen.port() == 0 {
            let any = tcp.as_ref().or(udp.as_ref());
            listen = any.and_then(|sockets| sockets.local_addr()).unwrap_or(listen);
        }
        Ok(Port { listen, upstreams: wanted.upstreams, tcp, udp })
    }

    /// Its sockets of a transport, if it is served over that.
    pub fn sockets(&self, transport: Transport) -> Option<&Arc<Sockets>> {
        match transport {
            Transport::Tcp => self.tcp.as_ref(),
            Transport::Udp => self.udp.as_ref(),
        }
    }
}

/// Whether this process may listen there, and nobody else does.
///
/// # Errors
/// Those of the operating system, with the address.
pub fn check_free(listen: SocketAddr, transport: Transport, how: Listen) -> Result<()> {
    socket::check_free(listen, transport == Transport::Tcp, how)
        .map_err(|error| cannot_listen(listen, transport, &error))
}

/// That two ports of a configuration listen on one address.
pub fn twice(listen: SocketAddr, transport: Transport) -> Error {
    Error::invalid(format!("Cannot listen on {listen} ({}) twice", transport.name()))
}

fn cannot_listen(on: SocketAddr, transport: Transport, error: &io::Error) -> Error {
    Error::system(format!("Cannot listen on {on} ({})", transport.name()), error)
}

/// Whether sockets of these addresses, of one transport, would get each other's traffic.
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_without_a_port_has_the_one_that_was_addressed() {
        let address = |text: &str| -> Option<SocketAddr> { Some(text.parse().unwrap()) };
        let peer = SocketAddr::from(([198, 51, 100, 1], 9));
        let client = Source::Client(([203, 0, 113, 7], 9).into());
        let (four, six) = (address("127.0.0.1:0"), address("[::1]:53"));
        assert!(Upstreams::new(four, six, 0).is_err(), "nothing says which port");
        let upstreams = Upstreams::new(four, six, port_flag::TRANSPARENT).unwrap();
        assert!(upstreams.follow_port() && upstreams.are_many());
        assert_eq!(upstreams.of(client, peer, 5060), address("127.0.0.1:5060"));
        assert_eq!(upstreams.of(Source::Own, peer, 5061), address("127.0.0.1:5061"));
        let client6 = Source::Client("[2001:db8::7]:9".parse().unwrap());
        assert_eq!(upstreams.of(client6, peer, 5060), six);
        let fixed = Upstreams::new(address("127.0.0.1:80"), None, port_flag::TRANSPARENT).unwrap();
        assert!(!fixed.follow_port() && !fixed.are_many());
    }
}
