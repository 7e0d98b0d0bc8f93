//! UDP: each datagram to the upstream from its own client's address, each reply to the peer that last
//! sent for its client.
//!
//! `engine.rs` is the logic, with sockets at its edge: `classify.rs` finds whose a datagram is (by the
//! header cache, the session or the decoder), `group.rs` gathers a batch by flow, `flow_table.rs` and
//! `directory.rs` hold the flows. `recv.rs`, `send.rs` and `replies.rs` move datagrams; `kernel.rs` is
//! the edge. The simulation drives all of the logic against a naive model.

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
mod path;
mod recv;
mod replies;
mod sampling;
mod send;
mod sessions;
#[cfg(any(test, feature = "fuzzing"))]
pub mod simulation;

use std::io;
use std::os::fd::AsRawFd;

use crate::proxy::service::lock;
use crate::worker::poll::{Interest, Key, Token};
use crate::worker::Context;
use edge::Edge;
use engine::{Engine, Limits};
use intake::Intake;
use kernel::{Kernel, Real, State, Upstream};
use recv::{Inbox, INTAKE};
use replies::BATCH;

/// The flows of a service, over all workers.
pub type Directory = directory::Directory<Upstream>;

/// How long replies are still relayed after the stop.
const STOP_MS: u64 = 1_000;
/// Sessions of all workers.
const SESSIONS: usize = 65_536;
/// Bytes of headers that all workers remember.
const HEADER_BYTES: usize = 16 << 20;

/// One worker's UDP side: its listening socket, and what came by it.
pub struct Udp {
    receivable: bool,
    /// The listening socket tells which address each datagram was sent to.
    wildcard: bool,
    inbox: Inbox,
    intake: Intake,
    engine: Engine<Real>,
    state: State,
    /// Flows with replies to fetch.
    replying: Vec<Key>,
    stopping: Option<u64>,
}

impl Udp {
    /// Starts with the listener's socket; without one there is nothing to do.
    pub fn start(cx: &Context) -> io::Result<Udp> {
        let service = &cx.listener.service;
        let settings = &service.settings;
        let socket = lock(&cx.listener.udp).as_ref().map(AsRawFd::as_raw_fd);
        if let Some(socket) = socket {
            cx.poll.add(socket, Token::UdpListener, Interest::Readable)?;
        }
        let limits = Limits {
            flows: service.flows_a_listener(),
            sessions: SESSIONS / service.listeners(),
            header_bytes: HEADER_BYTES / service.listeners(),
            batch: INTAKE,
            close_after: settings.close_after.as_millis() as u64,
        };
        Ok(Udp {
            receivable: false,
            wildcard: settings.listen.ip().is_unspecified(),
            inbox: Inbox::new(if socket.is_some() { INTAKE } else { 0 }),
            intake: Intake::default(),
            engine: Engine::new(settings.udp_header, service.flows.clone(), limits),
            state: State::new(socket),
            replying: Vec::new(),
            stopping: None,
        })
    }

    /// The listening socket has datagrams.
    pub fn set_receivable(&mut self) {
        self.receivable = true;
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
        [self.engine.next_deadline(), self.stopping].into_iter().flatten().min()
    }

    /// Everything that is due: replies first, then what is idle, then new datagrams.
    pub fn turn(&mut self, cx: &Context) {
        self.relay_replies(cx);
        self.engine.expire(&mut Kernel { cx, state: &mut self.state });
        if std::mem::take(&mut self.receivable) && self.stopping.is_none() {
            self.take_in(cx);
        }
    }

    /// Ends every flow.
    pub fn end_all(&mut self, cx: &Context) {
        self.engine.end_all(&mut Kernel { cx, state: &mut self.state });
    }

    /// Takes in no more; whether the last replies have had their time.
    pub fn stop(&mut self, cx: &Context) -> bool {
        let Some(socket) = self.state.socket else { return true };
        let until = *self.stopping.get_or_insert_with(|| {
            cx.poll.remove(socket);
            cx.now + STOP_MS
        });
        if self.engine.flows() > 0 && cx.now < until {
            return false;
        }
        self.state.socket = None;
        self.stopping = None;
        *lock(&cx.listener.udp) = None;
        true
    }

    fn take_in(&mut self, cx: &Context) {
        let Some(socket) = self.state.socket else { return };
        let trust_changed = self.state.look_at_trust(cx);
        let mut edge = Kernel { cx, state: &mut self.state };
        if trust_changed {
            self.engine.trust_changed(&edge);
        }
        // An error here is an ICMP message for an earlier reply, or nothing to read: the level-
        // triggered epoll comes back while there is something.
        let Ok(count) = self.inbox.receive(socket, self.intake.limit(), self.wildcard) else {
            return;
        };
        let flows = self.engine.take_in(&mut edge, &self.inbox);
        self.intake.learn(count, flows);
    }

    fn relay_replies(&mut self, cx: &Context) {
        if self.replying.is_empty() {
            return;
        }
        // More than a turn takes in, or a flood would outrun its replies.
        let batches = 2 * self.intake.limit() / BATCH;
        let mut edge = Kernel { cx, state: &mut self.state };
        for key in self.replying.drain(..) {
            self.engine.relay_replies(&mut edge, key, batches);
        }
        edge.send_replies();
    }
}
