//! The edge of the UDP side in the running program: the kernel, the decoder, counters and the log.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::edge::{self, Edge, Kinds, Payload, Received, Sent, Volume};
use super::flow::{Flow, ReplyRoute};
use super::moved::MovedFlow;
use super::path::Path;
use super::replies::Replies;
use super::reply_sources::{ReplySource, ReplySources};
use super::send::{Outgoing, Towards};
use crate::abi::layout::{level, protocol, AccessRecord, Event};
use crate::net::socket::{self, Source};
use crate::observe::access::{Account, Ending};
use crate::observe::events::EventKind;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::proxy::pairs::{Pair, Pairs};
use crate::proxy::port::Transport;
use crate::proxy::quota::{Counted, Quota};
use crate::trust::table::HeaderRule;
use crate::worker::decision::Decision;
use crate::worker::poll::{Interest, Key, Token};
use crate::worker::served::Served;
use crate::worker::Context;

const FLOWS_FULL_EVERY_MS: u64 = 60_000;
const FLOW_BUFFER: i32 = 4 << 20;

/// Buffers and what is remembered between turns.
pub struct State {
    outgoing: Outgoing,
    replies: Replies,
    /// The sources of the received replies.
    replying: Option<Replying>,
    /// Where transparent listeners reply from.
    pub sources: ReplySources<Rc<OwnedFd>>,
    /// The version of this host's addresses by which headers were judged.
    addresses: u32,
    /// When the eviction of flows was last logged.
    full_at: Option<u64>,
}

/// A port's listening socket, to receive from and to reply from.
pub struct Listening {
    pub socket: RawFd,
    pub served: Served,
}

/// Replies that leave together: of one port, from one socket.
struct Replying {
    port: Rc<Listening>,
    /// Without one: the port's listening socket.
    source: Option<(ReplySource, Rc<OwnedFd>)>,
}

impl State {
    pub fn new() -> State {
        State {
            outgoing: Outgoing::new(),
            replies: Replies::new(),
            replying: None,
            // As many as `Udp::follow` says.
            sources: ReplySources::new(0),
            addresses: 0,
            full_at: None,
        }
    }

    /// Looks whether this host's addresses have changed, and with them what headers mean.
    pub fn look_at_addresses(&mut self, cx: &Context) -> bool {
        let before = std::mem::replace(&mut self.addresses, cx.addresses_version());
        before != self.addresses
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
    /// Given back once the socket is closed: fields are dropped in their order.
    _pair: Option<Pair>,
    _counted: Counted,
}

/// Sockets of the kernel, and entries of the access log with the time at which the flow began.
pub struct Real;

impl Kinds for Real {
    type Socket = Upstream;
    type Account = (Box<Account>, u64);
    type Port = Rc<Listening>;
}

impl Upstream {
    /// The socket.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Kernel<'_, '_> {
    /// An upstream socket that another program had; `None` where the listener has as many flows as it may.
    pub fn adopted(
        &self,
        port: &Listening,
        decision: &Decision,
        socket: OwnedFd,
    ) -> Option<Upstream> {
        let counted = self.counted(port)?;
        let pair = self.pair_of(port, decision);
        let ipv4 = decision.upstream.is_ipv4();
        Some(Upstream { socket, ipv4, _pair: pair, _counted: counted })
    }

    /// A place among the listener's flows.
    fn counted(&self, port: &Listening) -> Option<Counted> {
        let listener = &port.served.listener;
        Quota::take(&listener.lasting.flows, listener.settings.max_flows)
    }

    /// The access log's entry of a flow that another program had, if one is kept here as well.
    pub fn adopted_account(
        &self,
        port: &Listening,
        moved: &MovedFlow,
    ) -> Option<(Box<Account>, u64)> {
        let account = moved.account.as_ref().filter(|_| self.cx.worker.keeps_accounts())?;
        let record = AccessRecord {
            listener: port.served.id(),
            protocol: protocol::UDP as u8,
            version: account.version,
            peer: account.peer,
            client: moved.decision.client(),
            destination: account.destination,
            upstream: moved.decision.upstream.into(),
            ..AccessRecord::default()
        };
        Some((Account::new(record, &account.header), account.began.min(self.cx.now)))
    }

    /// Whose socket may share its port with others, where flows go to their header's destination.
    fn pair_of(&self, port: &Listening, decision: &Decision) -> Option<Pair> {
        match decision.source {
            Source::Client(client) if port.served.port.upstreams.are_many() => {
                Pairs::take(&self.cx.worker.proxy.pairs, client, decision.upstream)
            }
            _ => None,
        }
    }
}

impl Edge<Real> for Kernel<'_, '_> {
    fn now(&self) -> u64 {
        self.cx.now
    }

    fn rule(&self, port: &Rc<Listening>, peer: SocketAddr) -> Option<HeaderRule> {
        port.served.listener.rule_of(peer)
    }

    fn decide(
        &mut self,
        port: &Rc<Listening>,
        header: &[u8],
        carrier: u32,
        path: &Path,
        peer: SocketAddr,
    ) -> Result<Decision, Refusal> {
        let addressed = spoken_to(port, path).port();
        self.cx.decide(&port.served, header, carrier, peer, addressed)
    }

    fn decide_bare(
        &mut self,
        port: &Rc<Listening>,
        path: &Path,
        peer: SocketAddr,
    ) -> Result<Decision, Refusal> {
        self.cx.decide_bare(&port.served, peer, spoken_to(port, path))
    }

    fn count_accepted(&mut self, port: &Rc<Listening>, decision: &Decision) {
        self.cx.count_accepted(&port.served, decision);
    }

    fn open(
        &mut self,
        port: &Rc<Listening>,
        decision: &Decision,
        peer: SocketAddr,
    ) -> io::Result<Upstream> {
        let Decision { source, upstream } = *decision;
        let counted = self.counted(port).ok_or_else(edge::over_limit)?;
        let mark = port.served.listener.settings.mark;
        let pair = self.pair_of(port, decision);
        let opened = socket::connect_udp(source, upstream, mark, pair.is_some())?;
        if opened.port_fallback {
            self.cx.tell_fallback(&port.served, peer, decision);
        }
        let socket = opened.socket;
        socket::set_receive_buffer(socket.as_raw_fd(), FLOW_BUFFER);
        socket::receive_dscp(socket.as_raw_fd(), upstream);
        Ok(Upstream { socket, ipv4: upstream.is_ipv4(), _pair: pair, _counted: counted })
    }

    fn watch(&mut self, upstream: &Upstream, key: Key) {
        // Without a watch on it the flow still carries what clients send.
        let _ = self.cx.poll.add(upstream.socket.as_raw_fd(), Token::Flow(key), Interest::Readable);
    }

    fn account(
        &mut self,
        port: &Rc<Listening>,
        header: &[u8],
        peer: SocketAddr,
        decision: &Decision,
    ) -> Option<(Box<Account>, u64)> {
        let account = self.cx.account(&port.served, protocol::UDP, header, peer, decision);
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
        self.cx.worker.tell_account(account);
    }

    fn counts_traffic(&self) -> bool {
        self.cx.worker.counts_traffic()
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

    fn receive_replies(
        &mut self,
        port: &Rc<Listening>,
        upstream: &Upstream,
        route: &ReplyRoute,
    ) -> io::Result<Volume> {
        let socket = upstream.socket.as_raw_fd();
        let from = reply_source(port, &route.path);
        // Replies that leave together leave from one socket.
        if self.state.replying.as_ref().is_none_or(|before| !before.is_of(port, from)) {
            self.send_replies();
            let source = from.map(|from| self.open_source(port, from, route)).transpose();
            let Ok(source) = source else { return self.drop_replies(port, socket, route) };
            self.state.replying = Some(Replying { port: port.clone(), source });
        }
        self.state.replies.receive(socket, route)
    }

    fn is_full_of_replies(&self) -> bool {
        self.state.replies.is_full()
    }

    fn send_replies(&mut self) {
        let Some(Replying { port, source }) = self.state.replying.take() else { return };
        let socket = source.as_ref().map_or(port.socket, |(_, socket)| socket.as_raw_fd());
        let sent = self.state.replies.flush(socket);
        self.count(&port, Counter::DatagramsDown, sent.sent);
        self.count(&port, Counter::DatagramBytesDown, sent.bytes);
        if sent.lost > 0 {
            self.count(&port, Counter::DatagramsLost, sent.lost);
        }
    }

    fn clear_error(&mut self, upstream: &Upstream) {
        socket::take_error(upstream.socket.as_raw_fd());
    }

    fn count(&mut self, port: &Rc<Listening>, counter: Counter, by: u64) {
        port.served.stats.add(counter, by);
    }

    fn lower(&mut self, port: &Rc<Listening>, gauge: Counter) {
        port.served.stats.lower(gauge);
    }

    fn refuse(&mut self, port: &Rc<Listening>, refusal: Refusal, received: &Received) {
        let served = &port.served;
        served.stats.refuse(refusal);
        let peer = received.path.peer.socket_addr();
        let event = Event::new(EventKind::DatagramsRefused, level::WARN);
        let event = Event {
            refusal: refusal as u8,
            peer: peer.map(Into::into).unwrap_or_default(),
            ..event
        };
        if refusal.is_of_client() || refusal == Refusal::ForwardingLoop {
            let named = peer.and_then(|peer| self.cx.refused_client(served, refusal, peer));
            let Some(Event { client, upstream, .. }) = named else { return };
            return self.cx.tell_limited(served, Event { client, upstream, ..event });
        }
        self.cx.tell_limited(served, event.with_sample(received.data));
    }

    fn flow_failed(
        &mut self,
        port: &Rc<Listening>,
        decision: &Decision,
        peer: SocketAddr,
        errno: i32,
    ) {
        let served = &port.served;
        if errno == socket::OTHER_SOURCE {
            return self.cx.refuse_other_source(served, peer, decision);
        }
        self.cx.tell_failure(served, EventKind::FlowFailed, errno, Some(peer), decision);
    }

    fn flow_opened(&mut self, port: &Rc<Listening>, decision: &Decision, peer: SocketAddr) {
        tell_flow(self.cx, port, EventKind::FlowOpened, decision, Some(peer));
    }

    fn flow_closed(&mut self, port: &Rc<Listening>, decision: &Decision) {
        tell_flow(self.cx, port, EventKind::FlowClosed, decision, None);
    }

    fn limit_reached(&mut self, port: &Rc<Listening>) {
        let event = Event::new(EventKind::FlowsFull, level::WARN);
        let value = port.served.listener.settings.max_flows.unwrap_or_default();
        let refusal = Refusal::TooManyFlows as u8;
        self.cx.tell_limited(&port.served, Event { refusal, value, ..event });
    }

    fn flows_full(&mut self, port: &Rc<Listening>, flows: usize) {
        let now = self.cx.now;
        if self.state.full_at.is_none_or(|at| now >= at + FLOWS_FULL_EVERY_MS) {
            self.state.full_at = Some(now);
            let event = Event::new(EventKind::FlowsFull, level::WARN);
            self.cx.tell(&port.served, Event { value: flows as u32, ..event });
        }
    }
}

impl Replying {
    fn is_of(&self, port: &Listening, from: Option<ReplySource>) -> bool {
        self.port.socket == port.socket && self.source.as_ref().map(|(source, _)| *source) == from
    }
}

impl Kernel<'_, '_> {
    /// The socket to reply from where the listening socket will not do.
    ///
    /// # Errors
    /// An errno, which is logged now and then.
    fn open_source(
        &mut self,
        port: &Listening,
        source: ReplySource,
        route: &ReplyRoute,
    ) -> Result<(ReplySource, Rc<OwnedFd>), i32> {
        let original = source.local.socket_addr();
        let cx = self.cx;
        let open = || {
            let from = original.ok_or(io::ErrorKind::InvalidInput)?;
            // A second socket there would take datagrams away from the listener that has the address.
            if cx.listens_on(from, Transport::Udp) {
                return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
            }
            socket::reply_source(from, source.ipv6).map(Rc::new)
        };
        let socket = self.state.sources.get(source, cx.now, open).inspect_err(|errno| {
            let event = Event::new(EventKind::ReplyFailed, level::WARN);
            let peer = route.path.peer.socket_addr().map(Into::into).unwrap_or_default();
            let upstream = original.map(Into::into).unwrap_or_default();
            cx.tell_limited(&port.served, Event { errno: *errno, peer, upstream, ..event });
        })?;
        Ok((source, socket))
    }

    /// Takes replies in that can be sent from nowhere: another address would be a stranger to their peer.
    fn drop_replies(
        &mut self,
        port: &Rc<Listening>,
        socket: RawFd,
        route: &ReplyRoute,
    ) -> io::Result<Volume> {
        self.state.replies.receive(socket, route)?;
        let lost = self.state.replies.discard();
        self.count(port, Counter::DatagramsLost, lost);
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// The address and port that a datagram was addressed to.
fn spoken_to(port: &Listening, path: &Path) -> SocketAddr {
    let listen = port.served.port.listen;
    let own = || path.local.ip().map_or(listen, |ip| SocketAddr::new(ip, listen.port()));
    path.local.socket_addr().unwrap_or_else(own)
}

/// What a reply leaves from, where that is not the listening socket: a datagram says its source address, but
/// not its source port.
fn reply_source(port: &Listening, path: &Path) -> Option<ReplySource> {
    let Path { peer, local } = path;
    let is_other = local.port != 0 && local.port != port.served.port.listen.port();
    is_other.then(|| ReplySource { local: *local, ipv6: peer.is_ipv6() })
}

fn tell_flow(
    cx: &Context,
    port: &Listening,
    kind: EventKind,
    decision: &Decision,
    peer: Option<SocketAddr>,
) {
    if !cx.worker.logs(level::DEBUG) {
        return;
    }
    let event = Event {
        peer: peer.map(Into::into).unwrap_or_default(),
        client: decision.client(),
        upstream: decision.upstream.into(),
        ..Event::new(kind, level::DEBUG)
    };
    cx.tell(&port.served, event);
}
