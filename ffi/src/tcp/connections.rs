//! A TCP connection's way: accept, subnet check, header, verdict, connect, relay.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use super::pending::{Limits, Pending};
use super::ports::Exhausted;
use super::silence::{Outcome, Silence};
use super::watch::{Due, Watch, Watched};
use crate::abi::layout::{carrier, level, protocol, Event, MAX_HEADER};
use crate::header::frame::{self, Frame};
use crate::net::socket::{self, RawAddr, Source, TcpOptions};
use crate::observe::access::{Account, Ending};
use crate::observe::events::EventKind;
use crate::observe::refusal::Refusal;
use crate::observe::stats::{Counter, Histogram};
use crate::proxy::service::lock;
use crate::tcp::relay::{Party, Relay, Side, Tools, Turn};
use crate::trust::allowed::Allowed;
use crate::worker::deadlines::Deadlines;
use crate::worker::poll::{Interest, Key, Token};
use crate::worker::slab::Slab;
use crate::worker::{client_of, Context};

/// Connections accepted before the others have their turn.
const ACCEPTS_A_TURN: usize = 32;
/// How long accepting pauses when descriptors or memory have run out.
const PAUSE_MS: u64 = 100;

/// The listening socket and all its connections.
pub struct Listening {
    socket: Option<RawFd>,
    acceptable: bool,
    /// When accepting goes on, while it pauses.
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
    silence: Silence,
    exhausted: Exhausted,
    tools: Tools,
    allowed: Allowed,
}

struct Connection {
    client: Side,
    peer: SocketAddr,
    phase: Phase,
    /// Waits in `ready`.
    queued: bool,
    accepted_at: u64,
    /// Its entry in the access log, where there is one.
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
    source: Source,
    service: SocketAddr,
    /// When it was asked to connect.
    asked_at: u64,
    watched: Watched,
}

/// Why a connection ends.
enum End {
    /// It was refused; nothing was relayed.
    Refused,
    /// It made room for others before its header was complete.
    Evicted,
    /// The service could not be reached; an error of 0 is a timeout.
    Unreachable(i32),
    /// The relay is over, with the error that broke it, if any.
    Over(Option<i32>),
    /// No byte moved for the idle timeout.
    Idle,
    /// The program stops.
    Stopped,
}

impl Connection {
    /// Whether something that was sent may not have been delivered.
    fn owes(&self) -> bool {
        match &self.phase {
            Phase::Relaying(upstream) => upstream.relay.owes(&self.client, &upstream.side),
            Phase::Header(_) | Phase::Connecting(_) => true,
        }
    }
}

impl Listening {
    /// Starts with the listener's socket; without one there is nothing to do.
    pub fn start(cx: &Context) -> io::Result<Listening> {
        let settings = &cx.listener.service.settings;
        let socket = lock(&cx.listener.tcp).as_ref().map(AsRawFd::as_raw_fd);
        if let Some(socket) = socket {
            cx.poll.add(socket, Token::TcpListener, Interest::Readable)?;
        }
        let most_connections = cx.listener.service.connections_a_listener();
        let limits = Limits::of_a_listener(cx.listener.service.listeners(), most_connections);
        Ok(Listening {
            socket,
            acceptable: false,
            resume_at: None,
            most_connections,
            pending: Pending::new(limits),
            connections: Slab::default(),
            ready: Vec::new(),
            ready_now: Vec::new(),
            header_deadlines: Deadlines::new(settings.header_timeout.as_millis() as u64),
            connect_deadlines: Deadlines::new(settings.connect_timeout.as_millis() as u64),
            watch: Watch::new(settings),
            tools: Tools::new(cx.listener.service.pipes_a_listener()),
            silence: Silence::default(),
            exhausted: Exhausted::default(),
            allowed: Allowed::default(),
        })
    }

    /// The listening socket has connections.
    pub fn set_acceptable(&mut self) {
        self.acceptable = true;
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
            self.resume_at,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// An event on one side of a connection.
    pub fn on_event(&mut self, cx: &mut Context, token: Token, bits: u32) {
        let (key, of_client) = match token {
            Token::Client(key) => (key, true),
            Token::Upstream(key) => (key, false),
            _ => return,
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        match &mut connection.phase {
            _ if of_client => connection.client.note(bits),
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
        if std::mem::take(&mut self.acceptable) {
            self.accept(cx);
        }
    }

    /// Ends every connection.
    pub fn end_all(&mut self, cx: &Context) {
        for key in self.connections.keys() {
            self.end(cx, key, End::Stopped);
        }
    }

    /// Stops accepting; whether every connection has ended.
    pub fn stop(&mut self, cx: &Context) -> bool {
        if self.socket.take().is_some() {
            *lock(&cx.listener.tcp) = None;
            self.resume_at = None;
            self.acceptable = false;
        }
        self.connections.len() == 0
    }

    fn accept(&mut self, cx: &mut Context) {
        let Some(socket) = self.socket else { return };
        for _ in 0..ACCEPTS_A_TURN {
            // Nobody gives way for nobody.
            if self.is_full() && !socket::is_waiting(socket) {
                return;
            }
            if !self.make_room(cx) {
                return self.pause_accepting(cx, socket, libc::EMFILE);
            }
            match socket::accept(socket) {
                Ok((client, peer)) => self.admit(cx, client, peer),
                Err(error) => match error.raw_os_error() {
                    Some(errno @ (libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                        if !socket::is_waiting(socket) {
                            return;
                        }
                        if !self.evict(cx, self.pending.oldest_of_most()) {
                            return self.pause_accepting(cx, socket, errno);
                        }
                    }
                    // EAGAIN: that was all. Anything else concerns the one connection that is gone
                    // (ECONNABORTED, a network error: accept(2)); level-triggered epoll comes back.
                    _ => return,
                },
            }
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() >= self.most_connections
    }

    /// Ends connections without a header until there is room for one more. Whether there is.
    fn make_room(&mut self, cx: &mut Context) -> bool {
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
            connection.client.note(libc::EPOLLIN as u32);
            self.advance(cx, key);
        }
        self.end_pending(cx, key);
        true
    }

    /// Ends a connection that still has no header.
    fn end_pending(&mut self, cx: &Context, key: Key) {
        let siblings = self.pending.siblings(key.index);
        let Some(Connection { phase: Phase::Header(so_far), peer, .. }) = self.connections.get(key)
        else {
            return;
        };
        cx.listener.stats.refuse(Refusal::Evicted);
        let event = Event::new(EventKind::HeaderEvicted, level::WARN);
        let (refusal, value) = (Refusal::Evicted as u8, siblings as u32);
        let event = Event { refusal, value, peer: (*peer).into(), ..event };
        cx.tell_limited(event.with_sample(so_far));
        self.end(cx, key, End::Evicted);
    }

    fn pause_accepting(&mut self, cx: &Context, socket: RawFd, errno: i32) {
        cx.poll.remove(socket);
        self.resume_at = Some(cx.now + PAUSE_MS);
        cx.listener.stats.add(Counter::AcceptPauses, 1);
        let event = Event::new(EventKind::AcceptPaused, level::WARN);
        cx.tell_limited(Event { errno, value: PAUSE_MS as u32, ..event });
    }

    fn admit(&mut self, cx: &mut Context, client: OwnedFd, peer: RawAddr) {
        let stats = &cx.listener.stats;
        stats.add(Counter::Accepted, 1);
        let Some(peer) = peer.socket_addr() else { return };
        self.allowed.refresh(&cx.listener.service);
        if !self.allowed.allows(Some(peer)) {
            stats.refuse(Refusal::PeerNotAllowed);
            let event = Event::new(EventKind::PeerRefused, level::WARN);
            let refusal = Refusal::PeerNotAllowed as u8;
            return cx.tell_limited(Event { refusal, peer: peer.into(), ..event });
        }
        stats.add(Counter::ConnectionsActive, 1);
        let fd = client.as_raw_fd();
        let key = self.connections.insert(Connection {
            client: Side::new(client),
            peer,
            phase: Phase::Header(Vec::new()),
            queued: false,
            accepted_at: cx.now,
            account: None,
        });
        self.header_deadlines.push(key.index, cx.now);
        self.pending.enter(key.index, peer.ip());
        if cx.poll.add(fd, Token::Client(key), Interest::Changes).is_err() {
            return self.end(cx, key, End::Refused);
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
            if !connection.client.is_readable() {
                return None;
            }
            let peer = connection.peer;
            let received = match connection.client.receive(&mut self.tools.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => 0,
            };
            if received == 0 {
                return Some(refuse(cx, peer, Refusal::Incomplete, so_far));
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
                Frame::Refused(refusal) => {
                    self.silence.count(Outcome::Spoke);
                    return Some(refuse(cx, peer, refusal, bytes));
                }
                Frame::Header(length) => {
                    let payload: Box<[u8]> = bytes[length..].into();
                    let header = &bytes[..length];
                    let source = match cx.decode(header, carrier::STREAM, peer) {
                        Ok(source) => source,
                        Err(refusal) => {
                            self.silence.count(Outcome::Spoke);
                            return Some(refuse(cx, peer, refusal, header));
                        }
                    };
                    if source != Source::Own {
                        self.silence.count(Outcome::Spoke);
                    }
                    connection.account = cx.account(protocol::TCP, header, peer, source);
                    let took = cx.now - connection.accepted_at;
                    cx.listener.stats.observe(Histogram::HeaderTime, took);
                    return self.connect(cx, key, source, payload);
                }
            }
        }
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
        source: Source,
        payload: Box<[u8]>,
    ) -> Option<End> {
        self.header_deadlines.remove(key.index);
        self.pending.leave(key.index);
        let connection = self.connections.get(key)?;
        let peer = connection.peer;
        let settings = &cx.listener.service.settings;
        // The verdict was that there is one.
        let Some(service) = settings.upstream(source, peer) else {
            return Some(refuse(cx, peer, Refusal::ClientFamily, &[]));
        };
        let client = connection.client.fd.as_raw_fd();
        let dscp = socket::peer_dscp(client);
        socket::set_dscp(client, peer, dscp);
        let options = TcpOptions {
            mark: settings.mark,
            reno: settings.wants_reno(service),
            dscp,
            no_search: self.exhausted.knows(source, service, cx.now),
        };
        let open = || {
            let opened = socket::connect_tcp(source, service, options)?;
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
                if opened.port_fallback {
                    tell_fallback(cx, connection.peer, source, service);
                }
                let mut upstream = Upstream {
                    side: Side::new(opened.socket),
                    relay: Relay::owing(payload),
                    source,
                    service,
                    asked_at: cx.now,
                    watched: Watched::new(cx.now),
                };
                let greeted = upstream.relay.greet(&mut upstream.side, &mut self.tools);
                connection.phase = Phase::Connecting(upstream);
                match greeted {
                    Ok(true) => self.establish(cx, key),
                    Ok(false) => self.connect_deadlines.push(key.index, cx.now),
                    Err(errno) => {
                        return Some(self.failed_to_connect(cx, key, source, service, errno));
                    }
                }
                None
            }
            Err(error) if socket::is_other_source(&error) => {
                cx.refuse_other_source(peer, source, service);
                Some(End::Refused)
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let no_port = errno == libc::EADDRNOTAVAIL
                    && (options.no_search || socket::has_way_to(service));
                if !no_port {
                    return Some(self.failed_to_connect(cx, key, source, service, errno));
                }
                if !options.no_search {
                    self.exhausted.note(source, service, cx.now);
                }
                Some(self.find_no_port(cx, key, source, service))
            }
        }
    }

    /// Ends the connection whose turn it is to make room. Whether there was one.
    fn end_oldest(&mut self, cx: &Context) -> bool {
        let oldest = self.pending.oldest_of_most();
        let Some(key) = oldest.and_then(|slot| self.connections.key_at(slot)) else { return false };
        self.end_pending(cx, key);
        true
    }

    fn unreachable(&mut self, cx: &Context, key: Key, errno: i32) -> End {
        let Some(connection) = self.connections.get(key) else { return End::Unreachable(errno) };
        let Phase::Connecting(upstream) = &connection.phase else {
            return End::Unreachable(errno);
        };
        let (source, service) = (upstream.source, upstream.service);
        self.failed_to_connect(cx, key, source, service, errno)
    }

    /// Counts and logs that no port is free towards the service.
    fn find_no_port(&self, cx: &Context, key: Key, source: Source, service: SocketAddr) -> End {
        let errno = libc::EADDRNOTAVAIL;
        let stats = &cx.listener.stats;
        stats.add(Counter::PortsExhausted, 1);
        stats.add(Counter::ConnectErrors, 1);
        stats.fail_to_connect(errno);
        let peer = self.connections.get(key).map(|connection| connection.peer.into());
        let event = Event::new(EventKind::PortsExhausted, level::WARN);
        cx.tell_limited(Event {
            errno,
            peer: peer.unwrap_or_default(),
            client: client_of(source),
            upstream: service.into(),
            ..event
        });
        End::Unreachable(errno)
    }

    /// Tells why the service was not reached; an `errno` of 0 is a timeout.
    fn failed_to_connect(
        &mut self,
        cx: &Context,
        key: Key,
        source: Source,
        service: SocketAddr,
        errno: i32,
    ) -> End {
        let stats = &cx.listener.stats;
        if errno == 0 {
            stats.add(Counter::ConnectTimeouts, 1);
        } else {
            stats.add(Counter::ConnectErrors, 1);
            stats.fail_to_connect(errno);
        }
        let peer = self.connections.get(key).map(|connection| connection.peer);
        cx.tell_failure(EventKind::ConnectFailed, errno, peer, source, service);
        End::Unreachable(errno)
    }

    fn establish(&mut self, cx: &Context, key: Key) {
        self.connect_deadlines.remove(key.index);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let phase = std::mem::replace(&mut connection.phase, Phase::Header(Vec::new()));
        let Phase::Connecting(mut upstream) = phase else { return };
        upstream.watched = Watched::new(cx.now);
        self.watch.push(key.index, cx.now);
        cx.listener.stats.add(Counter::Connected, 1);
        cx.listener.stats.observe(Histogram::ConnectTime, cx.now - upstream.asked_at);
        if cx.listener.logs(level::DEBUG) {
            let event = Event::new(EventKind::ConnectionOpened, level::DEBUG);
            cx.listener.tell(described(event, connection.peer, &upstream));
        }
        connection.phase = Phase::Relaying(upstream);
    }

    fn relay(&mut self, cx: &Context, key: Key) -> Option<End> {
        let connection = self.connections.get_mut(key)?;
        let Phase::Relaying(upstream) = &mut connection.phase else { return None };
        let turn = upstream.relay.turn(&mut connection.client, &mut upstream.side, &mut self.tools);
        let (up, down) = (upstream.relay.up.take_bytes(), upstream.relay.down.take_bytes());
        cx.listener.stats.add(Counter::BytesUp, up);
        cx.listener.stats.add(Counter::BytesDown, down);
        if up + down > 0 {
            upstream.watched.moved_at = cx.now;
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
                if let Some(Connection { phase: Phase::Header(so_far), peer, .. }) =
                    self.connections.get(key)
                {
                    let end = refuse(cx, *peer, Refusal::Timeout, so_far);
                    if so_far.is_empty() {
                        let most = self.silence.count(Outcome::TimedOut);
                        most.into_iter().for_each(|timed_out| tell_silence(cx, timed_out));
                    }
                    self.end(cx, key, end);
                }
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
        if self.resume_at.is_some_and(|at| at <= cx.now) {
            self.resume_accepting(cx);
        }
    }

    /// Looks at a connection that is relayed; why it ends, if it does.
    fn look_at(&mut self, cx: &Context, key: Key) -> Option<End> {
        let connection = self.connections.get_mut(key)?;
        let Phase::Relaying(upstream) = &mut connection.phase else { return None };
        let keepalive = self.watch.keepalive;
        match self.watch.look(&mut upstream.watched, cx.now) {
            Due::Nothing => {}
            Due::Idle => return Some(End::Idle),
            Due::Hosts { first } => {
                let sides = [(&connection.client, Party::Client), (&upstream.side, Party::Service)];
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
        self.watch.push(key.index, cx.now);
        None
    }

    fn resume_accepting(&mut self, cx: &Context) {
        let Some(socket) = self.socket else { return };
        let resumed =
            !self.is_full() && cx.poll.add(socket, Token::TcpListener, Interest::Readable).is_ok();
        self.resume_at = (!resumed).then_some(cx.now + PAUSE_MS);
    }

    /// Closes both sides; a relay that broke is reset, so that each end learns it.
    fn end(&mut self, cx: &Context, key: Key, end: End) {
        self.header_deadlines.remove(key.index);
        self.connect_deadlines.remove(key.index);
        self.watch.remove(key.index);
        self.pending.leave(key.index);
        let Some(mut connection) = self.connections.remove(key) else { return };
        if let Some(account) = connection.account.take() {
            tell_account(cx, account, &connection, &end);
        }
        let stats = &cx.listener.stats;
        stats.lower(Counter::ConnectionsActive);
        if let End::Idle = end {
            stats.add(Counter::IdleTimeouts, 1);
        }
        let reset = match end {
            End::Refused => false,
            // A stream that is cut short must not look complete.
            End::Idle | End::Stopped => connection.owes(),
            // A reset leaves no socket behind that waits in the kernel.
            End::Evicted | End::Unreachable(_) => true,
            End::Over(error) => error.is_some(),
        };
        if reset {
            socket::reset_on_close(connection.client.fd.as_raw_fd());
        }
        let Phase::Relaying(upstream) = connection.phase else { return };
        if reset {
            socket::reset_on_close(upstream.side.fd.as_raw_fd());
        }
        if cx.listener.logs(level::DEBUG) {
            let mut event = Event::new(EventKind::ConnectionClosed, level::DEBUG);
            if let End::Over(Some(errno)) = end {
                event.errno = errno;
            }
            cx.listener.tell(described(event, connection.peer, &upstream));
        }
    }
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

/// Logs that a connection ends without a header that we take, and what came in its place.
fn refuse(cx: &Context, peer: SocketAddr, refusal: Refusal, came: &[u8]) -> End {
    cx.listener.stats.refuse(refusal);
    if refusal.is_of_client() || refusal == Refusal::ForwardingLoop {
        if let Some(event) = cx.refused_client(refusal, peer) {
            cx.tell_limited(event);
        }
        return End::Refused;
    }
    // Load balancers and monitors probe a port by opening and closing it.
    let silent = came.is_empty() && matches!(refusal, Refusal::Incomplete | Refusal::Timeout);
    if silent {
        cx.listener.stats.add(Counter::Silent, 1);
    }
    let kind = match refusal {
        Refusal::Timeout => EventKind::HeaderTimeout,
        _ => EventKind::HeaderRefused,
    };
    let event = Event::new(kind, if silent { level::DEBUG } else { level::WARN });
    let (refusal, value) = (refusal as u8, came.len() as u32);
    let event = Event { refusal, value, peer: peer.into(), ..event }.with_sample(came);
    if silent {
        cx.listener.tell(event);
    } else {
        cx.tell_limited(event);
    }
    End::Refused
}

/// Logs, once a process, that most connections time out without a byte.
fn tell_silence(cx: &Context, timed_out: u32) {
    if cx.listener.service.told_silence.swap(true, Ordering::Relaxed) {
        return;
    }
    let event = Event::new(EventKind::MostlySilent, level::WARN);
    cx.listener.tell(Event { value: timed_out, ..event });
}

/// Counts and tells that a client's port could not be had.
pub fn tell_fallback(cx: &Context, peer: SocketAddr, source: Source, service: SocketAddr) {
    cx.listener.stats.add(Counter::PortFallbacks, 1);
    let client = client_of(source);
    let event = Event::new(EventKind::PortFallback, level::DEBUG);
    cx.listener.tell(Event {
        value: u32::from(client.port),
        peer: peer.into(),
        client,
        upstream: service.into(),
        ..event
    });
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
        End::Stopped => (Ending::Stopped, 0),
        End::Unreachable(0) => (Ending::ConnectTimeout, 0),
        End::Unreachable(errno) => (Ending::ConnectFailed, errno),
        End::Over(None) => match relay.map(Relay::finished_first) {
            Some(Party::Service) => (Ending::ServiceClosed, 0),
            _ => (Ending::ClientClosed, 0),
        },
        End::Over(Some(errno)) => match relay.and_then(Relay::failed) {
            Some(Party::Service) => (Ending::ServiceBroke, errno),
            _ => (Ending::ClientBroke, errno),
        },
    };
    record.ending = ending as u8;
    record.errno = errno;
    record.duration_ms = cx.now - connection.accepted_at;
    if let Some(relay) = relay {
        record.bytes_up = relay.up.taken();
        record.bytes_down = relay.down.taken();
    }
    cx.listener.tell_account(account);
}

fn described(event: Event, peer: SocketAddr, upstream: &Upstream) -> Event {
    Event {
        peer: peer.into(),
        client: client_of(upstream.source),
        upstream: upstream.service.into(),
        ..event
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
