//! The edge of the UDP side in the running program: the kernel, the decoder, counters and the log.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use super::edge::{Edge, Kinds, Payload, Received, Sent, Volume};
use super::flow::{Flow, Owner, ReplyRoute};
use super::replies::Replies;
use super::send::{Outgoing, Towards};
use crate::abi::layout::{level, protocol, Event};
use crate::net::socket::{self, Source};
use crate::observe::access::{Account, Ending};
use crate::observe::events::EventKind;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::tcp::connections::tell_fallback;
use crate::trust::allowed::Allowed;
use crate::worker::poll::{Interest, Key, Token};
use crate::worker::{client_of, Context};

const FLOWS_FULL_EVERY_MS: u64 = 60_000;
const FLOW_BUFFER: i32 = 4 << 20;

/// Buffers and what is remembered between turns.
pub struct State {
    /// The listening socket, to reply from; none once it is closed.
    pub socket: Option<RawFd>,
    pub outgoing: Outgoing,
    pub replies: Replies,
    pub allowed: Allowed,
    /// The version of this host's addresses by which headers were judged.
    addresses: u32,
    /// When the log was last told that flows make room.
    full_at: Option<u64>,
}

impl State {
    pub fn new(socket: Option<RawFd>) -> State {
        State {
            socket,
            outgoing: Outgoing::new(),
            replies: Replies::new(),
            allowed: Allowed::default(),
            addresses: 0,
            full_at: None,
        }
    }

    /// Looks whether what headers mean may have changed: who may send them, and whom they may name.
    pub fn look_at_trust(&mut self, cx: &Context) -> bool {
        let before = std::mem::replace(&mut self.addresses, cx.addresses_version());
        self.allowed.refresh(&cx.listener.service) | (before != self.addresses)
    }
}

/// The outside, for the length of a turn.
pub struct Kernel<'a, 'b> {
    pub cx: &'a Context<'b>,
    pub state: &'a mut State,
}

/// An upstream socket, and the family of its upstream.
pub struct Upstream {
    socket: OwnedFd,
    ipv4: bool,
}

/// Sockets of the kernel, and entries of the access log with the time at which the flow began.
pub struct Real;

impl Kinds for Real {
    type Socket = Upstream;
    type Account = (Box<Account>, u64);
}

impl Edge<Real> for Kernel<'_, '_> {
    fn now(&self) -> u64 {
        self.cx.now
    }

    fn allows(&self, peer: SocketAddr) -> bool {
        self.state.allowed.allows(Some(peer))
    }

    fn decode(&mut self, header: &[u8], carrier: u32, peer: SocketAddr) -> Result<Source, Refusal> {
        self.cx.decode(header, carrier, peer)
    }

    fn open(&mut self, owner: Owner, peer: SocketAddr) -> io::Result<Upstream> {
        let settings = &self.cx.listener.service.settings;
        let source = owner.source();
        // The verdict was that there is one.
        let upstream = self.cx.upstream(source, owner.address());
        let upstream = upstream.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let opened = socket::connect_udp(source, upstream, settings.mark)?;
        if opened.port_fallback {
            tell_fallback(self.cx, peer, source, upstream);
        }
        let socket = opened.socket;
        socket::set_receive_buffer(socket.as_raw_fd(), FLOW_BUFFER);
        socket::receive_dscp(socket.as_raw_fd(), upstream);
        Ok(Upstream { socket, ipv4: upstream.is_ipv4() })
    }

    fn watch(&mut self, upstream: &Upstream, key: Key) {
        // Without a watch on it the flow still carries what clients send.
        let _ = self.cx.poll.add(upstream.socket.as_raw_fd(), Token::Flow(key), Interest::Readable);
    }

    fn account(
        &mut self,
        header: &[u8],
        peer: SocketAddr,
        owner: Owner,
    ) -> Option<(Box<Account>, u64)> {
        let account = self.cx.account(protocol::UDP, header, peer, owner.source());
        account.map(|account| (account, self.cx.now))
    }

    fn close_account(
        &mut self,
        (mut account, began): (Box<Account>, u64),
        flow: &Flow<Upstream>,
        ending: Ending,
    ) {
        let (record, traffic) = (&mut account.record, &flow.traffic);
        record.ending = ending as u8;
        record.duration_ms = self.cx.now - began;
        record.datagrams_up = traffic.datagrams_up.load(Ordering::Relaxed);
        record.bytes_up = traffic.bytes_up.load(Ordering::Relaxed);
        record.datagrams_down = traffic.datagrams_down.load(Ordering::Relaxed);
        record.bytes_down = traffic.bytes_down.load(Ordering::Relaxed);
        self.cx.listener.tell_account(account);
    }

    fn keeps_accounts(&self) -> bool {
        self.cx.listener.keeps_accounts()
    }

    fn send<'a>(
        &mut self,
        upstream: &Upstream,
        payloads: impl Iterator<Item = Payload<'a>>,
        segmenting: &mut bool,
    ) -> Sent {
        let towards = Towards { socket: upstream.socket.as_raw_fd(), ipv4: upstream.ipv4 };
        self.state.outgoing.send(towards, payloads, segmenting)
    }

    fn receive_replies(&mut self, upstream: &Upstream, route: &ReplyRoute) -> io::Result<Volume> {
        self.state.replies.receive(upstream.socket.as_raw_fd(), route)
    }

    fn is_full_of_replies(&self) -> bool {
        self.state.replies.is_full()
    }

    fn send_replies(&mut self) {
        let Some(socket) = self.state.socket else { return };
        let sent = self.state.replies.flush(socket);
        self.count(Counter::DatagramsDown, sent.sent);
        self.count(Counter::DatagramBytesDown, sent.bytes);
        if sent.lost > 0 {
            self.count(Counter::DatagramsLost, sent.lost);
        }
    }

    fn clear_error(&mut self, upstream: &Upstream) {
        socket::take_error(upstream.socket.as_raw_fd());
    }

    fn count(&mut self, counter: Counter, by: u64) {
        self.cx.listener.stats.add(counter, by);
    }

    fn lower(&mut self, gauge: Counter) {
        self.cx.listener.stats.lower(gauge);
    }

    fn refuse(&mut self, refusal: Refusal, received: &Received) {
        self.cx.listener.stats.refuse(refusal);
        let peer = received.path.peer.socket_addr();
        let event = Event::new(EventKind::DatagramsRefused, level::WARN);
        let event = Event {
            refusal: refusal as u8,
            peer: peer.map(Into::into).unwrap_or_default(),
            ..event
        };
        if refusal.is_of_client() || refusal == Refusal::ForwardingLoop {
            let named = peer.and_then(|peer| self.cx.refused_client(refusal, peer));
            let Some(Event { client, upstream, .. }) = named else { return };
            return self.cx.tell_limited(Event { client, upstream, ..event });
        }
        self.cx.tell_limited(event.with_sample(received.data));
    }

    fn flow_failed(&mut self, owner: Owner, peer: SocketAddr, errno: i32) {
        let source = owner.source();
        let Some(upstream) = self.cx.upstream(source, owner.address()) else { return };
        if errno == socket::OTHER_SOURCE {
            return self.cx.refuse_other_source(peer, source, upstream);
        }
        self.cx.tell_failure(EventKind::FlowFailed, errno, Some(peer), source, upstream);
    }

    fn flow_opened(&mut self, owner: Owner, peer: SocketAddr) {
        tell_flow(self.cx, EventKind::FlowOpened, owner, Some(peer));
    }

    fn flow_closed(&mut self, owner: Owner) {
        tell_flow(self.cx, EventKind::FlowClosed, owner, None);
    }

    fn flows_full(&mut self, flows: usize) {
        let now = self.cx.now;
        if self.state.full_at.is_none_or(|at| now >= at + FLOWS_FULL_EVERY_MS) {
            self.state.full_at = Some(now);
            let event = Event::new(EventKind::FlowsFull, level::WARN);
            self.cx.listener.tell(Event { value: flows as u32, ..event });
        }
    }
}

fn tell_flow(cx: &Context, kind: EventKind, owner: Owner, peer: Option<SocketAddr>) {
    if !cx.listener.logs(level::DEBUG) {
        return;
    }
    let event = Event::new(kind, level::DEBUG);
    cx.listener.tell(Event {
        peer: peer.map(Into::into).unwrap_or_default(),
        client: client_of(owner.source()),
        upstream: cx.upstream(owner.source(), owner.address()).map(Into::into).unwrap_or_default(),
        ..event
    });
}
