//! Replacements for the kernel's sockets, the decoder, counters and the access log; each call is checked against the
//! model.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use super::headers::{read_client, read_destination};
use super::world::{Fate, World};
use crate::abi::layout::{carrier, udp_header};
use crate::net::socket::Source;
use crate::observe::access::Ending;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::trust::table::HeaderRule;
use crate::udp::edge::{self, Edge, Kinds, Payload, Received, Sent, Volume};
use crate::udp::flow::{Flow, Owner, ReplyRoute};
use crate::udp::path::Path;
use crate::worker::decision::Decision;
use crate::worker::poll::Key;

pub const ROOM_FOR_REPLIES: usize = 8;

/// What is simulated instead of kernel sockets and the access log.
pub struct Simulated;

impl Kinds for Simulated {
    type Socket = Socket;
    type Account = (usize, Owner);
    type Port = usize;
}

/// An upstream socket: which port it is of, who it sends as, and what the upstream has sent to it.
pub struct Socket {
    pub port: usize,
    pub owner: Owner,
    /// Of which number it is among all that were opened.
    pub number: u64,
    pub open: Rc<RefCell<Sockets>>,
}

#[derive(Default)]
pub struct Sockets {
    pub opened: u64,
    /// By number: who serves it, and what waits.
    pub live: HashMap<u64, Waiting>,
}

pub struct Waiting {
    pub port: usize,
    pub owner: Owner,
    pub watched: Option<(usize, Key)>,
    pub sent: bool,
    pub replies: VecDeque<u64>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.open.borrow_mut().live.remove(&self.number);
    }
}

pub struct SimulatedEdge<'w, 'a> {
    pub world: &'w World<'a>,
    pub worker: usize,
    pub replies: usize,
}

impl SimulatedEdge<'_, '_> {
    /// Another worker has a turn now and then.
    fn interleave(&self) {
        let world = self.world;
        if world.workers.len() == 1 || world.depth.get() > 0 || world.below(10) != 0 {
            return;
        }
        let other = world.below(world.workers.len() as u64) as usize;
        if other != self.worker {
            world.depth.set(1);
            world.summarise(|summary| summary.interleaved += 1);
            world.turn(other, 6);
            world.depth.set(0);
        }
    }
}

impl Edge<Simulated> for SimulatedEdge<'_, '_> {
    fn now(&self) -> u64 {
        self.world.now.get()
    }

    fn rule(&self, _port: &usize, peer: SocketAddr) -> Option<HeaderRule> {
        self.world.rule(self.worker, &Path::of(peer))
    }

    fn decide_bare(
        &mut self,
        port: &usize,
        path: &Path,
        peer: SocketAddr,
    ) -> Result<Decision, Refusal> {
        self.interleave();
        let world = self.world;
        let own = path.peer.socket_addr() == Some(peer);
        world.check(own, || format!("{peer} by another's path"));
        let upstream = world.bare_upstream(*port, path)?;
        Ok(Decision { source: Source::Client(peer), upstream })
    }

    fn decide(
        &mut self,
        port: &usize,
        header: &[u8],
        carrier: u32,
        path: &Path,
        _peer: SocketAddr,
    ) -> Result<Decision, Refusal> {
        self.interleave();
        let source = match read_client(header, carrier) {
            Some(client) if client.ip().is_loopback() => return Err(Refusal::ClientLoopback),
            Some(client) => self.world.possible(self.worker, Owner::Client(client))?.source(),
            None => Source::Own,
        };
        let upstream = match source {
            Source::Client(_) if self.world.by_destination[*port] => {
                read_destination(header, carrier)
            }
            _ => self.world.upstream(*port, path),
        };
        Ok(Decision { source, upstream })
    }

    fn count_accepted(&mut self, port: &usize, _decision: &Decision) {
        // Elsewhere each decoding counts.
        if self.world.modes[*port] == udp_header::SESSION {
            self.count(port, Counter::HeadersV2, 1);
        }
    }

    fn open(&mut self, port: &usize, decision: &Decision, peer: SocketAddr) -> io::Result<Socket> {
        let world = self.world;
        let now = world.now.get();
        let port = *port;
        let owner = world.owner_of(port, decision, peer);
        let to = match owner {
            Owner::ClientTo(_, to) | Owner::PeerTo(_, to) => to,
            _ => world.upstreams.borrow()[port],
        };
        world.check(decision.upstream == to, || {
            format!("port {port} opens a flow to {}", decision.upstream)
        });
        if let Some(failed) = world.failed.borrow().get(&(self.worker, port, owner)) {
            let soon = now > *failed && now < failed + 1_000;
            world.check(!soon, || format!("{owner:?} is tried again at once"));
        }
        if world.is_at_limit(port) {
            return Err(edge::over_limit());
        }
        let mut sockets = world.sockets.borrow_mut();
        let errno = if world.unreachable.borrow().contains(&owner.address()) {
            libc::EHOSTUNREACH
        } else if sockets.live.len() >= world.descriptors {
            libc::EMFILE
        } else {
            let same = |it: &Waiting| it.owner == owner && it.port == port;
            let twice = sockets.live.values().any(same);
            world.check(!twice, || format!("{owner:?} has two sockets"));
            let number = sockets.opened;
            sockets.opened += 1;
            let waiting =
                Waiting { port, owner, watched: None, sent: false, replies: VecDeque::new() };
            sockets.live.insert(number, waiting);
            world.failed.borrow_mut().remove(&(self.worker, port, owner));
            return Ok(Socket { port, owner, number, open: world.sockets.clone() });
        };
        world.failed.borrow_mut().insert((self.worker, port, owner), now);
        Err(io::Error::from_raw_os_error(errno))
    }

    fn watch(&mut self, socket: &Socket, key: Key) {
        let mut sockets = self.world.sockets.borrow_mut();
        let Some(waiting) = sockets.live.get_mut(&socket.number) else { return };
        waiting.watched = Some((self.worker, key));
        if waiting.sent {
            self.world.summarise(|summary| summary.taken_over += 1);
        }
    }

    fn account(
        &mut self,
        port: &usize,
        header: &[u8],
        peer: SocketAddr,
        decision: &Decision,
    ) -> Option<(usize, Owner)> {
        let spp = self.world.modes[*port] == udp_header::SPP;
        let carrier = if spp { carrier::SPP } else { carrier::DATAGRAM };
        if let Source::Client(client) = decision.source {
            let named = if header.is_empty() { Some(peer) } else { read_client(header, carrier) };
            self.world.check(named == Some(client), || format!("{client} by another's header"));
        }
        if header.is_empty() && self.world.modes[*port] == udp_header::SESSION {
            self.world.summarise(|summary| summary.accepted += 1);
        }
        Some((*port, self.world.owner_of(*port, decision, peer)))
    }

    fn close_account(
        &mut self,
        (port, owner): (usize, Owner),
        flow: &Flow<Socket>,
        ending: Ending,
    ) {
        let world = self.world;
        if let Some(waiting) = world.sockets.borrow_mut().live.get_mut(&flow.socket.number) {
            waiting.watched = None;
        }
        let own = (flow.socket.port, flow.socket.owner) == (port, owner);
        world.check(own, || format!("{owner:?} closes another's flow"));
        match ending {
            Ending::Idle => {
                let used = world.last_used.borrow().get(&(port, owner)).copied().unwrap_or(0);
                let due = used + world.close_after;
                world.check(due <= world.now.get(), || format!("{owner:?} ended, used at {used}"));
                world.summarise(|summary| summary.expired += 1);
            }
            Ending::Stopped => world.summarise(|summary| summary.redirected += 1),
            _ => world.summarise(|summary| summary.evicted += 1),
        }
    }

    fn counts_traffic(&self) -> bool {
        true
    }

    fn send<'a>(
        &mut self,
        socket: &Socket,
        payloads: impl Iterator<Item = Payload<'a>>,
        _segmenting: &mut bool,
    ) -> Sent {
        let world = self.world;
        let mut result = Sent::default();
        for payload in payloads {
            let Ok(number) = payload.data.try_into().map(u64::from_be_bytes) else {
                world.fail(|| format!("a payload of {:?}", payload.data));
                continue;
            };
            let mut expected = world.expected.borrow_mut();
            let Some(datagram) = expected.get_mut(number as usize) else {
                world.fail(|| format!("nobody sent {number}"));
                continue;
            };
            let (port, owner) = (socket.port, socket.owner);
            world.check(datagram.port == port, || {
                format!("datagram {number} of port {} at the upstream of {port}", datagram.port)
            });
            world.check(datagram.fate == Fate::Delivered(owner), || {
                format!("datagram {number} ({:?}) from the address of {owner:?}", datagram.fate)
            });
            world.check(!datagram.delivered, || format!("datagram {number} came twice"));
            datagram.delivered = true;
            // Another worker may have opened it between two tries of this one.
            world.failed.borrow_mut().remove(&(self.worker, port, owner));
            let sent = (self.worker, port, owner);
            let before = world.last_sent.borrow_mut().insert(sent, number as usize);
            let ordered = before.is_none_or(|before| before < number as usize);
            world.check(ordered, || format!("datagram {number} came after {before:?}"));
            world.last_used.borrow_mut().insert((port, owner), world.now.get());
            let reply_to = (datagram.path, datagram.header.clone());
            world.reply_to.borrow_mut().insert((port, owner), reply_to);
            if world.below(60) == 0 {
                // The kernel's queue was full.
                world.lost.set(world.lost.get() + 1);
                world.summarise(|summary| summary.lost += 1);
                result.lost += 1;
            } else {
                world.summarise(|summary| summary.delivered += 1);
                result.sent += 1;
            }
        }
        let served = {
            let mut sockets = world.sockets.borrow_mut();
            let waiting = sockets.live.get_mut(&socket.number);
            waiting.map(|waiting| {
                waiting.sent = true;
                waiting.watched.map(|(worker, _)| worker)
            })
        };
        world.check(served.is_some(), || "sent on a closed socket".into());
        if served.flatten().is_some_and(|worker| worker != self.worker) {
            world.summarise(|summary| summary.foreign += 1);
        }
        self.interleave();
        result
    }

    fn receive_replies(
        &mut self,
        port: &usize,
        socket: &Socket,
        route: &ReplyRoute,
    ) -> io::Result<Volume> {
        let (world, port) = (self.world, *port);
        world.check(socket.port == port, || format!("port {port} replies for {}", socket.port));
        let mut sockets = world.sockets.borrow_mut();
        let Some(waiting) = sockets.live.get_mut(&socket.number) else {
            world.fail(|| "received on a closed socket".into());
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut datagrams = 0;
        while self.replies < ROOM_FOR_REPLIES {
            let Some(reply) = waiting.replies.pop_front() else { break };
            self.replies += 1;
            datagrams += 1;
            let owner = waiting.owner;
            let to = world.reply_to.borrow().get(&(port, owner)).cloned();
            let same = to.as_ref().is_some_and(|(path, header)| {
                let wraps = world.modes[port] == udp_header::SPP && !header.is_empty();
                let wrapped = wraps.then_some(&header[..]);
                route.path == *path && route.header.as_ref().map(|it| &it[..]) == wrapped
            });
            world.check(same, || {
                let (peer, from) = (route.path.peer.socket_addr(), route.path.local.socket_addr());
                format!("reply {reply} for {owner:?} goes to {peer:?} from {from:?}")
            });
            world.last_used.borrow_mut().insert((port, owner), world.now.get());
            world.summarise(|summary| summary.replies += 1);
        }
        if datagrams == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Volume { datagrams, bytes: 0 })
    }

    fn is_full_of_replies(&self) -> bool {
        self.replies == ROOM_FOR_REPLIES
    }

    fn send_replies(&mut self) {
        self.replies = 0;
    }

    fn clear_error(&mut self, _socket: &Socket) {
        self.world.fail(|| "a flow that has sent has no reply route".into());
    }

    fn count(&mut self, port: &usize, counter: Counter, by: u64) {
        let mut counters = self.world.counters.borrow_mut();
        *counters.entry((*port, counter as usize)).or_default() += by as i64;
    }

    fn lower(&mut self, port: &usize, gauge: Counter) {
        *self.world.counters.borrow_mut().entry((*port, gauge as usize)).or_default() -= 1;
    }

    fn refuse(&mut self, port: &usize, refusal: Refusal, received: &Received) {
        let world = self.world;
        if refusal == Refusal::TooManyFlows {
            return world.refused_by_limit(self.worker, *port, received);
        }
        world.refusals[self.worker].borrow_mut().push(refusal);
    }

    fn flow_failed(&mut self, _port: &usize, _to: &Decision, _peer: SocketAddr, _errno: i32) {}

    fn flow_opened(&mut self, _port: &usize, _decision: &Decision, _peer: SocketAddr) {}

    fn flow_closed(&mut self, _port: &usize, _decision: &Decision) {}

    fn limit_reached(&mut self, port: &usize) {
        let limited = self.world.max_flows[*port].is_some();
        self.world
            .check(limited, || format!("a flow of port {port} made room, which has no limit"));
        self.world.summarise(|summary| summary.over_limit += 1);
    }

    fn flows_full(&mut self, _port: &usize, _flows: usize) {}
}
