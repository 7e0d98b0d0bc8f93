//! A flow: one client's upstream socket, and the route that its replies take.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;

use super::moved::MovedFlow;
use super::path::Path;
use crate::header::frame::SPP_LENGTH;
#[cfg(any(test, feature = "fuzzing"))]
use crate::net::socket::Source;
use crate::system::sync::lock;

/// Whose flow it is: its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The client that a header names, or that sends without one.
    Client(SocketAddr),
    /// A client on its way to one of many destinations: each is a flow of its own.
    ClientTo(SocketAddr, SocketAddr),
    /// The peer itself: LOCAL, UNKNOWN, UNSPEC.
    Peer(SocketAddr),
    /// The peer itself, towards one of many upstreams.
    PeerTo(SocketAddr, SocketAddr),
}

impl Owner {
    /// From where the upstream sees the flow come.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn source(self) -> Source {
        match self {
            Owner::Client(client) | Owner::ClientTo(client, _) => Source::Client(client),
            Owner::Peer(_) | Owner::PeerTo(..) => Source::Own,
        }
    }

    /// The client's address, or the peer's.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn address(self) -> SocketAddr {
        match self {
            Owner::Client(address)
            | Owner::ClientTo(address, _)
            | Owner::Peer(address)
            | Owner::PeerTo(address, _) => address,
        }
    }
}

/// A flow's upstream socket and its reply route. Any worker may send on it; one receives its replies.
pub struct Flow<S> {
    pub socket: S,
    opened_at: u64,
    last_used: AtomicU64,
    /// A worker receives its replies. One that was given up may be taken over while another worker
    /// still sends on it.
    served: AtomicBool,
    /// Grows with each change of `route`, under its lock.
    route_version: AtomicU64,
    route: Mutex<Option<ReplyRoute>>,
    /// What it has carried, where somebody requests it.
    pub traffic: Traffic,
}

/// What a flow has carried. Any worker may add; only sums are read.
#[derive(Default)]
pub struct Traffic {
    pub datagrams_up: AtomicU64,
    pub bytes_up: AtomicU64,
    pub datagrams_down: AtomicU64,
    pub bytes_down: AtomicU64,
}

/// Where replies go, and what precedes each.
#[derive(Clone, Copy, PartialEq)]
pub struct ReplyRoute {
    pub path: Path,
    /// A Simple Proxy Protocol header, as received.
    pub header: Option<[u8; SPP_LENGTH]>,
}

/// A flow's reply route as one worker last knew it: spares the lock while nothing changes.
#[derive(Clone, Copy, Default)]
pub struct KnownRoute {
    version: u64,
    route: Option<ReplyRoute>,
}

impl<S> Flow<S> {
    /// A flow that a worker serves from now on. `now` in milliseconds since the proxy was opened.
    pub fn new(socket: S, now: u64) -> Flow<S> {
        Flow {
            socket,
            opened_at: now,
            last_used: AtomicU64::new(now),
            served: AtomicBool::new(true),
            route_version: AtomicU64::new(0),
            route: Mutex::new(None),
            traffic: Traffic::default(),
        }
    }

    /// A flow that another program had, which a worker serves from now on.
    pub fn moved(socket: S, moved: &MovedFlow, now: u64) -> Flow<S> {
        let [datagrams_up, bytes_up, datagrams_down, bytes_down] =
            moved.traffic.map(AtomicU64::new);
        Flow {
            socket,
            // Both clocks are one, but for a millisecond.
            opened_at: moved.opened_at.min(now),
            last_used: AtomicU64::new(moved.last_used.min(now)),
            served: AtomicBool::new(true),
            // What no worker knows yet.
            route_version: AtomicU64::new(1),
            route: Mutex::new(moved.route),
            traffic: Traffic { datagrams_up, bytes_up, datagrams_down, bytes_down },
        }
    }

    /// Notes that the flow carried something.
    #[inline]
    pub fn touch(&self, now: u64) {
        self.last_used.store(now, Ordering::Relaxed);
    }

    /// When it was opened.
    pub fn opened_at(&self) -> u64 {
        self.opened_at
    }

    /// When it last carried something.
    #[inline]
    pub fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Whether a worker receives its replies.
    #[inline]
    pub fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// Sets whether a worker receives its replies; what it was. Only under the directory's lock.
    pub fn serve(&self, served: bool) -> bool {
        self.served.swap(served, Ordering::AcqRel)
    }

    /// Replies take this route from now on. `known` is what the calling worker knew.
    #[inline]
    pub fn set_route(&self, known: &mut KnownRoute, route: ReplyRoute) {
        let version = self.route_version.load(Ordering::Acquire);
        if known.version == version && known.route.as_ref() == Some(&route) {
            return;
        }
        let mut current = lock(&self.route);
        *current = Some(route);
        // The version is stored while the lock is held: no other worker's route can get this number.
        let version = self.route_version.load(Ordering::Relaxed) + 1;
        self.route_version.store(version, Ordering::Release);
        *known = KnownRoute { version, route: Some(route) };
    }

    /// The route of the peer that last sent for the client; `None` before the first.
    #[inline]
    pub fn route(&self, known: &mut KnownRoute) -> Option<ReplyRoute> {
        if known.version != self.route_version.load(Ordering::Acquire) {
            let current = lock(&self.route);
            let version = self.route_version.load(Ordering::Relaxed);
            *known = KnownRoute { version, route: *current };
        }
        known.route
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(port: u16) -> ReplyRoute {
        ReplyRoute { path: Path::of(SocketAddr::from(([192, 0, 2, 1], port))), header: None }
    }

    #[test]
    fn every_worker_sees_the_latest_route() {
        let flow = Flow::new((), 0);
        let (mut one, mut two) = (KnownRoute::default(), KnownRoute::default());
        assert!(flow.route(&mut one).is_none());
        flow.set_route(&mut one, route(1));
        assert!(flow.route(&mut two) == Some(route(1)));
        flow.set_route(&mut two, route(2));
        assert!(flow.route(&mut one) == Some(route(2)));
        // The first worker sets its old route again: what it knew is not what holds.
        flow.set_route(&mut two, route(3));
        flow.set_route(&mut one, route(2));
        assert!(flow.route(&mut two) == Some(route(2)));
    }

    #[test]
    fn workers_that_set_routes_at_once_agree_in_the_end() {
        let flow = Flow::new((), 0);
        std::thread::scope(|scope| {
            for worker in 1..=4 {
                let flow = &flow;
                scope.spawn(move || {
                    let mut known = KnownRoute::default();
                    for _ in 0..20_000 {
                        flow.set_route(&mut known, route(worker));
                        assert!(flow.route(&mut known).is_some());
                    }
                });
            }
        });
        let mut known = [KnownRoute::default(); 2];
        flow.set_route(&mut known[0], route(9));
        assert!(flow.route(&mut known[1]) == Some(route(9)));
    }
}
