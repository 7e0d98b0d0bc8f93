//! A flow's beginning and end.

use std::io;
use std::net::SocketAddr;

use super::directory::Claim;
use super::edge::{Batch, Edge, Kinds};
use super::engine::Engine;
use super::flow::{Flow, Owner};
use super::flow_table::{FlowRef, Place, State};
use crate::net::socket;
use crate::observe::access::Ending;
use crate::observe::stats::Counter;

/// How long a flow that could not be opened is not tried again.
const RETRY_MS: u64 = 1_000;

impl<K: Kinds> Engine<K> {
    /// The flow of an owner: known, or opened now. One that cannot be opened is remembered as failed,
    /// and drops its datagrams for a second.
    pub(super) fn flow_of(
        &mut self,
        edge: &mut impl Edge<K>,
        batch: &impl Batch,
        owner: Owner,
        peer: SocketAddr,
        header: &[u8],
    ) -> FlowRef {
        let now = edge.now();
        if let Some(at) = self.flows.find(&owner) {
            if self.state(at, now) != State::Gone {
                return at;
            }
            self.leave(edge, batch, at);
            self.flows.remove(at);
        }
        if self.flows.is_full() {
            self.evict(edge, batch);
        }
        let mut claimed = self.claim(edge, owner, peer);
        if claimed.as_ref().is_err_and(socket::is_out_of_descriptors) && self.evict(edge, batch) {
            claimed = self.claim(edge, owner, peer);
        }
        match claimed {
            Ok(Claim::Mine(flow)) => {
                flow.touch(now);
                let account = edge.account(header, peer, owner);
                let at = self.flows.insert_here(owner, flow, account);
                if let Some(Place::Here { flow, .. }) = self.flows.get(at).map(|entry| &entry.place)
                {
                    edge.watch(&flow.socket, at.key());
                }
                edge.count(Counter::FlowsOpened, 1);
                edge.count(Counter::FlowsActive, 1);
                edge.flow_opened(owner, peer);
                at
            }
            Ok(Claim::Elsewhere(flow)) => self.flows.insert_elsewhere(owner, &flow),
            Err(error) => {
                edge.count(Counter::FlowErrors, 1);
                let errno = socket::errno(&error);
                self.flows.insert_failed(owner, now + RETRY_MS, errno)
            }
        }
    }

    fn claim(
        &mut self,
        edge: &mut impl Edge<K>,
        owner: Owner,
        peer: SocketAddr,
    ) -> io::Result<Claim<K::Socket>> {
        let now = edge.now();
        self.directory.claim(owner, || Ok(Flow::new(edge.open(owner, peer)?, now)))
    }

    /// Ends the flow that has been idle longest; whether there was one.
    fn evict(&mut self, edge: &mut impl Edge<K>, batch: &impl Batch) -> bool {
        let flows = self.flows.here();
        let Some(at) = self.flows.idlest() else { return false };
        self.leave(edge, batch, at);
        edge.count(Counter::FlowsEvicted, 1);
        self.end(edge, at, Ending::Displaced);
        edge.flows_full(flows);
        true
    }

    /// What leaves in mid-batch is sent what the batch has for it.
    fn leave(&mut self, edge: &mut impl Edge<K>, batch: &impl Batch, at: FlowRef) {
        #[cfg(any(test, feature = "fuzzing"))]
        if self.defects.drop_leaving_groups {
            return;
        }
        let Some(mark) = self.flows.get(at).map(|entry| entry.mark) else { return };
        if let Some(group) = self.groups.of(mark) {
            self.forward(edge, batch, group);
        }
    }

    /// Ends a flow of this worker.
    pub(super) fn end(&mut self, edge: &mut impl Edge<K>, at: FlowRef, ending: Ending) {
        let Some(entry) = self.flows.remove(at) else { return };
        let Place::Here { flow, account } = entry.place else { return };
        if let Some(account) = account {
            edge.close_account(account, &flow, ending);
        }
        self.directory.give_up(&entry.owner, flow);
        edge.lower(Counter::FlowsActive);
        edge.flow_closed(entry.owner);
    }
}
