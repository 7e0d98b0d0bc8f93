//! Opening, evicting and ending flows.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use super::directory::Claim;
use super::edge::{self, Batch, Edge, Kinds};
use super::engine::Engine;
use super::flow::Flow;
use super::flow_table::{FlowRef, New, Place, State};
use super::port::Port;
use crate::net::socket;
use crate::observe::access::Ending;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;

/// How long a flow that could not be opened is not tried again.
const RETRY_MS: u64 = 1_000;

impl<K: Kinds> Engine<K> {
    /// The flow of an owner at a port: known, or opened now. One that cannot be opened is remembered as
    /// failed, and drops its datagrams for a second.
    ///
    /// # Errors
    /// `TooManyFlows` where the listener has as many as it may, and none of them here to make room.
    pub(super) fn flow_of(
        &mut self,
        edge: &mut impl Edge<K>,
        batch: &impl Batch,
        new: New<K>,
        peer: SocketAddr,
        header: &[u8],
    ) -> Result<FlowRef, Refusal> {
        let now = edge.now();
        let New { port, owner, decision } = new;
        if let Some(at) = self.flows.find(port.id, &owner) {
            let upstream = self.flows.get(at).map(|entry| entry.decision.upstream);
            if self.state(at, now) != State::Gone && upstream == Some(decision.upstream) {
                return Ok(at);
            }
            self.leave(edge, port, batch, at);
            self.end(edge, at, Ending::Displaced);
        }
        let mut claimed = self.claim(edge, &new, peer);
        if claimed.as_ref().is_err_and(socket::is_out_of_descriptors)
            && self.evict(edge, port, batch)
        {
            claimed = self.claim(edge, &new, peer);
        }
        while claimed.as_ref().is_err_and(edge::is_over_limit) {
            if !self.evict_own(edge, port, batch) {
                return Err(Refusal::TooManyFlows);
            }
            claimed = self.claim(edge, &new, peer);
        }
        let outside = &port.outside;
        Ok(match claimed {
            Ok(Claim::Mine(flow)) => {
                // Not before: a flow that is not opened must cost no other one its place.
                // Two, and not all: after a reload with a smaller budget no turn has thousands to close.
                for _ in 0..2 {
                    if self.flows.is_full() {
                        self.evict(edge, port, batch);
                    }
                }
                flow.touch(now);
                let account = edge.account(outside, header, peer, &decision);
                let at = self.flows.insert_here(new, flow, account);
                if let Some(Place::Here { flow, .. }) = self.flows.get(at).map(|entry| &entry.place)
                {
                    edge.watch(&flow.socket, at.key());
                }
                if header.is_empty() {
                    edge.count_accepted(outside, &decision);
                }
                edge.count(outside, Counter::FlowsOpened, 1);
                edge.count(outside, Counter::FlowsActive, 1);
                edge.flow_opened(outside, &decision, peer);
                at
            }
            Ok(Claim::Elsewhere(flow)) => self.flows.insert_elsewhere(new, &flow),
            Err(error) => {
                edge.count(outside, Counter::FlowErrors, 1);
                let errno = socket::errno(&error);
                self.flows.insert_failed(new, now + RETRY_MS, errno)
            }
        })
    }

    fn claim(
        &mut self,
        edge: &mut impl Edge<K>,
        new: &New<K>,
        peer: SocketAddr,
    ) -> io::Result<Claim<K::Socket>> {
        let now = edge.now();
        let New { port, owner, decision } = new;
        let open = || Ok(Flow::new(edge.open(&port.outside, decision, peer)?, now));
        port.directory.claim(*owner, open)
    }

    /// Evicts the idlest flow of the listener that has the most, to make room for one of `port`. Returns whether
    /// there was one.
    fn evict(&mut self, edge: &mut impl Edge<K>, port: &Rc<Port<K>>, batch: &impl Batch) -> bool {
        let flows = self.flows.here();
        let Some(at) = self.flows.idlest(port.listener) else { return false };
        if let Some(leaving) = self.evict_at(edge, port, batch, at) {
            edge.flows_full(&leaving.outside, flows);
        }
        true
    }

    /// Evicts the idlest flow of a listener that has reached its limit. Returns whether this worker has one.
    fn evict_own(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
    ) -> bool {
        let Some(at) = self.flows.idlest_of(port.listener) else { return false };
        if let Some(leaving) = self.evict_at(edge, port, batch, at) {
            edge.limit_reached(&leaving.outside);
        }
        true
    }

    /// Evicts a flow in the middle of a batch that `port` has received. Returns the port of the flow.
    fn evict_at(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        at: FlowRef,
    ) -> Option<Rc<Port<K>>> {
        let leaving = self.flows.get(at)?.port.clone();
        self.leave(edge, port, batch, at);
        edge.count(&leaving.outside, Counter::FlowsEvicted, 1);
        self.end(edge, at, Ending::Displaced);
        Some(leaving)
    }

    /// Sends a flow that is about to leave the datagrams that the current batch of `port` has for it.
    fn leave(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        at: FlowRef,
    ) {
        #[cfg(any(test, feature = "fuzzing"))]
        if self.defects.drop_leaving_groups {
            return;
        }
        let Some(mark) = self.flows.get(at).map(|entry| entry.mark) else { return };
        if let Some(group) = self.groups.of(mark) {
            self.forward(edge, port, batch, group);
        }
    }

    /// Removes an entry. If the flow belongs to this worker, it ends.
    pub(super) fn end(&mut self, edge: &mut impl Edge<K>, at: FlowRef, ending: Ending) {
        let Some(entry) = self.flows.remove(at) else { return };
        let Place::Here { flow, account } = entry.place else { return };
        if let Some(account) = account {
            edge.close_account(account, &flow, ending);
        }
        entry.port.directory.give_up(&entry.owner, flow);
        edge.lower(&entry.port.outside, Counter::FlowsActive);
        edge.flow_closed(&entry.port.outside, &entry.decision);
    }
}
