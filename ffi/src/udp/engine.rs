//! The UDP side of one worker: batches in, replies back, idle flows expire.
//!
//! `classify.rs` finds the client of a datagram, `lifecycle.rs` opens and ends flows. A datagram reaches the upstream
//! from its own client's address or not at all: groups and headers refer to flows by serial numbers that are never
//! reused, and a flow that ends during a batch is sent its datagrams first.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::edge::{Batch, Edge, Kinds, Payload, Sent};
use super::flow::{Flow, ReplyRoute};
use super::flow_table::{FlowRef, FlowTable, Place, State};
use super::group::{Groups, Piece};
use super::header_cache::HeaderCache;
use super::port::Port;
use super::sessions::Sessions;
use crate::abi::layout::udp_header;
use crate::header::frame::SPP_LENGTH;
use crate::observe::access::Ending;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::worker::decision::Decision;
use crate::worker::poll::Key;

/// What a worker's UDP side may hold.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Flows that are served, each with a descriptor.
    pub flows: usize,
    /// Sessions, which outlive flows that made room for others.
    pub sessions: usize,
    /// Bytes of headers that are remembered.
    pub header_bytes: usize,
    /// Datagrams of a batch.
    pub batch: usize,
}

/// One worker's flows, and what its peers' headers mean. A port and an owner name a flow, so that any
/// number of ports share the tables, and none the flows.
pub struct Engine<K: Kinds> {
    pub(super) flows: FlowTable<K>,
    pub(super) cache: HeaderCache,
    pub(super) sessions: Sessions,
    pub(super) groups: Groups,
    /// What the current batch has sent.
    pub(super) sent: Sent,
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) defects: Defects,
}

/// Defects that the simulation can put in, to show that it finds them.
#[cfg(any(test, feature = "fuzzing"))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Defects {
    /// A flow that leaves in mid-batch takes its datagrams along.
    pub drop_leaving_groups: bool,
    /// What is looked up by a recycled index finds its present tenant.
    pub trust_indexes: bool,
}

impl<K: Kinds> Engine<K> {
    /// A worker's UDP side, for all its ports.
    pub fn new(limits: Limits) -> Engine<K> {
        Engine {
            flows: FlowTable::new(limits.flows),
            cache: HeaderCache::new(limits.header_bytes),
            sessions: Sessions::new(limits.sessions, limits.header_bytes),
            groups: Groups::new(limits.batch),
            sent: Sent::default(),
            #[cfg(any(test, feature = "fuzzing"))]
            defects: Defects::default(),
        }
    }

    /// Changes how many flows there may be. If there are more, each new one has two make room.
    pub fn limit_flows(&mut self, most: usize) {
        self.flows.limit(most);
    }

    /// How many flows this worker serves.
    pub fn flows(&self) -> usize {
        self.flows.here()
    }

    /// When `expire` is worth a call.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.flows.next_check(), self.sessions.next_check()].into_iter().flatten().min()
    }

    /// Forwards a batch that a port has received: finds the flow of each datagram, then sends each flow its
    /// datagrams. Returns the number of flows.
    pub fn forward_batch(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
    ) -> usize {
        self.groups.start();
        self.cache.start();
        for slot in 0..batch.len() {
            self.add(edge, port, batch, slot);
        }
        let groups = self.groups.len();
        for group in 0..groups {
            self.forward(edge, port, batch, group);
        }
        let sent = std::mem::take(&mut self.sent);
        edge.count(&port.outside, Counter::DatagramsUp, sent.sent);
        edge.count(&port.outside, Counter::DatagramBytesUp, sent.bytes);
        if sent.lost > 0 {
            edge.count(&port.outside, Counter::DatagramsLost, sent.lost);
        }
        if sent.unreachable > 0 {
            edge.count(&port.outside, Counter::UpstreamUnreachable, sent.unreachable);
        }
        groups
    }

    /// Adds a datagram to the group of its flow, or drops it.
    fn add(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        slot: usize,
    ) {
        let received = batch.get(slot);
        if received.truncated {
            return edge.refuse(&port.outside, Refusal::DatagramTooLong, &received);
        }
        let (flow, offset) = match self.classify(edge, port, batch, &received) {
            Ok(Some(found)) => found,
            // A header alone, in a session.
            Ok(None) => return,
            Err(refusal) => return edge.refuse(&port.outside, refusal, &received),
        };
        let now = edge.now();
        let Some(entry) = self.flows.get_mut(flow) else {
            self.sent.lost += 1;
            return;
        };
        match &mut entry.place {
            Place::Here { flow, .. } => flow.touch(now),
            Place::Elsewhere { flow, held } => {
                if held.is_none() {
                    *held = flow.upgrade();
                }
                if let Some(flow) = held {
                    flow.touch(now);
                }
            }
            Place::Failed { errno, .. } => {
                self.sent.lost += 1;
                if let Some(peer) = received.path.peer.socket_addr() {
                    edge.flow_failed(&port.outside, &entry.decision, peer, *errno);
                }
                return;
            }
        }
        let piece = Piece { offset: offset as u32, dscp: received.dscp };
        self.groups.add(flow, &mut entry.mark, slot, piece);
    }

    /// Sends a group's datagrams to its flow, unless that was done before.
    pub(super) fn forward(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Port<K>,
        batch: &impl Batch,
        group: usize,
    ) {
        let Some(at) = self.group_flow(group) else { return };
        let Some(mut chain) = self.groups.take(group) else { return };
        let Some(entry) = self.flows.get_mut(at) else {
            self.sent.lost += self.groups.count(chain);
            return;
        };
        let held;
        let flow = match &mut entry.place {
            Place::Here { flow, .. } => &*flow,
            Place::Elsewhere { held: waiting, .. } => {
                held = waiting.take();
                match &held {
                    Some(flow) => flow,
                    None => {
                        self.sent.lost += self.groups.count(chain);
                        return;
                    }
                }
            }
            Place::Failed { .. } => {
                self.sent.lost += self.groups.count(chain);
                return;
            }
        };
        let last = batch.get(chain.last);
        // Whoever has sent no header gets none.
        let has_header = self.groups.piece(chain.last).offset > 0;
        let header = (port.mode == udp_header::SPP && has_header)
            .then(|| last.data.get(..SPP_LENGTH)?.try_into().ok())
            .flatten();
        flow.set_route(&mut entry.known, ReplyRoute { path: last.path, header });
        let groups = &self.groups;
        let payloads = std::iter::from_fn(|| {
            let (slot, piece) = groups.step(&mut chain)?;
            let data = &batch.data(slot)[piece.offset as usize..];
            Some(Payload { data, dscp: piece.dscp })
        });
        let sent = edge.send(&flow.socket, payloads, &mut entry.segmenting);
        if edge.counts_traffic() {
            flow.traffic.datagrams_up.fetch_add(sent.sent, Ordering::Relaxed);
            flow.traffic.bytes_up.fetch_add(sent.bytes, Ordering::Relaxed);
        }
        self.sent.add(sent);
    }

    fn group_flow(&self, group: usize) -> Option<FlowRef> {
        let at = self.groups.flow(group)?;
        #[cfg(any(test, feature = "fuzzing"))]
        if self.defects.trust_indexes {
            return self.flows.tenant(at.index);
        }
        Some(at)
    }

    /// Receives the replies of a flow, up to `batches` times the room for them.
    pub fn relay_replies(&mut self, edge: &mut impl Edge<K>, key: Key, batches: usize) {
        let Some(entry) = self.flows.of_key(key).and_then(|at| self.flows.get_mut(at)) else {
            return;
        };
        let Place::Here { flow, .. } = &entry.place else { return };
        let port = &entry.port.outside;
        let Some(route) = flow.route(&mut entry.known) else {
            // Nothing was sent yet, so this is an error: epoll repeats it until it is read.
            return edge.clear_error(&flow.socket);
        };
        for _ in 0..batches {
            match edge.receive_replies(port, &flow.socket, &route) {
                Ok(volume) => {
                    flow.touch(edge.now());
                    if edge.counts_traffic() {
                        let traffic = &flow.traffic;
                        traffic.datagrams_down.fetch_add(volume.datagrams, Ordering::Relaxed);
                        traffic.bytes_down.fetch_add(volume.bytes, Ordering::Relaxed);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The upstream's ICMP error: it ends nothing, and reading it cleared it.
                Err(_) => edge.count(port, Counter::UpstreamUnreachable, 1),
            }
            if !edge.is_full_of_replies() {
                return;
            }
            edge.send_replies();
        }
    }

    /// Ends what has been idle for its time.
    pub fn expire(&mut self, edge: &mut impl Edge<K>) {
        let now = edge.now();
        while let Some(at) = self.flows.expired(now) {
            self.end(edge, at, Ending::Idle);
        }
        self.flows.forget_failures(now);
        self.sessions.expire(now);
    }

    /// Who may send headers, or what they may say, has changed: every header is decoded again, and
    /// sessions of peers that may no longer send end. `allowed`: whether a peer may send to a port.
    pub fn trust_changed(&mut self, allowed: impl Fn(u32, SocketAddr) -> bool) {
        self.cache.clear();
        self.sessions.retain(|(port, path)| {
            path.peer.socket_addr().is_some_and(|peer| allowed(*port, peer))
        });
        self.sessions.forget_flows();
    }

    /// Ends every flow of some ports. Headers that lead to one are decoded again.
    pub fn end_ports(&mut self, edge: &mut impl Edge<K>, is_one: impl Fn(u32) -> bool) {
        for at in self.flows.of_ports(is_one) {
            self.end(edge, at, Ending::Stopped);
        }
    }

    /// Shows every flow of this worker to `look`, with the peer that last sent for it; ends those for which
    /// that is true.
    pub fn look_at_flows(
        &mut self,
        edge: &mut impl Edge<K>,
        mut look: impl FnMut(&K::Port, &Decision, &Flow<K::Socket>, Option<SocketAddr>) -> bool,
    ) {
        for at in self.flows.of_ports(|_| true) {
            let Some(entry) = self.flows.get_mut(at) else { continue };
            let Place::Here { flow, .. } = &entry.place else { continue };
            let peer = flow.route(&mut entry.known).and_then(|route| route.path.peer.socket_addr());
            if look(&entry.port.outside, &entry.decision, flow, peer) {
                self.end(edge, at, Ending::Closed);
            }
        }
    }

    /// Watches the flows of some ports again.
    pub fn watch_again(&mut self, edge: &mut impl Edge<K>, is_one: impl Fn(u32) -> bool) {
        for at in self.flows.of_ports(is_one) {
            let Some(entry) = self.flows.get(at) else { continue };
            let Place::Here { flow, .. } = &entry.place else { continue };
            edge.watch(&flow.socket, at.key());
        }
    }

    /// Ends every flow.
    pub fn end_all(&mut self, edge: &mut impl Edge<K>) {
        while let Some(at) = self.flows.idlest(0) {
            self.end(edge, at, Ending::Stopped);
        }
    }

    /// Whether a reference leads to a flow, or the header must be decoded again.
    #[inline]
    pub(super) fn state(&self, at: FlowRef, now: u64) -> State {
        self.flows.state(at, now)
    }
}

impl Sent {
    fn add(&mut self, more: Sent) {
        self.sent += more.sent;
        self.lost += more.lost;
        self.bytes += more.bytes;
        self.unreachable += more.unreachable;
    }
}
