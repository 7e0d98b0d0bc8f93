//! The story: peers send, workers have turns, the upstream answers, lists and reachability change. From the order of
//! arrival alone, the model knows the expected result of each datagram.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use super::headers::{client, destination, refused_client, spp, v1, v2, v2_local};
use super::outside::{Simulated, SimulatedEdge, Socket, Sockets, ROOM_FOR_REPLIES};
use super::{Choices, Summary};
use crate::abi::layout::udp_header;
use crate::net::socket::Source;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::trust::table::HeaderRule;
use crate::udp::directory::Directory;
use crate::udp::edge::{Batch, Edge, Received};
use crate::udp::engine::{Defects, Engine, Limits};
use crate::udp::flow::Owner;
use crate::udp::path::{Local, Path};
use crate::udp::port::Port;
use crate::udp::sessions::Between;
use crate::worker::decision::Decision;

/// A datagram on its way, and what the model expects of it.
pub struct Datagram {
    pub data: Vec<u8>,
    pub path: Path,
    pub truncated: bool,
}

pub struct Arrived(Vec<Datagram>);

impl Batch for Arrived {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, slot: usize) -> Received<'_> {
        let Datagram { data, path, truncated } = &self.0[slot];
        Received { data, path: *path, dscp: 0, truncated: *truncated }
    }

    fn data(&self, slot: usize) -> &[u8] {
        &self.0[slot].data
    }
}

/// What the model expects of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Delivered(Owner),
    Refused(Refusal),
    /// A header alone that opens a session.
    Nothing,
}

pub struct Expected {
    pub fate: Fate,
    pub port: usize,
    pub worker: usize,
    pub path: Path,
    pub header: Vec<u8>,
    pub delivered: bool,
    /// It was refused, because its listener had as many flows as it may.
    pub over_limit: bool,
}

fn upstream_of(port: usize, to: u16) -> SocketAddr {
    ([192, 0, 2, port as u8], to).into()
}

/// Whose a flow is: an owner's at a port.
type Identity = (usize, Owner);

/// A session as the model has it.
pub struct ModelSession {
    pub owner: Owner,
    pub header: Vec<u8>,
    pub last_used: u64,
}

pub struct World<'a> {
    pub choices: RefCell<&'a mut dyn Choices>,
    pub now: Cell<u64>,
    /// By port: one of `udp_header`.
    pub modes: Vec<u32>,
    pub upstreams: RefCell<Vec<SocketAddr>>,
    pub limits: Limits,
    /// By port: how many flows its listener may have.
    pub max_flows: Vec<Option<usize>>,
    pub close_after: u64,
    /// This many sockets may be open; more is EMFILE.
    pub descriptors: usize,
    pub varying: bool,
    pub workers: Vec<RefCell<Engine<Simulated>>>,
    pub ports: Vec<Rc<Port<Simulated>>>,
    pub directories: Vec<Arc<Directory<Socket>>>,
    /// What each worker has seen of the upstreams.
    pub seen_upstreams: Vec<RefCell<Vec<SocketAddr>>>,
    pub sockets: Rc<RefCell<Sockets>>,
    pub peers: Vec<SocketAddr>,
    pub clients: Vec<SocketAddr>,
    /// By port: clients go where their header leads.
    pub by_destination: Vec<bool>,
    /// By port: peers send to several addresses and ports, and are answered from there.
    pub transparent: Vec<bool>,
    /// By port: the upstream's port is the one that was addressed.
    pub follow_port: Vec<bool>,
    /// By peer: the program's trust table, and each worker's copy of it.
    pub trust: RefCell<Vec<Option<HeaderRule>>>,
    pub copies: Vec<RefCell<Vec<Option<HeaderRule>>>>,
    /// Clients that this host's addresses make impossible: now, and as each worker knows it.
    pub impossible: RefCell<HashSet<SocketAddr>>,
    pub known_impossible: Vec<RefCell<HashSet<SocketAddr>>>,
    pub trust_version: Cell<u64>,
    pub seen_version: Vec<Cell<u64>>,
    pub unreachable: RefCell<HashSet<SocketAddr>>,
    /// Every datagram by its number, which is its payload.
    pub expected: RefCell<Vec<Expected>>,
    pub sessions: Vec<RefCell<HashMap<Between, ModelSession>>>,
    /// Owners whose flow a worker could not open, and when.
    pub failed: RefCell<HashMap<(usize, usize, Owner), u64>>,
    pub refusals: Vec<RefCell<Vec<Refusal>>>,
    pub last_sent: RefCell<HashMap<(usize, usize, Owner), usize>>,
    pub last_used: RefCell<HashMap<Identity, u64>>,
    pub reply_to: RefCell<HashMap<Identity, (Path, Vec<u8>)>>,
    pub next_reply: Cell<u64>,
    pub counters: RefCell<HashMap<(usize, usize), i64>>,
    pub lost: Cell<u64>,
    pub depth: Cell<u32>,
    pub summary: RefCell<Summary>,
    pub error: RefCell<Option<String>>,
    pub salt: Cell<u32>,
}

impl<'a> World<'a> {
    pub fn new(choices: &'a mut dyn Choices, defects: Defects) -> World<'a> {
        let mut between = |least: u64, most: u64| least + choices.below(most - least + 1);
        let workers = between(1, 3) as usize;
        let ports = between(1, 3) as usize;
        let forms = [udp_header::DATAGRAM, udp_header::SESSION, udp_header::SPP];
        let modes: Vec<u32> = (0..ports).map(|_| forms[between(0, 2) as usize]).collect();
        // Ports of one listener, or each of its own.
        let one_listener = between(0, 1) == 1;
        let by_destination: Vec<bool> = (0..ports).map(|_| between(0, 2) == 0).collect();
        let transparent: Vec<bool> = (0..ports).map(|_| between(0, 1) == 0).collect();
        let follow_port: Vec<bool> =
            transparent.iter().map(|it| *it && between(0, 1) == 0).collect();
        let limits = Limits {
            flows: between(1, 10) as usize,
            sessions: between(1, 5) as usize,
            header_bytes: between(300, 6_000) as usize,
            batch: 64,
        };
        let most = |between: &mut dyn FnMut(u64, u64) -> u64| {
            (between(0, 1) == 1).then(|| between(1, 8) as usize)
        };
        let of_all = most(&mut between);
        let max_flows: Vec<Option<usize>> =
            (0..ports).map(|_| if one_listener { of_all } else { most(&mut between) }).collect();
        let close_after = between(50, 4_000);
        let peers = between(1, 5);
        let clients = between(1, 20);
        let descriptors = between(2, 40) as usize;
        let varying = between(0, 1) == 1;
        let directories: Vec<Arc<Directory<Socket>>> = (0..ports).map(|_| Arc::default()).collect();
        let upstreams: Vec<SocketAddr> =
            (0..ports).map(|at| upstream_of(at, if follow_port[at] { 0 } else { 53 })).collect();
        let port = |at: usize| Port {
            id: 1 + at as u32,
            listener: if one_listener { 1 } else { 1 + at as u32 },
            mode: modes[at],
            mixed: true,
            many_upstreams: by_destination[at] || follow_port[at],
            close_after,
            directory: directories[at].clone(),
            outside: at,
        };
        let engines = (0..workers).map(|_| {
            let mut engine = Engine::new(limits);
            engine.defects = defects;
            RefCell::new(engine)
        });
        World {
            now: Cell::new(1_000),
            ports: (0..ports).map(|at| Rc::new(port(at))).collect(),
            seen_upstreams: vec![RefCell::new(upstreams.clone()); workers],
            upstreams: RefCell::new(upstreams),
            limits,
            max_flows,
            close_after,
            descriptors,
            varying,
            workers: engines.collect(),
            directories: directories.clone(),
            modes: modes.clone(),
            sockets: Rc::default(),
            peers: (0..peers).map(|at| ([198, 51, 100, at as u8], 4_000).into()).collect(),
            clients: (0..clients).map(|at| client(at as u8)).collect(),
            by_destination: by_destination.clone(),
            transparent: transparent.clone(),
            follow_port: follow_port.clone(),
            trust: RefCell::new(vec![Some(HeaderRule::Require); peers as usize]),
            copies: vec![RefCell::new(vec![Some(HeaderRule::Require); peers as usize]); workers],
            impossible: RefCell::default(),
            known_impossible: (0..workers).map(|_| RefCell::default()).collect(),
            trust_version: Cell::new(0),
            seen_version: vec![Cell::new(0); workers],
            unreachable: RefCell::default(),
            expected: RefCell::default(),
            sessions: (0..workers).map(|_| RefCell::default()).collect(),
            failed: RefCell::default(),
            refusals: (0..workers).map(|_| RefCell::default()).collect(),
            last_sent: RefCell::default(),
            last_used: RefCell::default(),
            reply_to: RefCell::default(),
            next_reply: Cell::new(0),
            counters: RefCell::default(),
            lost: Cell::new(0),
            depth: Cell::new(0),
            summary: RefCell::default(),
            error: RefCell::default(),
            salt: Cell::new(0),
            choices: RefCell::new(choices),
        }
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.choices.borrow_mut().below(bound)
    }

    /// Keeps the first thing that went wrong.
    pub fn fail(&self, what: impl FnOnce() -> String) {
        let mut error = self.error.borrow_mut();
        if error.is_none() {
            *error = Some(format!("at {} ms: {}", self.now.get(), what()));
        }
    }

    pub fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what);
        }
    }

    pub fn summarise(&self, change: impl FnOnce(&mut Summary)) {
        change(&mut self.summary.borrow_mut());
    }

    pub fn counter(&self, counter: Counter) -> i64 {
        let counters = self.counters.borrow();
        let of_ports =
            (0..self.ports.len()).filter_map(|port| counters.get(&(port, counter as usize)));
        of_ports.sum()
    }

    /// Whose datagrams with a decision are.
    pub fn owner_of(&self, port: usize, decision: &Decision, peer: SocketAddr) -> Owner {
        match decision.source {
            Source::Own if self.many(port) => Owner::PeerTo(peer, decision.upstream),
            Source::Own => Owner::Peer(peer),
            Source::Client(client) => self.owner(port, client, decision.upstream),
        }
    }

    fn owner(&self, port: usize, client: SocketAddr, to: SocketAddr) -> Owner {
        match self.many(port) {
            true => Owner::ClientTo(client, to),
            false => Owner::Client(client),
        }
    }

    fn many(&self, port: usize) -> bool {
        self.by_destination[port] || self.follow_port[port]
    }

    /// Where what comes by a path goes, unless its header says where.
    pub fn upstream(&self, port: usize, path: &Path) -> SocketAddr {
        let mut upstream = self.upstreams.borrow()[port];
        if self.follow_port[port] {
            upstream.set_port(path.local.port);
        }
        upstream
    }

    /// Where a peer without a header goes, if anywhere.
    pub fn bare_upstream(&self, port: usize, path: &Path) -> Result<SocketAddr, Refusal> {
        if !self.by_destination[port] {
            return Ok(self.upstream(port, path));
        }
        // The address that it spoke to is the listener's, but for what TPROXY has handed over.
        path.local.socket_addr().ok_or(Refusal::ForwardingLoop)
    }

    /// A peer on the way to one of the addresses that a port is addressed by.
    fn path(&self, port: usize, peer: SocketAddr) -> Path {
        let mut path = Path::of(peer);
        if self.transparent[port] {
            let (host, to) = (self.below(2) as u8, 5_060 + self.below(2) as u16);
            let original: SocketAddr = ([198, 51, 100, 200 + host], to).into();
            path.local = Local::original(&original.into());
        }
        path
    }

    /// Whose what belongs to a session is: the upstream of a peer's own may be another by now.
    fn owner_now(&self, port: usize, path: &Path, owner: Owner) -> Owner {
        match owner {
            Owner::PeerTo(peer, _) => Owner::PeerTo(peer, self.upstream(port, path)),
            owner => owner,
        }
    }

    /// The trust table changes, or this host's addresses do.
    pub fn reload(&self) {
        if self.below(2) == 0 {
            for rule in self.trust.borrow_mut().iter_mut() {
                *rule = match self.below(8) {
                    0 | 1 => None,
                    2 => Some(HeaderRule::Skip),
                    3 | 4 => Some(HeaderRule::Optional),
                    _ => Some(HeaderRule::Require),
                };
            }
        } else {
            let mut impossible = self.impossible.borrow_mut();
            impossible.clear();
            impossible.extend(self.clients.iter().filter(|_| self.below(4) == 0));
        }
        self.trust_version.set(self.trust_version.get() + 1);
    }

    /// A port's upstream becomes another.
    pub fn redirect(&self) {
        let port = self.below(self.ports.len() as u64) as usize;
        let to = upstream_of(port, 53 + self.below(3) as u16);
        if self.follow_port[port] {
            return;
        }
        self.upstreams.borrow_mut()[port] = to;
        // Workers that are idle follow at once; the others have a turn now.
        for worker in 0..self.workers.len() {
            self.turn(worker, 1);
        }
    }

    /// Some clients' flows can be opened from now on, others cannot.
    pub fn change_reach(&self) {
        let mut unreachable = self.unreachable.borrow_mut();
        unreachable.clear();
        unreachable.extend(self.clients.iter().filter(|_| self.below(5) == 0));
    }

    /// One turn of a worker, as `Udp::turn` has it.
    pub fn turn(&self, worker: usize, most: u64) {
        let Ok(mut engine) = self.workers[worker].try_borrow_mut() else { return };
        let mut edge = SimulatedEdge { world: self, worker, replies: 0 };
        let now = self.now.get();
        self.follow(worker, &mut engine);
        engine.expire(&mut edge);
        self.sessions[worker]
            .borrow_mut()
            .retain(|_, session| session.last_used + self.close_after > now);
        if self.seen_version[worker].replace(self.trust_version.get()) != self.trust_version.get() {
            self.copies[worker].borrow_mut().clone_from(&self.trust.borrow());
            self.known_impossible[worker].borrow_mut().clone_from(&self.impossible.borrow());
            engine.trust_changed(|_, peer| self.trusts(worker, &Path::of(peer)));
            self.sessions[worker].borrow_mut().retain(|(_, path), _| self.trusts(worker, path));
        }
        let first = self.expected.borrow().len();
        let port = self.below(self.ports.len() as u64) as usize;
        let count = self.below(most) as usize;
        let mut arrived = Arrived(Vec::new());
        for _ in 0..count {
            if let Some(datagram) = self.datagram(worker, port) {
                arrived.0.push(datagram);
            }
        }
        let numbers: Vec<usize> = (first..self.expected.borrow().len()).collect();
        self.refusals[worker].borrow_mut().clear();
        engine.forward_batch(&mut edge, &self.ports[port], &arrived);
        self.judge(worker, &numbers);
        let bytes = engine.cache.bytes();
        self.check(bytes <= self.limits.header_bytes, || format!("{bytes} bytes are cached"));
        let model = self.sessions[worker].borrow().len();
        let sessions = engine.sessions.len();
        self.check(sessions == model, || format!("{sessions} sessions, not {model}"));
        let here = engine.flows();
        self.check(here <= self.limits.flows, || format!("{here} flows are too many"));
    }

    /// What a worker does once a port's upstream is another.
    fn follow(&self, worker: usize, engine: &mut Engine<Simulated>) {
        let mut edge = SimulatedEdge { world: self, worker, replies: 0 };
        let now = self.upstreams.borrow().clone();
        let before = self.seen_upstreams[worker].replace(now.clone());
        if before == now {
            return;
        }
        let is_other = |id: u32| before[id as usize - 1] != now[id as usize - 1];
        engine.end_ports(&mut edge, is_other);
        engine.trust_changed(|_, peer| self.trusts(worker, &Path::of(peer)));
        // A flow that could not be opened is tried again, with the other upstream.
        let mut failed = self.failed.borrow_mut();
        failed.retain(|(at, port, _), _| *at != worker || !is_other(1 + *port as u32));
    }

    pub fn rule(&self, worker: usize, path: &Path) -> Option<HeaderRule> {
        let peer = path.peer.socket_addr();
        let at = self.peers.iter().position(|other| Some(*other) == peer)?;
        self.copies[worker].borrow()[at]
    }

    pub fn trusts(&self, worker: usize, path: &Path) -> bool {
        self.rule(worker, path).is_some()
    }

    /// Whom a header names, unless a worker knows that it can be no client.
    pub fn possible(&self, worker: usize, owner: Owner) -> Result<Owner, Refusal> {
        match owner {
            Owner::Client(client) | Owner::ClientTo(client, _)
                if self.known_impossible[worker].borrow().contains(&client) =>
            {
                Err(Refusal::ClientOwnAddress)
            }
            _ => Ok(owner),
        }
    }

    /// The next datagram that arrives at a worker, with the model's expectation. Peers are spread over
    /// the workers as the kernel spreads them; a worker that has none gets nothing.
    pub fn datagram(&self, worker: usize, port: usize) -> Option<Datagram> {
        let mode = self.modes[port];
        let own: Vec<usize> =
            (0..self.peers.len()).filter(|at| at % self.workers.len() == worker).collect();
        if own.is_empty() {
            return None;
        }
        let peer = self.peers[own[self.below(own.len() as u64) as usize]];
        let path = self.path(port, peer);
        let number = self.expected.borrow().len() as u64;
        let is_client = match self.rule(worker, &path) {
            Some(HeaderRule::Skip) => true,
            Some(HeaderRule::Optional) => mode != udp_header::SESSION && self.below(3) == 0,
            _ => false,
        };
        if is_client {
            let owner = self.bare_upstream(port, &path).map(|to| self.owner(port, peer, to));
            let fate = owner.map_or_else(Fate::Refused, Fate::Delivered);
            let header = Vec::new();
            let expected =
                Expected { fate, port, worker, path, header, delivered: false, over_limit: false };
            self.expected.borrow_mut().push(expected);
            self.summarise(|summary| summary.without_header += 1);
            return Some(Datagram { data: number.to_be_bytes().into(), path, truncated: false });
        }
        let bare = mode == udp_header::SESSION && self.below(4) != 0;
        let kind = if bare { 15 } else { self.below(15) };
        let client = self.clients[self.below(self.clients.len() as u64) as usize];
        let to = self.below(2) as u8;
        let upstream = match self.by_destination[port] {
            true => self.destination(mode, client, to),
            false => self.upstream(port, &path),
        };
        let owner = self.owner(port, client, upstream);
        let own = Decision { source: Source::Own, upstream: self.upstream(port, &path) };
        let (header, owner): (Vec<u8>, Result<Owner, Refusal>) = match kind {
            15 => (Vec::new(), Err(Refusal::NoSession)),
            0 => self.garbage(mode, self.rule(worker, &path)),
            1 if mode != udp_header::SPP => (v2_local(), Ok(self.owner_of(port, &own, peer))),
            2 => (self.header(mode, refused_client(), to), Err(Refusal::ClientLoopback)),
            3 if mode != udp_header::SPP => (v1(client, to), Ok(owner)),
            _ => (self.header(mode, client, to), Ok(owner)),
        };
        // In a session a header may come alone.
        let alone = mode == udp_header::SESSION && !bare && self.below(3) == 0;
        let mut data = header.clone();
        // Behind garbage more bytes could make other garbage of it.
        if !alone && kind != 0 {
            data.extend(number.to_be_bytes());
        }
        let truncated = self.below(40) == 0;
        let fate = match truncated {
            true => Fate::Refused(Refusal::DatagramTooLong),
            false => self.fate(worker, port, &path, &header, owner, alone),
        };
        let expected =
            Expected { fate, port, worker, path, header, delivered: false, over_limit: false };
        self.expected.borrow_mut().push(expected);
        Some(Datagram { data, path, truncated })
    }

    pub fn header(&self, mode: u32, client: SocketAddr, to: u8) -> Vec<u8> {
        if mode == udp_header::SPP {
            let salt = if self.varying { self.salt() } else { 0 };
            return spp(client, 2 * salt + u32::from(to));
        }
        match self.varying && self.below(2) == 0 {
            true => v2(client, to, Some(self.salt())),
            false => v2(client, to, None),
        }
    }

    fn destination(&self, mode: u32, client: SocketAddr, to: u8) -> SocketAddr {
        match mode {
            udp_header::SPP => (Ipv6Addr::from(u128::from(to)), 53).into(),
            _ => destination(client, to),
        }
    }

    pub fn salt(&self) -> u32 {
        self.salt.set(self.salt.get() + 1);
        // Some come again, most do not.
        self.salt.get() % 50
    }

    pub fn garbage(
        &self,
        mode: u32,
        rule: Option<HeaderRule>,
    ) -> (Vec<u8>, Result<Owner, Refusal>) {
        // What announces no header is a client's own where that is optional.
        let kinds = if rule == Some(HeaderRule::Optional) { 1 } else { 2 };
        match (mode, self.below(kinds)) {
            (udp_header::SPP, 0) => (vec![0x56, 0xec, 1], Err(Refusal::SppShort)),
            (udp_header::SPP, _) => (b"GET /".to_vec(), Err(Refusal::SppMagic)),
            (udp_header::SESSION, _) => (b"PROXY TCP5 ".to_vec(), Err(Refusal::V1Protocol)),
            (_, 0) => (b"PROXY TCP4 192.0.2.1".to_vec(), Err(Refusal::Incomplete)),
            _ => (b"GET /".to_vec(), Err(Refusal::NotProxy)),
        }
    }

    /// What the model expects, and what that does to its sessions.
    pub fn fate(
        &self,
        worker: usize,
        port: usize,
        path: &Path,
        header: &[u8],
        owner: Result<Owner, Refusal>,
        alone: bool,
    ) -> Fate {
        let now = self.now.get();
        let trusted = self.trusts(worker, path);
        let mut sessions = self.sessions[worker].borrow_mut();
        let between = (self.ports[port].id, *path);
        if header.is_empty() {
            return match sessions.get_mut(&between) {
                Some(session) => {
                    session.last_used = now;
                    let owner = self.owner_now(port, path, session.owner);
                    self.possible(worker, owner).map_or_else(Fate::Refused, Fate::Delivered)
                }
                None if trusted => Fate::Refused(Refusal::NoSession),
                None => Fate::Refused(Refusal::PeerNotAllowed),
            };
        }
        // A header is framed before anyone asks whose it is, and decoded only after that.
        let framed = !matches!(
            owner,
            Err(Refusal::SppShort
                | Refusal::SppMagic
                | Refusal::V1Protocol
                | Refusal::Incomplete
                | Refusal::NotProxy)
        );
        let judged = match owner {
            _ if framed && !trusted => Err(Refusal::PeerNotAllowed),
            Ok(owner) => self.possible(worker, owner),
            refused => refused,
        };
        if self.modes[port] != udp_header::SESSION {
            return judged.map_or_else(Fate::Refused, Fate::Delivered);
        }
        match judged {
            Err(refusal) => {
                sessions.remove(&between);
                Fate::Refused(refusal)
            }
            Ok(owner) => {
                if !sessions.contains_key(&between) && sessions.len() >= self.limits.sessions {
                    let idlest = sessions.iter().min_by_key(|(path, it)| (it.last_used, **path));
                    if let Some(idlest) = idlest.map(|(path, _)| *path) {
                        sessions.remove(&idlest);
                    }
                }
                let session = ModelSession { owner, header: header.to_vec(), last_used: now };
                let before = sessions.insert(between, session);
                if before.is_none_or(|before| before.header != header) {
                    self.summarise(|summary| summary.accepted += 1);
                }
                if alone {
                    Fate::Nothing
                } else {
                    Fate::Delivered(owner)
                }
            }
        }
    }

    /// Compares what became of a batch with what the model expected.
    pub fn judge(&self, worker: usize, numbers: &[usize]) {
        let expected = self.expected.borrow();
        let mut refusals = Vec::new();
        for number in numbers {
            let datagram = &expected[*number];
            // Another worker that had its turn meanwhile has judged its own.
            if datagram.worker != worker {
                continue;
            }
            match datagram.fate {
                Fate::Refused(refusal) => {
                    refusals.push(refusal);
                    self.summarise(|summary| summary.refused += 1);
                    if refusal == Refusal::NoSession {
                        self.summarise(|summary| summary.without_session += 1);
                    }
                }
                Fate::Delivered(_) if datagram.over_limit => {
                    self.check(!datagram.delivered, || format!("datagram {number} was refused"));
                }
                Fate::Delivered(owner) if !datagram.delivered => {
                    self.summarise(|summary| summary.failed += 1);
                    let failed = self.failed.borrow().get(&(worker, datagram.port, owner)).copied();
                    let excused = failed.is_some_and(|at| self.now.get() < at + 1_000);
                    self.check(excused, || format!("datagram {number} of {owner:?} was lost"));
                }
                Fate::Delivered(_) | Fate::Nothing => {}
            }
        }
        let seen = self.refusals[worker].borrow();
        self.check(*seen == refusals, || format!("refused {seen:?}, expected {refusals:?}"));
    }

    /// The sockets of a port's listener: how many, and how many of them a worker serves.
    fn sockets_of_listener(&self, port: usize, worker: Option<usize>) -> usize {
        let listener = self.ports[port].listener;
        let sockets = self.sockets.borrow();
        let of_listener =
            sockets.live.values().filter(|it| self.ports[it.port].listener == listener);
        of_listener.filter(|it| worker.is_none() || it.watched.map(|at| at.0) == worker).count()
    }

    /// Whether a port's listener has as many flows as it may.
    pub fn is_at_limit(&self, port: usize) -> bool {
        self.max_flows[port].is_some_and(|most| self.sockets_of_listener(port, None) >= most)
    }

    /// A datagram is refused because its listener has as many flows as it may.
    pub fn refused_by_limit(&self, worker: usize, port: usize, received: &Received) {
        self.check(self.is_at_limit(port), || format!("port {port} is not at its limit"));
        let own = self.sockets_of_listener(port, Some(worker));
        self.check(own == 0, || format!("one of {own} flows could have made room"));
        self.summarise(|summary| summary.refused_by_limit += 1);
        let number = received.data.last_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let mut expected = self.expected.borrow_mut();
        let Some(datagram) = number.and_then(|number| expected.get_mut(number as usize)) else {
            return;
        };
        datagram.over_limit = true;
    }

    /// The upstream answers on some sockets, and a worker relays it.
    pub fn reply(&self) {
        let mut numbers: Vec<u64> = {
            let sockets = self.sockets.borrow();
            sockets.live.iter().filter(|(_, it)| it.sent).map(|(number, _)| *number).collect()
        };
        numbers.sort_unstable();
        for number in numbers {
            if self.below(3) == 0 {
                continue;
            }
            let count = 1 + self.below(2 * ROOM_FOR_REPLIES as u64);
            let watched = {
                let mut sockets = self.sockets.borrow_mut();
                let Some(waiting) = sockets.live.get_mut(&number) else { continue };
                for _ in 0..count {
                    waiting.replies.push_back(self.next_reply.replace(self.next_reply.get() + 1));
                }
                waiting.watched
            };
            let Some((worker, key)) = watched else {
                self.fail(|| format!("nobody receives the replies of socket {number}"));
                continue;
            };
            let mut edge = SimulatedEdge { world: self, worker, replies: 0 };
            self.workers[worker].borrow_mut().relay_replies(&mut edge, key, 4);
            edge.send_replies();
            let left = self.sockets.borrow().live.get(&number).map(|it| it.replies.len());
            self.check(left == Some(0), || format!("replies are left: {left:?}"));
        }
    }

    pub fn check_bounds(&self) {
        let here: usize = self.workers.iter().map(|worker| worker.borrow().flows()).sum();
        let active = self.counter(Counter::FlowsActive);
        self.check(active == here as i64, || format!("{active} flows counted, {here} there"));
        for (port, most) in self.max_flows.iter().enumerate() {
            let count = self.sockets_of_listener(port, None);
            self.check(most.is_none_or(|most| count <= most), || {
                format!("{count} flows of the listener of port {port}, at most {most:?}")
            });
        }
        let open = self.sockets.borrow().live.len();
        self.check(open == here, || format!("{open} sockets for {here} flows"));
    }

    /// Lets everything become idle, and looks whether anything is left.
    pub fn finish(&self) -> Result<Summary, String> {
        self.now.set(self.now.get() + self.close_after + 1_001);
        for (worker, engine) in self.workers.iter().enumerate() {
            let mut edge = SimulatedEdge { world: self, worker, replies: 0 };
            let mut engine = engine.borrow_mut();
            engine.expire(&mut edge);
            let (flows, sessions) = (engine.flows(), engine.sessions.len());
            self.check(flows == 0 && sessions == 0, || {
                format!("{flows} flows and {sessions} sessions are left")
            });
            let deadline = engine.next_deadline();
            self.check(deadline.is_none(), || format!("a deadline at {deadline:?} is left"));
        }
        self.check_bounds();
        let opened = self.counter(Counter::FlowsOpened);
        let ended = {
            let summary = self.summary.borrow();
            summary.evicted + summary.expired + summary.redirected
        };
        self.check(opened == ended as i64, || format!("{opened} flows opened, {ended} ended"));
        let open: usize = self.directories.iter().map(|directory| directory.open()).sum();
        self.check(open == 0, || format!("{open} flows are left in the directory"));
        let accepted = self.counter(Counter::HeadersV2) as u64;
        let expected = self.summary.borrow().accepted;
        self.check(accepted == expected, || format!("{accepted} headers counted, {expected} came"));
        let lost = self.counter(Counter::DatagramsLost) as u64;
        let summary = *self.summary.borrow();
        let expected = self.lost.get() + summary.failed;
        self.check(lost == expected, || format!("{lost} datagrams counted lost, {expected} were"));
        let up = self.counter(Counter::DatagramsUp) as u64;
        self.check(up == summary.delivered, || format!("{up} datagrams counted"));
        self.error.borrow_mut().take().map_or(Ok(summary), Err)
    }
}
