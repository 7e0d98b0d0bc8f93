//! A port of a listener: its sockets, one for each worker and transport, and where its traffic goes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use socket2::Socket;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{port_flag, protocol, PortRecord};
use crate::net::socket::{self, Source};
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
}

/// A checked `PortRecord`.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub listen: SocketAddr,
    pub upstreams: Upstreams,
    pub tcp: bool,
    pub udp: bool,
    /// `[::]` leaves IPv4 to another port.
    pub only_v6: bool,
}

/// The listening sockets of an address and transport, by worker. A worker closes its own; until then it
/// outlives the thread that serves it, so that a restart loses nothing in its queue.
pub struct Sockets {
    /// No others of the proxy have it, ever.
    pub id: u32,
    /// `[::]` leaves IPv4 to others.
    only_v6: bool,
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

    fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        }
    }
}

impl Upstreams {
    /// # Errors
    /// `INVALID` where there is none but has to be one, or one is not of its family.
    pub fn new(
        v4: Option<SocketAddr>,
        v6: Option<SocketAddr>,
        by_destination: bool,
    ) -> Result<Upstreams> {
        if v4.is_some_and(|upstream| !upstream.is_ipv4())
            || v6.is_some_and(|upstream| !upstream.is_ipv6())
        {
            return Err(Error::invalid("an upstream is not of its family"));
        }
        if v4.is_none() && v6.is_none() && !by_destination {
            return Err(Error::invalid("a port has no upstream"));
        }
        Ok(Upstreams { v4, v6, by_destination })
    }

    /// Where traffic of a source goes: to the upstream of the client's family, if there is one. The
    /// proxy's own address is nobody's: where the peer's family has no upstream, the other's will do.
    pub fn of(&self, source: Source, peer: SocketAddr) -> Option<SocketAddr> {
        let (own, other) = match source.stands_for(peer) {
            IpAddr::V4(_) => (self.v4, self.v6),
            IpAddr::V6(_) => (self.v6, self.v4),
        };
        own.or(other.filter(|_| source == Source::Own))
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
                record.flags & port_flag::DESTINATION != 0,
            )?,
            tcp: record.protocols & protocol::TCP != 0,
            udp: record.protocols & protocol::UDP != 0,
            only_v6: record.flags & port_flag::ONLY_V6 != 0,
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
            upstreams: Upstreams::new(Some(upstream), None, false).unwrap(),
            tcp: true,
            udp: false,
            only_v6: false,
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
            only_v6: port.tcp.as_ref().or(port.udp.as_ref()).is_some_and(|sockets| sockets.only_v6),
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
    /// Opens one for each of so many workers, where nobody else listens.
    ///
    /// `is_own`: this program itself listens there, with another address or for other families.
    fn open(
        wanted: &Wanted,
        transport: Transport,
        id: u32,
        is_own: bool,
        workers: usize,
    ) -> Result<Arc<Sockets>> {
        let (mut listen, only_v6) = (wanted.listen, wanted.only_v6);
        if !is_own {
            check_free(listen, transport, only_v6)?;
        }
        let mut sockets = Vec::with_capacity(workers);
        for _ in 0..workers {
            let opened = match transport {
                Transport::Tcp => socket::tcp_listener(listen, only_v6),
                Transport::Udp => socket::udp_listener(listen, only_v6),
            };
            let opened = opened.map_err(|error| cannot_listen(listen, transport, &error))?;
            if listen.port() == 0 {
                let own = opened.local_addr().ok().and_then(|own| own.as_socket());
                listen = own.unwrap_or(listen);
            }
            sockets.push(Mutex::new(Some(opened)));
        }
        Ok(Arc::new(Sockets { id, only_v6, by_worker: sockets.into(), flows: Arc::default() }))
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
    /// well cannot be changed (ipv6(7)): where that is to change it is opened anew.
    ///
    /// `is_own`: as for `Sockets::open`.
    ///
    /// # Errors
    /// Those of the operating system, with the address; nothing that was opened stays open then.
    pub fn open(
        wanted: &Wanted,
        kept: impl Fn(Transport) -> Option<Arc<Sockets>>,
        new_id: impl Fn() -> u32,
        is_own: impl Fn(Transport) -> bool,
        workers: usize,
    ) -> Result<Port> {
        let open = |transport| {
            let kept = || kept(transport).filter(|sockets| sockets.only_v6 == wanted.only_v6);
            let open = || Sockets::open(wanted, transport, new_id(), is_own(transport), workers);
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
pub fn check_free(listen: SocketAddr, transport: Transport, only_v6: bool) -> Result<()> {
    socket::check_free(listen, transport == Transport::Tcp, only_v6)
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
