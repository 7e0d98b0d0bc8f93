//! Finds the client of a datagram: by its peer and header, or by decoding.

use std::net::SocketAddr;
use std::rc::Rc;

use super::edge::{Batch, Edge, Kinds, Received};
use super::engine::Engine;
use super::flow::Owner;
use super::flow_table::{FlowRef, New, State};
use super::path::Path;
use super::port::Port;
use crate::abi::layout::{carrier, udp_header};
use crate::header::frame::{self, Frame};
use crate::net::socket::Source;
use crate::observe::refusal::Refusal;
use crate::trust::table::HeaderRule;
use crate::worker::decision::Decision;

/// A datagram's flow and where its payload starts; nothing for a header alone that only opens a
/// session.
pub(super) type Found = Option<(FlowRef, usize)>;

impl<K: Kinds> Engine<K> {
    /// Finds a datagram's flow. Opening one may send what the batch has for another, and end that.
    #[inline]
    pub(super) fn classify(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        received: &Received,
    ) -> Result<Found, Refusal> {
        if port.mixed && is_bare(edge, port, received) {
            return self.without_header(edge, port, batch, received);
        }
        let (spp, datagram) = (carrier::SPP, carrier::DATAGRAM);
        match port.mode {
            udp_header::SESSION => self.in_session(edge, port, batch, received),
            udp_header::SPP => self.with_header(edge, port, batch, received, frame::spp, spp),
            _ => self.with_header(edge, port, batch, received, frame::datagram, datagram),
        }
    }

    /// A datagram of a peer that is the client itself.
    fn without_header(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        received: &Received,
    ) -> Result<Found, Refusal> {
        let now = edge.now();
        let (place, path) = (port.id | BARE, &received.path);
        let known = self.cache.last(place, path, b"").map(|(flow, _)| flow);
        let known = known.or_else(|| self.cache.find(place, path, b""));
        if let Some(flow) = known.filter(|flow| self.state(*flow, now) != State::Gone) {
            return Ok(Some((flow, 0)));
        }
        let peer = path.peer.socket_addr().ok_or(Refusal::Incomplete)?;
        let decision = edge.decide_bare(&port.outside, path, peer)?;
        let owner = owner_of(port, &decision, peer);
        let flow = self.flow_of(edge, batch, New { port, owner, decision }, peer, b"")?;
        self.cache.insert(place, path, b"", flow);
        Ok(Some((flow, 0)))
    }

    /// A datagram that carries its header.
    fn with_header(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        received: &Received,
        frame: fn(&[u8]) -> Frame,
        carrier: u32,
    ) -> Result<Found, Refusal> {
        let now = edge.now();
        if let Some((flow, length)) = self.cache.last(port.id, &received.path, received.data) {
            if self.state(flow, now) != State::Gone {
                return Ok(Some((flow, length)));
            }
        }
        let header = framed(received.data, frame)?;
        if let Some(flow) = self.cache.find(port.id, &received.path, header) {
            if self.state(flow, now) != State::Gone {
                return Ok(Some((flow, header.len())));
            }
        }
        let path = &received.path;
        let decision = decide(edge, port, path, header, carrier)?;
        edge.count_accepted(&port.outside, &decision);
        let flow = self.flow_by(edge, port, batch, path, header, decision)?;
        self.cache.insert(port.id, &received.path, header, flow);
        Ok(Some((flow, header.len())))
    }

    /// A datagram of a session. A header replaces the peer's session; a datagram without a header belongs to it.
    fn in_session(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        received: &Received,
    ) -> Result<Found, Refusal> {
        if frame::announces_header(received.data) {
            return self.announced(edge, port, batch, received).inspect_err(|refusal| {
                // Whose the bare datagrams behind a refused header are, nobody knows.
                if *refusal != Refusal::TooManyFlows {
                    self.sessions.remove(&(port.id, received.path));
                }
            });
        }
        let now = edge.now();
        let between = (port.id, received.path);
        let Some(session) = self.sessions.get(&between, now) else {
            let peer = received.path.peer.socket_addr();
            let allowed = peer.is_some_and(|peer| edge.rule(&port.outside, peer).is_some());
            return Err(if allowed { Refusal::NoSession } else { Refusal::PeerNotAllowed });
        };
        let flow = session.flow;
        if self.flows.state(flow, now) != State::Gone {
            return Ok(Some((flow, 0)));
        }
        // The flow has made room for others, or its failure is over: the session still says whose it is.
        let header = session.header.clone();
        let path = &received.path;
        let decision = decide(edge, port, path, &header, carrier::DATAGRAM)?;
        let flow = self.flow_by(edge, port, batch, path, &header, decision)?;
        if let Some(session) = self.sessions.get(&between, now) {
            session.flow = flow;
        }
        Ok(Some((flow, 0)))
    }

    fn announced(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        received: &Received,
    ) -> Result<Found, Refusal> {
        let header = framed(received.data, frame::datagram)?;
        let payload = received.data.len() > header.len();
        let now = edge.now();
        let between = (port.id, received.path);
        let known = self.sessions.get(&between, now);
        let known = known.filter(|session| *session.header == *header).map(|session| session.flow);
        let is_new = known.is_none();
        let flow = match known.filter(|flow| self.flows.state(*flow, now) != State::Gone) {
            Some(flow) => flow,
            None => {
                let path = &received.path;
                let decision = decide(edge, port, path, header, carrier::DATAGRAM)?;
                if is_new {
                    edge.count_accepted(&port.outside, &decision);
                }
                let found = self.flow_by(edge, port, batch, path, header, decision);
                // Where the listener has no room for the flow, the session still says whose it is.
                let flow = match found {
                    Err(Refusal::TooManyFlows) => FlowRef::NONE,
                    found => found?,
                };
                self.sessions.set(&between, header, flow, now, port.close_after);
                found?
            }
        };
        Ok(payload.then_some((flow, header.len())))
    }

    /// Finds or opens the flow of whom a header named.
    fn flow_by(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        batch: &impl Batch,
        path: &Path,
        header: &[u8],
        decision: Decision,
    ) -> Result<FlowRef, Refusal> {
        let peer = path.peer.socket_addr().ok_or(Refusal::Incomplete)?;
        let owner = owner_of(port, &decision, peer);
        self.flow_of(edge, batch, New { port, owner, decision }, peer, header)
    }
}

/// Ports under which the header cache keeps peers without a header. No port's own number has this bit, so
/// that no header is taken for none, nor the other way.
const BARE: u32 = 1 << 31;

/// Whether a datagram has no header because its peer need not send one. In a session bare datagrams belong
/// to whom the header named: an optional header would leave it open whose they are, so it is required.
fn is_bare<K: Kinds>(edge: &impl Edge<K>, port: &Port<K>, received: &Received) -> bool {
    let peer = received.path.peer.socket_addr();
    match peer.and_then(|peer| edge.rule(&port.outside, peer)) {
        Some(HeaderRule::Skip) => true,
        Some(HeaderRule::Optional) => match port.mode {
            udp_header::SESSION => false,
            udp_header::SPP => !frame::announces_spp(received.data),
            _ => !frame::announces_header(received.data),
        },
        Some(HeaderRule::Require) | None => false,
    }
}

/// Decodes the header of a peer that may send it.
fn decide<K: Kinds>(
    edge: &mut impl Edge<K>,
    port: &Port<K>,
    path: &Path,
    header: &[u8],
    carrier: u32,
) -> Result<Decision, Refusal> {
    let peer = path.peer.socket_addr().ok_or(Refusal::Incomplete)?;
    if edge.rule(&port.outside, peer).is_none() {
        return Err(Refusal::PeerNotAllowed);
    }
    edge.decide(&port.outside, header, carrier, path, peer)
}

/// Whose datagrams with a decision are.
fn owner_of<K: Kinds>(port: &Port<K>, decision: &Decision, peer: SocketAddr) -> Owner {
    match decision.source {
        Source::Client(client) if port.many_upstreams => Owner::ClientTo(client, decision.upstream),
        Source::Client(client) => Owner::Client(client),
        Source::Own if port.many_upstreams => Owner::PeerTo(peer, decision.upstream),
        Source::Own => Owner::Peer(peer),
    }
}

/// The header at a datagram's beginning.
fn framed(data: &[u8], frame: fn(&[u8]) -> Frame) -> Result<&[u8], Refusal> {
    match frame(data) {
        Frame::Header(length) => Ok(&data[..length]),
        Frame::Refused(refusal) => Err(refusal),
        Frame::Partial => Err(Refusal::Incomplete),
    }
}
