//! UDP: each datagram to the upstream from its own client's address, each reply to the peer that last sent for its
//! client.
//!
//! One engine per worker handles every UDP port of every listener: the identity of a flow is its port and its client.
//! `engine.rs` is the logic, with sockets behind an interface: `classify.rs` finds the client of a datagram (by the
//! header cache, the session or the decoder), `group.rs` groups a batch by flow, `flow_table.rs` and `directory.rs`
//! hold the flows. `recv.rs`, `send.rs` and `replies.rs` move datagrams; `kernel.rs` implements the interface. The
//! simulation runs all of the logic against a naive model.

mod classify;
mod cmsg;
mod directory;
mod edge;
mod engine;
mod flow;
mod flow_table;
mod group;
mod gso;
mod header_cache;
mod idle;
mod intake;
mod kernel;
mod lifecycle;
mod moved;
mod moving;
mod path;
mod port;
mod recv;
mod replies;
mod reply_sources;
mod sampling;
mod send;
mod sessions;
#[cfg(any(test, feature = "fuzzing"))]
pub mod simulation;

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::abi::layout::{phase, protocol, ConnectionRecord, Endpoint};
use crate::proxy::listener::Listener;
use crate::proxy::port::{Port as ProxyPort, Transport};
use crate::proxy::settings::ProxySettings;
use crate::proxy::survey::{Part, Survey};
use crate::proxy::table::Snapshot;
use crate::worker::poll::{Interest, Key, Token};
use crate::worker::served::Served;
use crate::worker::slab::Slab;
use crate::worker::Context;
use edge::Edge;
use engine::{Engine, Limits};
use intake::Intake;
use kernel::{Kernel, Listening, Real, State, Upstream};
use recv::{Inbox, INTAKE};
use replies::BATCH;

/// The flows of a port, over all workers.
pub type Directory = directory::Directory<Upstream>;
pub use moved::{MovedAccount, MovedFlow, MovedSession};
pub use moving::{Arriving, Leaving};
type Port = port::Port<Real>;

/// How long replies are still relayed once nothing new is received.
const STOP_MS: u64 = 1_000;
/// Sessions of all workers.
const SESSIONS: usize = 65_536;
/// Bytes of headers that all workers remember.
const HEADER_BYTES: usize = 16 << 20;
/// This many batches are received of what waits at a socket that is about to be closed.
const LAST_BATCHES: usize = 64;

/// One worker's UDP side: its listening sockets, and what came by them.
pub struct Udp {
    receiving: Slab<Receiving>,
    /// By the number of their sockets.
    by_port: HashMap<u32, Key>,
    /// Those that have datagrams.
    receivable: Vec<Key>,
    /// Ports that take nothing in any more, and when their last flows end.
    closed: Vec<(u64, Rc<Port>)>,
    /// Made when the first port is there.
    inbox: Option<Inbox>,
    engine: Engine<Real>,
    state: State,
    /// Flows with replies to fetch.
    replying: Vec<Key>,
    /// The largest size of a next batch.
    limit: usize,
    stopping: Option<u64>,
    /// The numbers of the sockets that another program is to have: nothing is read, and no flow changes.
    going: Option<Arc<std::collections::HashSet<u32>>>,
}

/// A port that is served.
struct Receiving {
    port: Rc<Port>,
    intake: Intake,
    /// The socket reports which address each datagram was sent to.
    tells_local: bool,
}

impl Receiving {
    fn new(cx: &Context, listener: &Arc<Listener>, port: &Arc<ProxyPort>) -> Option<Receiving> {
        let sockets = port.udp.as_ref()?;
        let socket = sockets.fd(cx.worker.index)?;
        let served = Served::new(cx.worker.index, listener, port, Transport::Udp);
        let port = Port {
            id: sockets.id,
            listener: listener.id,
            mode: listener.settings.udp_header,
            mixed: listener.is_mixed(),
            many_upstreams: port.upstreams.are_many(),
            close_after: listener.settings.close_after,
            directory: sockets.flows.clone(),
            outside: Rc::new(Listening { socket, served }),
        };
        let listen = port.outside.served.port.listen;
        let tells_local = listen.ip().is_unspecified() || sockets.are_transparent();
        Some(Receiving { port: Rc::new(port), intake: Intake::default(), tells_local })
    }

    fn listener(&self) -> &Arc<Listener> {
        &self.port.outside.served.listener
    }
}

impl Udp {
    /// Without a listening socket yet: see `follow`.
    pub fn new(settings: &ProxySettings) -> Udp {
        let limits = Limits {
            // As many as `follow` says.
            flows: 0,
            sessions: SESSIONS / settings.workers,
            header_bytes: HEADER_BYTES / settings.workers,
            batch: INTAKE,
        };
        Udp {
            receiving: Slab::default(),
            by_port: HashMap::new(),
            receivable: Vec::new(),
            closed: Vec::new(),
            inbox: None,
            engine: Engine::new(limits),
            state: State::new(),
            replying: Vec::new(),
            limit: INTAKE,
            stopping: None,
            going: None,
        }
    }

    /// Follows a change of the listeners: serves the sockets of new ports, and those that stay in the
    /// new way; receives what waits at the others. Flows continue, but for those whose upstream has changed,
    /// which are opened again, and those of ports that are gone, which get their last replies.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn follow(&mut self, cx: &Context, now: &Snapshot) -> io::Result<()> {
        let budgets = now.budgets.of_a_worker(cx.worker.proxy.settings.workers);
        // One of them may have an address that is listened on now.
        self.state.sources.reset(budgets.reply_sources());
        self.engine.limit_flows(budgets.flows);
        let mut gone = std::mem::take(&mut self.by_port);
        let (mut changed, mut redirected) = (false, HashSet::new());
        for listener in &now.listeners {
            for port in &listener.ports {
                let Some(id) = port.udp.as_ref().map(|sockets| sockets.id) else { continue };
                let known = gone.remove(&id);
                if let Some(receiving) = known.and_then(|key| self.receiving.get_mut(key)) {
                    self.by_port.extend(known.map(|key| (id, key)));
                    if Arc::ptr_eq(receiving.listener(), listener) {
                        continue;
                    }
                    changed = true;
                    let before = receiving.port.outside.served.port.upstreams;
                    if let Some(new) = Receiving::new(cx, listener, port) {
                        receiving.port = new.port;
                    }
                    if before != port.upstreams {
                        redirected.insert(id);
                    }
                    continue;
                }
                let Some(receiving) = Receiving::new(cx, listener, port) else { continue };
                let socket = receiving.port.outside.socket;
                let key = self.receiving.insert(receiving);
                cx.poll.add(socket, Token::UdpListener(key), Interest::Readable)?;
                self.by_port.insert(id, key);
                self.inbox.get_or_insert_with(|| Inbox::new(Intake::default().limit()));
            }
        }
        for key in gone.into_values() {
            self.leave(cx, key);
            changed = true;
        }
        if !redirected.is_empty() {
            let mut edge = Kernel { cx, state: &mut self.state };
            self.engine.end_ports(&mut edge, |id| redirected.contains(&id));
        }
        if changed {
            self.trust_changed();
        }
        Ok(())
    }

    /// A listening socket has datagrams.
    pub fn set_receivable(&mut self, key: Key) {
        self.receivable.push(key);
    }

    /// A flow has replies, or an ICMP error.
    pub fn on_reply(&mut self, cx: &Context, key: Key) {
        self.replying.push(key);
        if self.replying.len() == BATCH {
            self.relay_replies(cx);
        }
    }

    /// When `turn` must be called at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.going.is_some() {
            return None;
        }
        let closed = self.closed.iter().map(|(at, _)| *at).min();
        let sources = self.state.sources.next_check();
        [self.engine.next_deadline(), self.stopping, closed, sources].into_iter().flatten().min()
    }

    /// Everything that is due: replies first, then what is idle, then new datagrams.
    pub fn turn(&mut self, cx: &Context) {
        self.relay_replies(cx);
        if self.going.is_some() {
            return;
        }
        self.engine.expire(&mut Kernel { cx, state: &mut self.state });
        self.state.sources.expire(cx.now);
        if self.closed.iter().any(|(at, _)| *at <= cx.now) {
            let closed = std::mem::take(&mut self.closed).into_iter();
            let (due, later): (Vec<_>, _) = closed.partition(|(at, _)| *at <= cx.now);
            self.closed = later;
            let due: Vec<Rc<Port>> = due.into_iter().map(|(_, port)| port).collect();
            self.close(cx, &due);
        }
        if self.receivable.is_empty() {
            return;
        }
        let mut receivable = std::mem::take(&mut self.receivable);
        if self.stopping.is_none() {
            if self.state.look_at_addresses(cx) {
                self.trust_changed();
            }
            self.limit = 0;
            for key in &receivable {
                self.recv_batch(cx, *key);
            }
        }
        receivable.clear();
        self.receivable = receivable;
    }

    /// Lists the flows that are requested, or closes them.
    pub fn survey(&mut self, cx: &Context, survey: &Survey, part: &mut Part) {
        if self.going.is_some() {
            return;
        }
        let mut edge = Kernel { cx, state: &mut self.state };
        self.engine.look_at_flows(&mut edge, |port, decision, flow, peer| {
            let record = ConnectionRecord {
                age_ms: cx.now.saturating_sub(flow.opened_at()),
                // Another worker may have used it since this one's turn began.
                idle_ms: cx.now.saturating_sub(flow.last_used()),
                bytes_up: flow.traffic.bytes_up.load(Ordering::Relaxed),
                bytes_down: flow.traffic.bytes_down.load(Ordering::Relaxed),
                peer: peer.map(Endpoint::from).unwrap_or_default(),
                client: decision.client(),
                upstream: decision.upstream.into(),
                listener: port.served.id(),
                worker: cx.worker.index,
                protocol: protocol::UDP as u8,
                phase: phase::RELAYED,
                reserved: [0; 6],
            };
            let is_meant = survey.selection.matches(record.listener, &record.client, &record.peer);
            if is_meant {
                survey.list(part, record);
            }
            is_meant && survey.selection.closes
        });
    }

    /// Ends every flow.
    pub fn end_all(&mut self, cx: &Context) {
        self.engine.end_all(&mut Kernel { cx, state: &mut self.state });
    }

    /// Receives no more datagrams. Returns whether the time for the last replies is over.
    pub fn stop(&mut self, cx: &Context) -> bool {
        if self.receiving.len() == 0 && self.closed.is_empty() {
            return true;
        }
        let until = match self.stopping {
            Some(until) => until,
            None => {
                let keys = self.receiving.keys();
                keys.iter().filter_map(|key| self.receiving.get(*key)).for_each(|receiving| {
                    cx.poll.remove(receiving.port.outside.socket);
                });
                *self.stopping.insert(cx.now + STOP_MS)
            }
        };
        if self.engine.flows() > 0 && cx.now < until {
            return false;
        }
        let receiving = self.receiving.keys().into_iter();
        let ports: Vec<Rc<Port>> = receiving
            .filter_map(|key| self.receiving.remove(key))
            .map(|receiving| receiving.port)
            .chain(self.closed.drain(..).map(|(_, port)| port))
            .collect();
        self.close(cx, &ports);
        self.by_port.clear();
        self.stopping = None;
        true
    }

    /// Receives the datagrams that wait at a removed port, and no more.
    fn leave(&mut self, cx: &Context, key: Key) {
        for _ in 0..LAST_BATCHES {
            if !self.recv_batch(cx, key) {
                break;
            }
        }
        let Some(Receiving { port, .. }) = self.receiving.remove(key) else { return };
        cx.poll.remove(port.outside.socket);
        let ends_at = port.outside.served.listener.lasting.ends_at.get();
        let ends_at = ends_at.map(|at| cx.worker.proxy.ms_of(*at));
        let last_replies = cx.now + STOP_MS;
        self.closed.push((ends_at.map_or(last_replies, |at| at.min(last_replies)), port));
    }

    /// Ends the flows of ports, and closes their sockets.
    fn close(&mut self, cx: &Context, ports: &[Rc<Port>]) {
        let ids: HashSet<u32> = ports.iter().map(|port| port.id).collect();
        let mut edge = Kernel { cx, state: &mut self.state };
        self.engine.end_ports(&mut edge, |id| ids.contains(&id));
        for sockets in ports.iter().filter_map(|port| port.outside.served.port.udp.as_ref()) {
            sockets.close(cx.worker.index);
        }
    }

    fn trust_changed(&mut self) {
        let (by_port, receiving) = (&self.by_port, &self.receiving);
        self.engine.trust_changed(|port, peer| {
            let receiving = by_port.get(&port).and_then(|key| receiving.get(*key));
            receiving.is_some_and(|receiving| receiving.listener().rule_of(peer).is_some())
        });
    }

    /// Receives and forwards a batch. Returns whether there was one.
    fn recv_batch(&mut self, cx: &Context, key: Key) -> bool {
        let Some(receiving) = self.receiving.get_mut(key) else { return false };
        let Some(inbox) = &mut self.inbox else { return false };
        let port = &receiving.port;
        // An error here is an ICMP message for an earlier reply, or nothing to read: the level-
        // triggered epoll comes back while there is something.
        let limit = receiving.intake.limit();
        inbox.grow(limit);
        let Ok(count) = inbox.receive(port.outside.socket, limit, receiving.tells_local) else {
            return false;
        };
        let mut edge = Kernel { cx, state: &mut self.state };
        let flows = self.engine.forward_batch(&mut edge, port, inbox);
        receiving.intake.learn(count, flows);
        self.limit = self.limit.max(receiving.intake.limit());
        count > 0
    }

    fn relay_replies(&mut self, cx: &Context) {
        if self.replying.is_empty() {
            return;
        }
        // More than a turn receives, or a flood would outrun its replies.
        let batches = (2 * self.limit / BATCH).max(1);
        let mut edge = Kernel { cx, state: &mut self.state };
        for key in self.replying.drain(..) {
            self.engine.relay_replies(&mut edge, key, batches);
        }
        edge.send_replies();
    }
}
