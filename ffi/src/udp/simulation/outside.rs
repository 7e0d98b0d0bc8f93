//! What is simulated in place of the kernel's sockets, the decoder, counters and the access log; each
//! call is checked against the model.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use super::headers::read_client;
use super::world::{Fate, World};
use crate::abi::layout::{carrier, udp_header};
use crate::net::socket::Source;
use crate::observe::access::Ending;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::udp::edge::{Edge, Kinds, Payload, Received, Sent, Volume};
use crate::udp::flow::{Flow, Owner, ReplyRoute};
use crate::udp::path::Path;
use crate::worker::poll::Key;

pub const ROOM_FOR_REPLIES: usize = 8;

/// What is simulated in place of kernel sockets and the access log.
pub struct Simulated;

impl Kinds for Simulated {
    type Socket = Socket;
    type Account = Owner;
}

/// An upstream socket: who it speaks as, and what the upstream has sent to it.
pub struct Socket {
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

    fn allows(&self, peer: SocketAddr) -> bool {
        self.world.trusts(self.worker, &Path::of(peer))
    }

    fn decode(
        &mut self,
        header: &[u8],
        carrier: u32,
        _peer: SocketAddr,
    ) -> Result<Source, Refusal> {
        self.interleave();
        match read_client(header, carrier) {
            Some(client) if client.ip().is_loopback() => Err(Refusal::ClientLoopback),
            Some(client) => {
                self.world.possible(self.worker, Owner::Client(client)).map(|owner| owner.source())
            }
            None => Ok(Source::Own),
        }
    }

    fn open(&mut self, owner: Owner, _peer: SocketAddr) -> io::Result<Socket> {
        let world = self.world;
        let now = world.now.get();
        if let Some(failed) = world.failed.borrow().get(&(self.worker, owner)) {
            let soon = now > *failed && now < failed + 1_000;
            world.check(!soon, || format!("{owner:?} is tried again at once"));
        }
        let mut sockets = world.sockets.borrow_mut();
        let errno = if world.unreachable.borrow().contains(&owner.address()) {
            libc::EHOSTUNREACH
        } else if sockets.live.len() >= world.descriptors {
            libc::EMFILE
        } else {
            let twice = sockets.live.values().any(|socket| socket.owner == owner);
            world.check(!twice, || format!("{owner:?} has two sockets"));
            let number = sockets.opened;
            sockets.opened += 1;
            let waiting = Waiting { owner, watched: None, sent: false, replies: VecDeque::new() };
            sockets.live.insert(number, waiting);
            world.failed.borrow_mut().remove(&(self.worker, owner));
            return Ok(Socket { owner, number, open: world.sockets.clone() });
        };
        world.failed.borrow_mut().insert((self.worker, owner), now);
        Err(io::Error::from_raw_os_error(errno))
    }

    fn watch(&mut self, socket: &Socket, key: Key) {
        let mut sockets = self.world.sockets.borrow_mut();
        let Some(waiting) = sockets.live.get_mut(&socket.number) else { return };
        let before = waiting.watched.replace((self.worker, key));
        if before.is_some() {
            self.world.summarise(|summary| summary.taken_over += 1);
        }
    }

    fn account(&mut self, header: &[u8], _peer: SocketAddr, owner: Owner) -> Option<Owner> {
        let carrier =
            if self.world.mode == udp_header::SPP { carrier::SPP } else { carrier::DATAGRAM };
        if let Owner::Client(client) = owner {
            let named = read_client(header, carrier);
            self.world.check(named == Some(client), || format!("{owner:?} by another's header"));
        }
        Some(owner)
    }

    fn close_account(&mut self, owner: Owner, flow: &Flow<Socket>, ending: Ending) {
        let world = self.world;
        world.check(flow.socket.owner == owner, || format!("{owner:?} closes another's flow"));
        match ending {
            Ending::Idle => {
                let used = world.last_used.borrow().get(&owner).copied().unwrap_or(0);
                let due = used + world.close_after;
                world.check(due <= world.now.get(), || format!("{owner:?} ended, used at {used}"));
                world.summarise(|summary| summary.expired += 1);
            }
            _ => world.summarise(|summary| summary.evicted += 1),
        }
    }

    fn keeps_accounts(&self) -> bool {
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
            let owner = socket.owner;
            world.check(datagram.fate == Fate::Delivered(owner), || {
                format!("datagram {number} ({:?}) from the address of {owner:?}", datagram.fate)
            });
            world.check(!datagram.delivered, || format!("datagram {number} came twice"));
            datagram.delivered = true;
            // Another worker may have opened it between two tries of this one.
            world.failed.borrow_mut().remove(&(self.worker, owner));
            let before = world.last_sent.borrow_mut().insert((self.worker, owner), number as usize);
            let ordered = before.is_none_or(|before| before < number as usize);
            world.check(ordered, || format!("datagram {number} came after {before:?}"));
            world.last_used.borrow_mut().insert(owner, world.now.get());
            world.reply_to.borrow_mut().insert(owner, (datagram.peer, datagram.header.clone()));
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

    fn receive_replies(&mut self, socket: &Socket, route: &ReplyRoute) -> io::Result<Volume> {
        let world = self.world;
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
            let to = world.reply_to.borrow().get(&owner).cloned();
            let same = to.as_ref().is_some_and(|(peer, header)| {
                let wrapped = (world.mode == udp_header::SPP).then_some(&header[..]);
                route.path == Path::of(*peer) && route.header.as_ref().map(|it| &it[..]) == wrapped
            });
            world.check(same, || {
                let peer = route.path.peer.socket_addr();
                format!("reply {reply} for {owner:?} goes to {peer:?}, not to {to:?}")
            });
            world.last_used.borrow_mut().insert(owner, world.now.get());
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

    fn count(&mut self, counter: Counter, by: u64) {
        *self.world.counters.borrow_mut().entry(counter as usize).or_default() += by as i64;
    }

    fn lower(&mut self, gauge: Counter) {
        *self.world.counters.borrow_mut().entry(gauge as usize).or_default() -= 1;
    }

    fn refuse(&mut self, refusal: Refusal, _received: &Received) {
        self.world.refusals[self.worker].borrow_mut().push(refusal);
    }

    fn flow_failed(&mut self, _owner: Owner, _peer: SocketAddr, _errno: i32) {}

    fn flow_opened(&mut self, _owner: Owner, _peer: SocketAddr) {}

    fn flow_closed(&mut self, _owner: Owner) {}

    fn flows_full(&mut self, _flows: usize) {}
}
