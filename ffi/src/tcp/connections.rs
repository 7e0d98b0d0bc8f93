//! A TCP connection: accept, subnet check, header, decision, connect, relay.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;

use super::offloading::{Hosts, Look, Offloading};
use super::pending::{Limits, Pending};
use super::ports::Exhausted;
use super::watch::{Due, Watch, Watched};
use crate::abi::layout::{carrier, level, phase, protocol, ConnectionRecord, Event, MAX_HEADER};
use crate::header::frame::{self, Frame};
use crate::net::socket::{self, RawAddr, Source, TcpOptions};
use crate::observe::access::{Account, Ending};
use crate::observe::events::EventKind;
use crate::observe::refusal::Refusal;
use crate::observe::silence::Outcome;
use crate::observe::stats::{Counter, Histogram};
use crate::offload::translation::Pair;
use crate::proxy::port::Transport;
use crate::proxy::quota::{Counted, Quota};
use crate::proxy::seats::{Seat, Seats};
use crate::proxy::survey::{Part, Survey};
use crate::proxy::table::Snapshot;
use crate::tcp::relay::{Party, Relay, Side, Tools, Turn};
use crate::trust::table::HeaderRule;
use crate::worker::deadlines::Deadlines;
use crate::worker::decision::Decision;
use crate::worker::poll::{Interest, Key, Token};
use crate::worker::served::Served;
use crate::worker::slab::Slab;
use crate::worker::Context;

/// Connections accepted before the others have their turn.
const ACCEPTS_A_TURN: usize = 32;
/// Enough of these for a full queue (listen(2)).
const LAST_TURNS: usize = 4096 / ACCEPTS_A_TURN;
/// How long accepting pauses when descriptors or memory have run out.
const PAUSE_MS: u64 = 100;

/// A worker's listening sockets and all its connections.
pub struct Connections {
    listening: Slab<Listening>,
    /// By the number of their sockets.
    by_port: HashMap<u32, Key>,
    /// Listening sockets that have connections.
    acceptable: Vec<Key>,
    /// Sockets on which accepting is paused.
    paused: Vec<Key>,
    /// When accepting resumes, while it is paused.
    resume_at: Option<u64>,
    /// As many connections as there are descriptors for both their sides.
    most_connections: usize,
    connections: Slab<Connection>,
    /// Those that have more to move without waiting for an event.
    ready: Vec<Key>,
    ready_now: Vec<Key>,
    /// Those whose header is not complete.
    pending: Pending,
    header_deadlines: Deadlines,
    connect_deadlines: Deadlines,
    watch: Watch,
    /// When connections that the kernel relays are looked at.
    offload_looks: Deadlines,
    /// The program stops, and those with which the kernel goes on were left to it.
    has_left: bool,
    /// Listeners that were closed, and when their last connections end.
    closed: Vec<(u64, u32)>,
    exhausted: Exhausted,
    tools: Tools,
}

/// A listening socket.
struct Listening {
    socket: RawFd,
    served: Rc<Served>,
}

impl Listening {
    /// The number of its sockets.
    fn id(&self) -> u32 {
        self.served.port.tcp.as_ref().map_or(0, |sockets| sockets.id)
    }
}

struct Connection {
    /// By which it was accepted.
    served: Rc<Served>,
    peer: Side,
    peer_address: SocketAddr,
    /// What the peer must send first.
    rule: HeaderRule,
    phase: Phase,
    /// Waits in `ready`.
    queued: bool,
    accepted_at: u64,
    /// Its place among the listener's connections.
    _counted: Counted,
    /// Its place among its client's, where those are limited.
    seat: Option<Seat>,
    /// Its entry in the access log, if there is one.
    account: Option<Box<Account>>,
}

enum Phase {
    /// The header so far: empty until a first piece came.
    Header(Vec<u8>),
    Connecting(Upstream),
    Relaying(Upstream),
}

struct Upstream {
    side: Side,
    relay: Relay,
    decision: Decision,
    /// When it was asked to connect.
    asked_at: u64,
    watched: Watched,
    offloading: Offloading,
    /// When it ended, where that is not known at once.
    ended_at: Option<u64>,
}

/// Why a connection ends.
enum End {
    /// It was refused; nothing was relayed.
    Refused,
    /// It made room for others before its header was complete.
    Evicted,
    /// The upstream could not be reached; an error of 0 is a timeout.
    Unreachable(i32),
    /// The relay is over, with the error that broke it, if any.
    Over(Option<i32>),
    /// No byte moved for the idle timeout.
    Idle,
    /// The program stops.
    Stopped,
    /// The program stops, and the kernel goes on with it.
    Left,
    /// The operator closes it.
    Closed,
}

impl Connection {
    /// Its state.
    fn record(&self, cx: &Context) -> ConnectionRecord {
        let record = ConnectionRecord {
            age_ms: cx.now - self.accepted_at,
            idle_ms: cx.now - self.accepted_at,
            peer: self.peer_address.into(),
            listener: self.served.id(),
            worker: cx.worker.index,
            protocol: protocol::TCP as u8,
            phase: phase::HEADER,
            ..ConnectionRecord::default()
        };
        let (upstream, phase) = match &self.phase {
            Phase::Header(_) => return record,
            Phase::Connecting(upstream) => (upstream, phase::CONNECTING),
            Phase::Relaying(upstream) if upstream.offloading.is_offloaded() => {
                (upstream, phase::OFFLOADED)
            }
            Phase::Relaying(upstream) => (upstream, phase::RELAYED),
        };
        ConnectionRecord {
            phase,
            idle_ms: cx.now - upstream.watched.moved_at,
            client: upstream.decision.client(),
            upstream: upstream.decision.upstream.into(),
            bytes_up: upstream.relay.up.taken(),
            bytes_down: upstream.relay.down.taken(),
            ..record
        }
    }

    /// Whether the kernel goes on with it when this program ends.
    fn is_lasting(&self) -> bool {
        matches!(&self.phase, Phase::Relaying(upstream) if upstream.offloading.is_lasting())
    }

    /// Whether something that was sent may not have been delivered.
    fn owes(&self) -> bool {
        match &self.phase {
            Phase::Relaying(upstream) => upstream.relay.owes(&self.peer, &upstream.side),
            Phase::Header(_) | Phase::Connecting(_) => true,
        }
    }
}

impl Connection {
    /// Counts what was delivered since the last look, where the kernel relays it.
    fn count_offloaded(&mut self) {
        let Phase::Relaying(upstream) = &mut self.phase else { return };
        if !upstream.offloading.is_offloaded() {
            return;
        }
        let relay = &mut upstream.relay;
        let hosts = hosts(&self.served);
        let (Look::Goes { bytes, .. } | Look::Ended { bytes, .. }) =
            upstream.offloading.look(relay, [&mut self.peer, &mut upstream.side], hosts);
        relay.up.count(bytes[0]);
        relay.down.count(bytes[1]);
        let stats = &self.served.stats;
        stats.add(Counter::BytesUp, relay.up.take_bytes());
        stats.add(Counter::BytesDown, relay.down.take_bytes());
    }
}

impl Connections {
    /// Without a listening socket and a budget yet: see `follow`.
    pub fn new() -> Connections {
        Connections {
            listening: Slab::default(),
            by_port: HashMap::new(),
            acceptable: Vec::new(),
            paused: Vec::new(),
            resume_at: None,
            most_connections: 0,
            pending: Pending::new(Limits::of_a_worker(1, 0)),
            connections: Slab::default(),
            ready: Vec::new(),
            ready_now: Vec::new(),
            header_deadlines: Deadlines::default(),
            connect_deadlines: Deadlines::default(),
            watch: Watch::default(),
            offload_looks: Deadlines::default(),
            has_left: false,
            closed: Vec::new(),
            tools: Tools::new(0),
            exhausted: Exhausted::default(),
        }
    }

    /// Follows a change of the listeners: serves the sockets of new ports, and those that stay in the
    /// new way; accepts what waits at the others, and closes them. Connections continue, also if there are
    /// more than their budget has now.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn follow(&mut self, cx: &mut Context, now: &Snapshot) -> io::Result<()> {
        let worker = cx.worker.index;
        let workers = cx.worker.proxy.settings.workers;
        let budgets = now.budgets.of_a_worker(workers);
        self.most_connections = budgets.connections;
        self.pending.limit(Limits::of_a_worker(workers, budgets.connections));
        self.tools.pipes.limit(budgets.pipes);
        let mut gone = std::mem::take(&mut self.by_port);
        for listener in &now.listeners {
            for port in &listener.ports {
                let Some(sockets) = &port.tcp else { continue };
                let known = gone.remove(&sockets.id);
                if let Some(listening) = known.and_then(|key| self.listening.get_mut(key)) {
                    if !Arc::ptr_eq(&listening.served.listener, listener) {
                        let served = Served::new(worker, listener, port, Transport::Tcp);
                        listening.served = Rc::new(served);
                    }
                    self.by_port.extend(known.map(|key| (sockets.id, key)));
                    continue;
                }
                let Some(socket) = sockets.fd(worker) else { continue };
                let served = Rc::new(Served::new(worker, listener, port, Transport::Tcp));
                let key = self.listening.insert(Listening { socket, served });
                cx.poll.add(socket, Token::TcpListener(key), Interest::Readable)?;
                self.by_port.insert(sockets.id, key);
            }
        }
        for key in gone.into_values() {
            // Whoever has connected already was promised a connection.
            self.accept_rest(cx, key);
            self.close(cx, key);
        }
        Ok(())
    }

    /// From a time on no connection of a closed listener is left.
    pub fn end_later(&mut self, listener: u32, at: u64) {
        self.closed.push((at, listener));
    }

    /// A listening socket has connections.
    pub fn set_acceptable(&mut self, key: Key) {
        self.acceptable.push(key);
    }

    /// Whether `turn` has something to do without an event.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When `turn` must be called at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        let deadlines = [
            self.header_deadlines.next(),
            self.connect_deadlines.next(),
            self.watch.next(),
            self.offload_looks.next(),
            self.resume_at,
            self.closed.iter().map(|(at, _)| *at).min(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// An event on one side of a connection.
    pub fn on_event(&mut self, cx: &mut Context, token: Token, bits: u32) {
        let (key, of_peer) = match token {
            Token::Peer(key) => (key, true),
            Token::Upstream(key) => (key, false),
            _ => return,
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        match &mut connection.phase {
            _ if of_peer => connection.peer.note(bits),
            Phase::Connecting(upstream) | Phase::Relaying(upstream) => upstream.side.note(bits),
            Phase::Header(_) => {}
        }
        self.advance(cx, key);
    }

    /// Everything that is due: connections with more to move, deadlines, new connections.
    pub fn turn(&mut self, cx: &mut Context) {
        let mut ready = std::mem::take(&mut self.ready_now);
        std::mem::swap(&mut ready, &mut self.ready);
        for key in ready.drain(..) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.queued = false;
                self.advance(cx, key);
            }
        }
        self.ready_now = ready;
        self.pass_deadlines(cx);
        let mut acceptable = std::mem::take(&mut self.acceptable);
        for key in acceptable.drain(..) {
            self.accept(cx, key);
        }
        self.acceptable = acceptable;
    }

    /// Ends every connection, but for those with which the kernel goes on.
    pub fn end_all(&mut self, cx: &Context) {
        self.leave(cx);
        for key in self.connections.keys() {
            self.end(cx, key, End::Stopped);
        }
    }

    /// Leaves connections to the kernel that need nothing of this program.
    fn leave(&mut self, cx: &Context) {
        for key in self.connections.keys() {
            if self.connections.get(key).is_some_and(Connection::is_lasting) {
                self.end(cx, key, End::Left);
            }
        }
    }

    /// Stops accepting; whether every connection has ended.
    pub fn stop(&mut self, cx: &Context) -> bool {
        if self.listening.len() > 0 {
            for key in self.listening.keys() {
                self.close(cx, key);
            }
            self.by_port.clear();
            self.acceptable.clear();
            self.paused.clear();
            self.resume_at = None;
        }
        if !self.has_left && cx.offload().is_some_and(|offload| offload.leaves()) {
            // Those that follow are left at the next look at them.
            self.has_left = true;
            self.leave(cx);
        }
        self.connections.len() == 0
    }

    /// Accepts nothing from these sockets, by their numbers; connections continue.
    pub fn pause(&mut self, cx: &Context, going: &HashSet<u32>) {
        // Sockets on which accepting is paused are checked again with the others.
        for key in std::mem::take(&mut self.paused) {
            let Some(listening) = self.listening.get(key) else { continue };
            if !going.contains(&listening.id()) {
                let _ = cx.poll.add(listening.socket, Token::TcpListener(key), Interest::Readable);
            }
        }
        self.resume_at = None;
        for listening in self.of_sockets(going).filter_map(|key| self.listening.get(key)) {
            cx.poll.remove(listening.socket);
        }
    }

    /// Accepts from them again.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn resume(&mut self, cx: &Context, going: &HashSet<u32>) -> io::Result<()> {
        self.of_sockets(going).try_for_each(|key| {
            let Some(listening) = self.listening.get(key) else { return Ok(()) };
            cx.poll.add(listening.socket, Token::TcpListener(key), Interest::Readable)
        })
    }

    /// Gives them up: another program accepts from them. What waits at the others is accepted.
    pub fn release(&mut self, cx: &mut Context, going: &HashSet<u32>) {
        for key in self.listening.keys() {
            let left = self.listening.get(key).is_some_and(|it| !going.contains(&it.id()));
            if left {
                self.accept_rest(cx, key);
            }
            self.close(cx, key);
        }
        self.by_port.clear();
    }

    fn of_sockets<'a>(&'a self, going: &'a HashSet<u32>) -> impl Iterator<Item = Key> + 'a {
        let of_one = |(id, key): (&u32, &Key)| going.contains(id).then_some(*key);
        self.by_port.iter().filter_map(of_one)
    }

    /// Closes a listening socket.
    fn close(&mut self, cx: &Context, key: Key) {
        let Some(Listening { socket, served }) = self.listening.remove(key) else { return };
        // Another program may have it, too: then closing does not end the watch (epoll(7)).
        cx.poll.remove(socket);
        if let Some(sockets) = &served.port.tcp {
            sockets.close(cx.worker.index);
        }
    }

    fn accept(&mut self, cx: &mut Context, key: Key) {
        let Some(listening) = self.listening.get(key) else { return };
        let (socket, served) = (listening.socket, listening.served.clone());
        for _ in 0..ACCEPTS_A_TURN {
            // Evict only if a connection is waiting.
            if self.is_full() && !socket::is_waiting(socket) {
                return;
            }
            if !self.make_room(cx) {
                return self.pause_accepting(cx, key, libc::EMFILE);
            }
            match socket::accept(socket) {
                Ok((peer, address)) => self.admit(cx, &served, peer, address),
                Err(error) => match error.raw_os_error() {
                    Some(errno @ (libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                        if !socket::is_waiting(socket) {
                            return;
                        }
                        if !self.evict(cx, self.pending.oldest_of_most()) {
                            return self.pause_accepting(cx, key, errno);
                        }
                    }
                    // EAGAIN: that was all. Anything else concerns the one connection that is gone
                    // (ECONNABORTED, a network error: accept(2)); level-triggered epoll comes back.
                    _ => return,
                },
            }
        }
    }

    /// Accepts what waits at a socket that is about to be closed.
    fn accept_rest(&mut self, cx: &mut Context, key: Key) {
        for _ in 0..LAST_TURNS {
            let waits = self.listening.get(key).is_some_and(|it| socket::is_waiting(it.socket));
            if !waits {
                return;
            }
            self.accept(cx, key);
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() >= self.most_connections
    }

    /// Ends connections without a header until there is room for one more. Whether there is.
    fn make_room(&mut self, cx: &mut Context) -> bool {
        if self.connections.len() > self.most_connections {
            // A smaller budget: the end of one would make no room.
            return false;
        }
        while self.is_full() {
            if !self.evict(cx, self.pending.oldest_of_most()) {
                return false;
            }
        }
        true
    }

    /// Ends a connection without a header, unless the header has come meanwhile. Whether there was one.
    fn evict(&mut self, cx: &mut Context, slot: Option<u32>) -> bool {
        let Some(key) = slot.and_then(|slot| self.connections.key_at(slot)) else { return false };
        if let Some(connection) = self.connections.get_mut(key) {
            // In a burst, headers wait in their sockets: epoll has not said so yet.
            connection.peer.note(libc::EPOLLIN as u32);
            self.advance(cx, key);
        }
        self.end_pending(cx, key);
        true
    }

    /// Ends a connection that still has no header.
    fn end_pending(&mut self, cx: &Context, key: Key) {
        let siblings = self.pending.siblings(key.index);
        let Some(connection) = self.connections.get(key) else { return };
        let Connection { phase: Phase::Header(so_far), served, .. } = connection else { return };
        served.stats.refuse(Refusal::Evicted);
        let event = Event::new(EventKind::HeaderEvicted, level::WARN);
        let (refusal, value) = (Refusal::Evicted as u8, siblings as u32);
        let event = Event { refusal, value, peer: connection.peer_address.into(), ..event };
        cx.tell_limited(served, event.with_sample(so_far));
        self.end(cx, key, End::Evicted);
    }

    fn pause_accepting(&mut self, cx: &Context, key: Key, errno: i32) {
        let Some(Listening { socket, served }) = self.listening.get(key) else { return };
        cx.poll.remove(*socket);
        self.paused.push(key);
        self.resume_at = Some(cx.now + PAUSE_MS);
        served.stats.add(Counter::AcceptPauses, 1);
        let event = Event::new(EventKind::AcceptPaused, level::WARN);
        cx.tell_limited(served, Event { errno, value: PAUSE_MS as u32, ..event });
    }

    fn admit(&mut self, cx: &mut Context, served: &Rc<Served>, peer: OwnedFd, address: RawAddr) {
        let stats = &served.stats;
        stats.add(Counter::Accepted, 1);
        let Some(peer_address) = address.socket_addr() else { return };
        let listener = &served.listener;
        let Some(rule) = listener.rule_of(peer_address) else {
            return refuse_peer(cx, served, peer_address, Refusal::PeerNotAllowed);
        };
        let most = listener.settings.max_connections;
        let Some(counted) = Quota::take(&listener.lasting.connections, most) else {
            return refuse_peer(cx, served, peer_address, Refusal::TooManyConnections);
        };
        stats.add(Counter::ConnectionsActive, 1);
        let fd = peer.as_raw_fd();
        let key = self.connections.insert(Connection {
            served: served.clone(),
            peer: Side::new(peer),
            peer_address,
            rule,
            phase: Phase::Header(Vec::new()),
            queued: false,
            accepted_at: cx.now,
            _counted: counted,
            seat: None,
            account: None,
        });
        let settings = &listener.settings;
        let timeout = match rule {
            HeaderRule::Optional => settings.optional_wait,
            HeaderRule::Require | HeaderRule::Skip => settings.header_timeout,
        };
        self.header_deadlines.push(key.index, cx.now, timeout);
        self.pending.enter(key.index, peer_address.ip());
        if cx.poll.add(fd, Token::Peer(key), Interest::Changes).is_err() {
            return self.end(cx, key, End::Refused);
        }
        if rule == HeaderRule::Skip {
            if let Some(end) = self.connect_bare(cx, key, Box::default()) {
                self.end(cx, key, end);
            }
            return;
        }
        self.evict(cx, self.pending.oldest_of_too_many(key.index));
    }

    /// Takes a connection as far as it goes without waiting.
    fn advance(&mut self, cx: &mut Context, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let end = match &mut connection.phase {
            Phase::Header(_) => self.read_header(cx, key),
            Phase::Connecting(upstream) => {
                let fd = upstream.side.fd.as_raw_fd();
                let errno = if upstream.side.has_failed() { socket::take_error(fd) } else { 0 };
                if errno == libc::ECONNRESET {
                    // It was established, and reset before we looked.
                    upstream.relay.break_off(errno);
                } else if errno != 0 {
                    let end = self.unreachable(cx, key, errno);
                    return self.end(cx, key, end);
                }
                if upstream.side.is_writable() {
                    self.establish(cx, key);
                    self.relay(cx, key)
                } else {
                    None
                }
            }
            Phase::Relaying(_) => self.relay(cx, key),
        };
        if let Some(end) = end {
            self.end(cx, key, end);
        }
    }

    fn read_header(&mut self, cx: &mut Context, key: Key) -> Option<End> {
        loop {
            let connection = self.connections.get_mut(key)?;
            let Phase::Header(so_far) = &mut connection.phase else { return None };
            if !connection.peer.is_readable() {
                return None;
            }
            let served = &connection.served;
            let peer = connection.peer_address;
            let is_optional = connection.rule == HeaderRule::Optional;
            let received = match connection.peer.receive(&mut self.tools.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // Reset: nobody is there to be relayed.
                Err(_) => {
                    return Some(refuse(cx, served, peer, Refusal::Incomplete, so_far));
                }
            };
            if received == 0 {
                // It may wait for an answer anyway, and its end is passed on.
                if is_optional && !frame::announces_header(so_far) {
                    let payload = std::mem::take(so_far).into();
                    return self.connect_bare(cx, key, payload);
                }
                return Some(refuse(cx, served, peer, Refusal::Incomplete, so_far));
            }
            // One piece is the rule, and needs no copy; more pieces are collected.
            let piece = &self.tools.buffer[..received];
            let is_first = so_far.is_empty();
            let bytes = if is_first {
                piece
            } else {
                collect(so_far, piece);
                &so_far[..]
            };
            match frame::stream(bytes) {
                Frame::Partial => {
                    if is_first {
                        collect(so_far, piece);
                    }
                    let held = so_far.capacity();
                    self.pending.hold(key.index, held);
                    self.keep_budget(cx, key);
                }
                Frame::Refused(Refusal::NotProxy) if is_optional => {
                    let payload = bytes.into();
                    return self.connect_bare(cx, key, payload);
                }
                Frame::Refused(refusal) => {
                    served.silence.borrow_mut().count(Outcome::Spoke);
                    return Some(refuse(cx, served, peer, refusal, bytes));
                }
                Frame::Header(length) => {
                    let payload: Box<[u8]> = bytes[length..].into();
                    let header = &bytes[..length];
                    let fd = connection.peer.fd.as_raw_fd();
                    let Some(addressed) = addressed_port(served, fd) else {
                        return Some(refuse(cx, served, peer, Refusal::Incomplete, header));
                    };
                    let stream = carrier::STREAM;
                    let decision = match cx.decide(served, header, stream, peer, addressed) {
                        Ok(decision) => decision,
                        Err(refusal) => {
                            served.silence.borrow_mut().count(Outcome::Spoke);
                            return Some(refuse(cx, served, peer, refusal, header));
                        }
                    };
                    cx.count_accepted(served, &decision);
                    if decision.source != Source::Own {
                        served.silence.borrow_mut().count(Outcome::Spoke);
                    }
                    connection.account = cx.account(served, protocol::TCP, header, peer, &decision);
                    let took = cx.now - connection.accepted_at;
                    served.stats.observe(Histogram::HeaderTime, took);
                    return self.connect(cx, key, decision, payload);
                }
            }
        }
    }

    /// Relays a peer that sends no header as the client, with what it has sent so far.
    fn connect_bare(&mut self, cx: &mut Context, key: Key, payload: Box<[u8]>) -> Option<End> {
        let connection = self.connections.get_mut(key)?;
        let (served, peer) = (&connection.served, connection.peer_address);
        let local = socket::local_address(connection.peer.fd.as_raw_fd());
        let decision = match cx.decide_bare(served, peer, local.unwrap_or(served.port.listen)) {
            Ok(decision) => decision,
            Err(refusal) => return Some(refuse(cx, served, peer, refusal, &[])),
        };
        cx.count_accepted(served, &decision);
        connection.account = cx.account(served, protocol::TCP, &[], peer, &decision);
        self.connect(cx, key, decision, payload)
    }

    /// Ends connections, this one or others, while half-read headers hold more bytes than they may.
    fn keep_budget(&mut self, cx: &Context, key: Key) {
        while let Some(slot) = self.pending.oldest_of_too_much(key.index) {
            let Some(victim) = self.connections.key_at(slot) else { return };
            self.end_pending(cx, victim);
        }
    }

    fn connect(
        &mut self,
        cx: &mut Context,
        key: Key,
        decision: Decision,
        payload: Box<[u8]>,
    ) -> Option<End> {
        self.header_deadlines.remove(key.index);
        self.pending.leave(key.index);
        let connection = self.connections.get_mut(key)?;
        let (served, peer) = (connection.served.clone(), connection.peer_address);
        let settings = &served.listener.settings;
        let Decision { source, upstream } = decision;
        if let (Source::Client(client), Some(most)) = (source, settings.max_connections_per_client)
        {
            connection.seat = Seats::take(&served.listener.lasting.seats, client.ip(), most);
            if connection.seat.is_none() {
                return Some(refuse(cx, &served, peer, Refusal::TooManyOfClient, &[]));
            }
        }
        let fd = connection.peer.fd.as_raw_fd();
        let dscp = socket::peer_dscp(fd);
        socket::set_dscp(fd, peer, dscp);
        let options = TcpOptions {
            mark: settings.mark,
            reno: cx.worker.proxy.reno_over_loopback && upstream.ip().is_loopback(),
            dscp,
            no_search: self.exhausted.knows(source, upstream, cx.now),
            // What the upstream sends is to fit the peer's path, once nobody cuts it anew.
            largest_segment: cx
                .offload()
                .and_then(|_| socket::largest_segment_of_path(fd, peer.is_ipv4())),
        };
        // A connection that the kernel relays has its client's port without a socket.
        let taken = match (source, cx.offload()) {
            (Source::Client(client), Some(offload)) => offload.holds(client, upstream),
            _ => false,
        };
        let from = match source {
            Source::Client(client) if taken => Source::Client(SocketAddr::new(client.ip(), 0)),
            source => source,
        };
        let open = || {
            let opened = socket::connect_tcp(from, upstream, options)?;
            let fd = opened.socket.as_raw_fd();
            cx.poll.add(fd, Token::Upstream(key), Interest::Changes)?;
            Ok(opened)
        };
        let mut opened = open();
        while opened.as_ref().is_err_and(socket::is_out_of_descriptors) && self.end_oldest(cx) {
            opened = open();
        }
        match opened {
            Ok(opened) => {
                let connection = self.connections.get_mut(key)?;
                if opened.port_fallback || taken {
                    cx.tell_fallback(&served, peer, &decision);
                }
                let mut towards = Upstream {
                    side: Side::new(opened.socket),
                    relay: Relay::owing(payload),
                    decision,
                    asked_at: cx.now,
                    watched: Watched::new(cx.now),
                    offloading: Offloading::default(),
                    ended_at: None,
                };
                let sent = towards.relay.send_early_payload(&mut towards.side, &mut self.tools);
                connection.phase = Phase::Connecting(towards);
                match sent {
                    Ok(true) => self.establish(cx, key),
                    Ok(false) => {
                        let timeout = settings.connect_timeout;
                        self.connect_deadlines.push(key.index, cx.now, timeout);
                    }
                    Err(errno) => {
                        return Some(failed_to_connect(cx, &served, peer, &decision, errno))
                    }
                }
                None
            }
            Err(error) if socket::is_other_source(&error) => {
                cx.refuse_other_source(&served, peer, &decision);
                Some(End::Refused)
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let no_port = errno == libc::EADDRNOTAVAIL
                    && (options.no_search || socket::has_way_to(upstream));
                if !no_port {
                    return Some(failed_to_connect(cx, &served, peer, &decision, errno));
                }
                if !options.no_search {
                    self.exhausted.note(source, upstream, cx.now);
                }
                Some(find_no_port(cx, &served, peer, &decision))
            }
        }
    }

    /// Evicts a connection to make room. Returns whether there was one.
    fn end_oldest(&mut self, cx: &Context) -> bool {
        let oldest = self.pending.oldest_of_most();
        let Some(key) = oldest.and_then(|slot| self.connections.key_at(slot)) else { return false };
        self.end_pending(cx, key);
        true
    }

    fn unreachable(&mut self, cx: &Context, key: Key, errno: i32) -> End {
        match self.connections.get(key) {
            Some(Connection {
                phase: Phase::Connecting(upstream), served, peer_address, ..
            }) => failed_to_connect(cx, served, *peer_address, &upstream.decision, errno),
            _ => End::Unreachable(errno),
        }
    }

    fn establish(&mut self, cx: &Context, key: Key) {
        self.connect_deadlines.remove(key.index);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let phase = std::mem::replace(&mut connection.phase, Phase::Header(Vec::new()));
        let Phase::Connecting(mut upstream) = phase else { return };
        upstream.watched = Watched::new(cx.now);
        let Served { listener, stats, .. } = &*connection.served;
        self.watch.push(key.index, cx.now, &listener.settings);
        stats.add(Counter::Connected, 1);
        stats.observe(Histogram::ConnectTime, cx.now - upstream.asked_at);
        if cx.worker.logs(level::DEBUG) {
            let event = Event::new(EventKind::ConnectionOpened, level::DEBUG);
            let event = upstream.decision.described(event, connection.peer_address);
            cx.tell(&connection.served, event);
        }
        connection.phase = Phase::Relaying(upstream);
    }

    fn relay(&mut self, cx: &Context, key: Key) -> Option<End> {
        let connection = self.connections.get_mut(key)?;
        let Phase::Relaying(upstream) = &mut connection.phase else { return None };
        if upstream.offloading.is_offloaded() {
            return None;
        }
        let turn = upstream.relay.turn(&mut connection.peer, &mut upstream.side, &mut self.tools);
        let (up, down) = (upstream.relay.up.take_bytes(), upstream.relay.down.take_bytes());
        let stats = &connection.served.stats;
        stats.add(Counter::BytesUp, up);
        stats.add(Counter::BytesDown, down);
        if up + down > 0 {
            upstream.watched.moved_at = cx.now;
        }
        if let (Some(offload), Turn::Waiting | Turn::Ready) = (cx.offload(), &turn) {
            let age = cx.now - upstream.asked_at;
            let sides = [&connection.peer, &upstream.side];
            let pair = || pair(connection.peer_address, &upstream.decision, sides);
            let look = upstream.offloading.advance(offload, age, &upstream.relay, sides, pair);
            if let Some(ahead) = look {
                stats.add(Counter::Offloaded, 1);
                self.offload_looks.push(key.index, cx.now, ahead);
            }
        }
        match turn {
            Turn::Waiting => None,
            Turn::Ready => {
                if !connection.queued {
                    connection.queued = true;
                    self.ready.push(key);
                }
                None
            }
            Turn::Ended(error) => Some(End::Over(error)),
        }
    }

    fn pass_deadlines(&mut self, cx: &mut Context) {
        while let Some(index) = self.header_deadlines.pop_due(cx.now) {
            if let Some(key) = self.connections.key_at(index) {
                self.time_out(cx, key);
            }
        }
        while let Some(index) = self.connect_deadlines.pop_due(cx.now) {
            if let Some(key) = self.connections.key_at(index) {
                let end = self.unreachable(cx, key, 0);
                self.end(cx, key, end);
            }
        }
        while let Some(index) = self.watch.pop_due(cx.now) {
            if let Some(key) = self.connections.key_at(index) {
                if let Some(end) = self.look_at(cx, key) {
                    self.end(cx, key, end);
                }
            }
        }
        while let Some(index) = self.offload_looks.pop_due(cx.now) {
            if let Some(key) = self.connections.key_at(index) {
                if let Some(end) = self.look_at_offloaded(cx, key) {
                    self.end(cx, key, end);
                }
            }
        }
        if self.resume_at.is_some_and(|at| at <= cx.now) {
            self.resume_accepting(cx);
        }
        while let Some(due) = self.closed.iter().position(|(at, _)| *at <= cx.now) {
            let (_, listener) = self.closed.swap_remove(due);
            self.end_of_listener(cx, listener);
        }
    }

    /// Ends a connection whose header did not come in time; one whose header is optional is relayed
    /// without, unless it has begun one.
    fn time_out(&mut self, cx: &mut Context, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            if connection.rule == HeaderRule::Optional {
                // A header that has come meanwhile, of which epoll has not said so yet, is not payload.
                connection.peer.note(libc::EPOLLIN as u32);
                self.advance(cx, key);
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let settings = &connection.served.listener.settings;
        let (wait, accepted_at) = (settings.header_timeout, connection.accepted_at);
        // The lists of deadlines are as many as their lengths: this is the same for each connection.
        let rest = wait.saturating_sub(settings.optional_wait);
        let is_optional = connection.rule == HeaderRule::Optional;
        let Phase::Header(so_far) = &mut connection.phase else { return };
        if is_optional && !frame::announces_header(so_far) {
            let payload = std::mem::take(so_far).into();
            if let Some(end) = self.connect_bare(cx, key, payload) {
                self.end(cx, key, end);
            }
            return;
        }
        if is_optional && cx.now < accepted_at + wait {
            return self.header_deadlines.push(key.index, cx.now, rest);
        }
        let Some(connection) = self.connections.get(key) else { return };
        let Connection { phase: Phase::Header(so_far), served, .. } = connection else { return };
        let end = refuse(cx, served, connection.peer_address, Refusal::Timeout, so_far);
        if so_far.is_empty() {
            let most = served.silence.borrow_mut().count(Outcome::TimedOut);
            most.into_iter().for_each(|timed_out| tell_silence(cx, served, timed_out));
        }
        self.end(cx, key, end);
    }

    /// Ends what is left of a listener that was closed.
    fn end_of_listener(&mut self, cx: &Context, listener: u32) {
        for key in self.connections.keys() {
            if self.connections.get(key).is_some_and(|it| it.served.id() == listener) {
                self.end(cx, key, End::Stopped);
            }
        }
    }

    /// Lists the connections that are requested, or closes them.
    pub fn survey(&mut self, cx: &Context, survey: &Survey, part: &mut Part) {
        for key in self.connections.keys() {
            let Some(connection) = self.connections.get(key) else { continue };
            let record = connection.record(cx);
            if !survey.selection.matches(record.listener, &record.client, &record.peer) {
                continue;
            }
            survey.list(part, record);
            if survey.selection.closes {
                self.end(cx, key, End::Closed);
            }
        }
    }

    /// Looks at a connection whose packets the kernel translates; why it ends, if it does.
    fn look_at_offloaded(&mut self, cx: &Context, key: Key) -> Option<End> {
        // What has arrived at its sockets meanwhile goes first.
        if let Some(end) = self.relay(cx, key) {
            return Some(end);
        }
        let connection = self.connections.get_mut(key)?;
        let Phase::Relaying(upstream) = &mut connection.phase else { return None };
        let Upstream { relay, offloading, side, watched, .. } = &mut *upstream;
        let hosts = hosts(&connection.served);
        let look = offloading.look(relay, [&mut connection.peer, side], hosts);
        let (Look::Goes { bytes, .. } | Look::Ended { bytes, .. }) = look;
        relay.up.count(bytes[0]);
        relay.down.count(bytes[1]);
        let (up, down) = (relay.up.take_bytes(), relay.down.take_bytes());
        let stats = &connection.served.stats;
        stats.add(Counter::BytesUp, up);
        stats.add(Counter::BytesDown, down);
        if up + down > 0 {
            watched.moved_at = cx.now;
        }
        match look {
            Look::Goes { .. } if self.has_left && upstream.offloading.is_lasting() => {
                Some(End::Left)
            }
            Look::Goes { again, .. } => {
                self.offload_looks.push(key.index, cx.now, again);
                None
            }
            Look::Ended { first, error, ago, .. } => {
                upstream.ended_at = Some(cx.now.saturating_sub(ago));
                let relay = &mut upstream.relay;
                if error.is_some() {
                    relay.give_up(first);
                }
                relay.end_elsewhere(first);
                Some(End::Over(error))
            }
        }
    }

    /// Looks at a connection that is relayed; why it ends, if it does.
    fn look_at(&mut self, cx: &Context, key: Key) -> Option<End> {
        let connection = self.connections.get_mut(key)?;
        let Phase::Relaying(upstream) = &mut connection.phase else { return None };
        let settings = &connection.served.listener.settings;
        let keepalive = settings.keepalive;
        match upstream.watched.look(settings, cx.now) {
            Due::Nothing => {}
            Due::Idle => return Some(End::Idle),
            // See `look_at_offloaded`.
            Due::Hosts { .. } if upstream.offloading.is_handed_over() => {}
            Due::Hosts { first } => {
                let sides = [(&connection.peer, Party::Peer), (&upstream.side, Party::Upstream)];
                for (side, party) in sides {
                    if first {
                        // As late as the first question could be due: a short connection needs none,
                        // nor the kernel's timers for it. One that cannot be asked is looked at all
                        // the same.
                        let _ = keepalive.apply(side.fd.as_raw_fd());
                    }
                    if keepalive.has_lost(side.fd.as_raw_fd()) {
                        upstream.relay.give_up(party);
                        return Some(End::Over(Some(libc::ETIMEDOUT)));
                    }
                }
            }
        }
        self.watch.push(key.index, cx.now, settings);
        None
    }

    fn resume_accepting(&mut self, cx: &Context) {
        self.resume_at = None;
        if self.is_full() {
            self.resume_at = Some(cx.now + PAUSE_MS);
            return;
        }
        for key in std::mem::take(&mut self.paused) {
            let Some(Listening { socket, .. }) = self.listening.get(key) else { continue };
            if cx.poll.add(*socket, Token::TcpListener(key), Interest::Readable).is_err() {
                self.paused.push(key);
                self.resume_at = Some(cx.now + PAUSE_MS);
            }
        }
    }

    /// Closes both sides; a relay that broke is reset, so that each end learns it.
    fn end(&mut self, cx: &Context, key: Key, end: End) {
        self.header_deadlines.remove(key.index);
        self.connect_deadlines.remove(key.index);
        self.watch.remove(key.index);
        self.offload_looks.remove(key.index);
        self.pending.leave(key.index);
        let Some(mut connection) = self.connections.remove(key) else { return };
        connection.count_offloaded();
        if let Some(account) = connection.account.take() {
            tell_account(cx, account, &connection, &end);
        }
        let stats = &connection.served.stats;
        stats.lower(Counter::ConnectionsActive);
        if let End::Idle = end {
            stats.add(Counter::IdleTimeouts, 1);
        }
        let reset = match end {
            // It has no sockets.
            End::Refused | End::Left => false,
            // A stream that is cut short must not look complete.
            End::Idle | End::Stopped | End::Closed => connection.owes(),
            // A reset leaves no socket behind that waits in the kernel.
            End::Evicted | End::Unreachable(_) => true,
            End::Over(error) => error.is_some(),
        };
        if reset {
            connection.peer.fd.reset_on_close();
        }
        let Phase::Relaying(upstream) = connection.phase else { return };
        if reset {
            upstream.side.fd.reset_on_close();
        }
        if cx.worker.logs(level::DEBUG) {
            let mut event = Event::new(EventKind::ConnectionClosed, level::DEBUG);
            if let End::Over(Some(errno)) = end {
                event.errno = errno;
            }
            let event = upstream.decision.described(event, connection.peer_address);
            cx.tell(&connection.served, event);
        }
        let Upstream { side, offloading, .. } = upstream;
        if let End::Left = end {
            return offloading.stay();
        }
        let fds = [&connection.peer, &side].map(|side| side.fd.as_raw_fd());
        if !reset && offloading.is_handed_over() && !offloading.is_offloaded() {
            fds.iter().for_each(|fd| socket::finish_on_close(*fd));
        }
        // A host that does not answer has told the other one nothing.
        let by_end = matches!(end, End::Over(Some(errno)) if errno != libc::ETIMEDOUT);
        let cut = matches!(end, End::Over(Some(_)) | End::Idle | End::Stopped | End::Closed);
        if cut && offloading.leave(fds, by_end) {
            // Its sockets have its addresses: they go first.
            drop((connection.peer, side));
            offloading.reset(connection.served.listener.settings.mark);
        }
    }
}

/// How the hosts of a listener's connections are asked whether they are there.
fn hosts(served: &Served) -> Hosts {
    let settings = &served.listener.settings;
    Hosts { keepalive: settings.keepalive, mark: settings.mark }
}

/// Both connections of a relay; `None` where an address cannot be asked for.
fn pair(peer: SocketAddr, decision: &Decision, [of_peer, of_upstream]: [&Side; 2]) -> Option<Pair> {
    let local = |side: &Side| socket::local_address(side.fd.as_raw_fd()).ok();
    let (listen, client) = (local(of_peer)?, local(of_upstream)?);
    Some(Pair { peer, listen, client, upstream: decision.upstream })
}

/// The port that a connection was addressed to, asked where the upstream depends on it: what TPROXY hands
/// over keeps its destination as the socket's own address.
fn addressed_port(served: &Served, fd: RawFd) -> Option<u16> {
    if !served.port.upstreams.follow_port() {
        return Some(served.port.listen.port());
    }
    socket::local_address(fd).ok().map(|local| local.port())
}

/// Adds a piece to a header that is not complete. The room for it grows twofold, but not beyond the
/// largest header.
fn collect(so_far: &mut Vec<u8>, piece: &[u8]) {
    let needed = so_far.len() + piece.len();
    if needed > so_far.capacity() {
        let room = needed.max(MAX_HEADER.min(2 * so_far.capacity()));
        so_far.reserve_exact(room - so_far.len());
    }
    so_far.extend_from_slice(piece);
}

/// Counts and logs that a connection is closed at once, whatever it would have sent.
fn refuse_peer(cx: &Context, served: &Served, peer: SocketAddr, refusal: Refusal) {
    served.stats.refuse(refusal);
    let event = Event::new(EventKind::PeerRefused, level::WARN);
    cx.tell_limited(served, Event { refusal: refusal as u8, peer: peer.into(), ..event });
}

/// Logs that a connection ends without a valid header, and what was received instead.
fn refuse(cx: &Context, served: &Served, peer: SocketAddr, refusal: Refusal, came: &[u8]) -> End {
    served.stats.refuse(refusal);
    if refusal.is_of_client() || refusal == Refusal::ForwardingLoop {
        if let Some(event) = cx.refused_client(served, refusal, peer) {
            cx.tell_limited(served, event);
        }
        return End::Refused;
    }
    // Load balancers and monitors probe a port by opening and closing it.
    let silent = came.is_empty() && matches!(refusal, Refusal::Incomplete | Refusal::Timeout);
    if silent {
        served.stats.add(Counter::Silent, 1);
    }
    let kind = match refusal {
        Refusal::Timeout => EventKind::HeaderTimeout,
        _ => EventKind::HeaderRefused,
    };
    let event = Event::new(kind, if silent { level::DEBUG } else { level::WARN });
    let (refusal, value) = (refusal as u8, came.len() as u32);
    let event = Event { refusal, value, peer: peer.into(), ..event }.with_sample(came);
    if silent {
        cx.tell(served, event);
    } else {
        cx.tell_limited(served, event);
    }
    End::Refused
}

/// Logs, once a listener, that most connections time out without a byte.
fn tell_silence(cx: &Context, served: &Served, timed_out: u32) {
    if served.listener.lasting.is_first_silence() {
        let event = Event::new(EventKind::MostlySilent, level::WARN);
        cx.tell(served, Event { value: timed_out, ..event });
    }
}

/// Counts and logs that no port is free towards the upstream.
fn find_no_port(cx: &Context, served: &Served, peer: SocketAddr, decision: &Decision) -> End {
    let errno = libc::EADDRNOTAVAIL;
    let stats = &served.stats;
    stats.add(Counter::PortsExhausted, 1);
    stats.add(Counter::ConnectErrors, 1);
    stats.fail_to_connect(errno);
    let event = Event::new(EventKind::PortsExhausted, level::WARN);
    cx.tell_limited(served, Event { errno, ..decision.described(event, peer) });
    End::Unreachable(errno)
}

/// Tells why the upstream was not reached; an `errno` of 0 is a timeout.
fn failed_to_connect(
    cx: &Context,
    served: &Served,
    peer: SocketAddr,
    decision: &Decision,
    errno: i32,
) -> End {
    let stats = &served.stats;
    if errno == 0 {
        stats.add(Counter::ConnectTimeouts, 1);
    } else {
        stats.add(Counter::ConnectErrors, 1);
        stats.fail_to_connect(errno);
    }
    cx.tell_failure(served, EventKind::ConnectFailed, errno, Some(peer), decision);
    End::Unreachable(errno)
}

/// Closes a connection's entry in the access log. One that was refused has its own line.
fn tell_account(cx: &Context, mut account: Box<Account>, connection: &Connection, end: &End) {
    let record = &mut account.record;
    let relay = match &connection.phase {
        Phase::Relaying(upstream) => Some(&upstream.relay),
        _ => None,
    };
    let (ending, errno) = match *end {
        End::Refused | End::Evicted => return,
        End::Idle => (Ending::Idle, 0),
        End::Stopped | End::Left => (Ending::Stopped, 0),
        End::Closed => (Ending::Closed, 0),
        End::Unreachable(0) => (Ending::ConnectTimeout, 0),
        End::Unreachable(errno) => (Ending::ConnectFailed, errno),
        End::Over(None) => match relay.map(Relay::finished_first) {
            Some(Party::Upstream) => (Ending::UpstreamClosed, 0),
            _ => (Ending::PeerClosed, 0),
        },
        End::Over(Some(errno)) => match relay.and_then(Relay::failed) {
            Some(Party::Upstream) => (Ending::UpstreamBroke, errno),
            _ => (Ending::PeerBroke, errno),
        },
    };
    record.ending = ending as u8;
    record.errno = errno;
    let ended_at = match &connection.phase {
        Phase::Relaying(upstream) => upstream.ended_at,
        _ => None,
    };
    record.duration_ms = ended_at.unwrap_or(cx.now).saturating_sub(connection.accepted_at);
    if let Some(relay) = relay {
        record.bytes_up = relay.up.taken();
        record.bytes_down = relay.down.taken();
    }
    cx.worker.tell_account(account);
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
