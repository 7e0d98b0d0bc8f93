//! A port of a listener: its sockets, one for each worker, and where its traffic goes.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Where each family's clients go, if anywhere; one of the two is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstreams {
    v4: Option<SocketAddr>,
    v6: Option<SocketAddr>,
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

/// The listening sockets of a port and transport, by worker. A worker takes its own out to close it;
/// until then it outlives the thread that serves it, so that a restart loses nothing in its queue.
pub struct Sockets(Box<[Mutex<Option<Socket>>]>);

/// A port of a listener. It never changes: a port whose upstream changes is another one with the same
/// number, sockets and flows.
pub struct Port {
    /// No other port of the proxy has it, ever.
    pub id: u32,
    /// Where it listens. A port of 0 was replaced by the kernel's choice.
    pub listen: SocketAddr,
    pub upstreams: Upstreams,
    pub tcp: Option<Arc<Sockets>>,
    pub udp: Option<Arc<Sockets>>,
    /// UDP flows by owner, over all workers.
    pub flows: Arc<Directory>,
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
    /// `INVALID` where there is none, or one is not of its family.
    pub fn new(v4: Option<SocketAddr>, v6: Option<SocketAddr>) -> Result<Upstreams> {
        if v4.is_some_and(|upstream| !upstream.is_ipv4())
            || v6.is_some_and(|upstream| !upstream.is_ipv6())
        {
            return Err(Error::invalid("an upstream is not of its family"));
        }
        if v4.is_none() && v6.is_none() {
            return Err(Error::invalid("a port has no upstream"));
        }
        Ok(Upstreams { v4, v6 })
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

    /// Every upstream: one or two.
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
            upstreams: Upstreams::new(Some(upstream), None).unwrap(),
            tcp: true,
            udp: false,
            only_v6: false,
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
    fn open(wanted: &Wanted, transport: Transport, workers: usize) -> Result<Arc<Sockets>> {
        let (mut listen, only_v6) = (wanted.listen, wanted.only_v6);
        check_free(listen, transport, only_v6)?;
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
        Ok(Arc::new(Sockets(sockets.into())))
    }

    /// The descriptor of a worker's socket, unless it was closed.
    pub fn fd(&self, worker: u32) -> Option<RawFd> {
        lock(self.0.get(worker as usize)?).as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Closes a worker's socket.
    pub fn close(&self, worker: u32) {
        if let Some(socket) = self.0.get(worker as usize) {
            *lock(socket) = None;
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        lock(self.0.first()?).as_ref()?.local_addr().ok()?.as_socket()
    }
}

impl Port {
    /// Opens a port's sockets. What `before` has open already is kept as it is: a port that listens on
    /// the same address.
    ///
    /// # Errors
    /// Those of the operating system, with the address; nothing stays open then.
    pub fn open(
        wanted: &Wanted,
        before: Option<&Port>,
        new_id: impl FnOnce() -> u32,
        workers: usize,
    ) -> Result<Port> {
        let open = |transport| {
            let kept = before.and_then(|port| port.sockets(transport)).cloned();
            wanted
                .has(transport)
                .then(|| kept.map_or_else(|| Sockets::open(wanted, transport, workers), Ok))
                .transpose()
        };
        let (tcp, udp) = (open(Transport::Tcp)?, open(Transport::Udp)?);
        let mut listen = wanted.listen;
        if listen.port() == 0 {
            let any = tcp.as_ref().or(udp.as_ref());
            listen = any.and_then(|sockets| sockets.local_addr()).unwrap_or(listen);
        }
        Ok(Port {
            id: before.map_or_else(new_id, |port| port.id),
            listen,
            upstreams: wanted.upstreams,
            tcp,
            udp,
            flows: before.map(|port| port.flows.clone()).unwrap_or_default(),
        })
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

fn cannot_listen(on: SocketAddr, transport: Transport, error: &io::Error) -> Error {
    Error::system(format!("Cannot listen on {on} ({})", transport.name()), error)
}
