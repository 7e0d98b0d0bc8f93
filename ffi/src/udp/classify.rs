//! Whose a datagram is: known by its peer and header, or decoded.

use super::edge::{Batch, Edge, Kinds, Received};
use super::engine::Engine;
use super::flow::Owner;
use super::flow_table::{FlowRef, State};
use super::path::Path;
use crate::abi::layout::{carrier, udp_header};
use crate::header::frame::{self, Frame};
use crate::net::socket::Source;
use crate::observe::refusal::Refusal;

/// A datagram's flow and where its payload starts; nothing for a header alone that only opens a
/// session.
pub(super) type Found = Option<(FlowRef, usize)>;

impl<K: Kinds> Engine<K> {
    /// Finds a datagram's flow. Opening one may send what the batch has for another, and end that.
    #[inline]
    pub(super) fn classify(
        &mut self,
        edge: &mut impl Edge<K>,
        batch: &impl Batch,
        received: &Received,
    ) -> Result<Found, Refusal> {
        match self.mode {
            udp_header::SESSION => self.in_session(edge, batch, received),
            udp_header::SPP => self.with_header(edge, batch, received, frame::spp, carrier::SPP),
            _ => self.with_header(edge, batch, received, frame::datagram, carrier::DATAGRAM),
        }
    }

    /// A datagram that carries its header.
    fn with_header(
        &mut self,
        edge: &mut impl Edge<K>,
        batch: &impl Batch,
        received: &Received,
        frame: fn(&[u8]) -> Frame,
        carrier: u32,
    ) -> Result<Found, Refusal> {
        let now = edge.now();
        if let Some((flow, length)) = self.cache.last(&received.path, received.data) {
            if self.state(flow, now) != State::Gone {
                return Ok(Some((flow, length)));
            }
        }
        let header = framed(received.data, frame)?;
        if let Some(flow) = self.cache.find(&received.path, header) {
            if self.state(flow, now) != State::Gone {
                return Ok(Some((flow, header.len())));
            }
        }
        let flow = self.resolve(edge, batch, &received.path, header, carrier)?;
        self.cache.insert(&received.path, header, flow);
        Ok(Some((flow, header.len())))
    }

    /// A datagram of a session. A header sets the peer's session anew; a bare one belongs to it.
    fn in_session(
        &mut self,
        edge: &mut impl Edge<K>,
        batch: &impl Batch,
        received: &Received,
    ) -> Result<Found, Refusal> {
        if frame::announces_header(received.data) {
            return self.announced(edge, batch, received).inspect_err(|_| {
                // Whose the bare datagrams behind a refused header are, nobody knows.
                self.sessions.remove(&received.path);
            });
        }
        let now = edge.now();
        let Some(session) = self.sessions.get(&received.path, now) else {
            let peer = received.path.peer.socket_addr();
            let allowed = peer.is_some_and(|peer| edge.allows(peer));
            return Err(if allowed { Refusal::NoSession } else { Refusal::PeerNotAllowed });
        };
        let flow = session.flow;
        if self.flows.state(flow, now) != State::Gone {
            return Ok(Some((flow, 0)));
        }
        // The flow has made room for others, or its failure is over: the session still says whose it is.
        let header = session.header.clone();
        let flow = self.resolve(edge, batch, &received.path, &header, carrier::DATAGRAM)?;
        if let Some(session) = self.sessions.get(&received.path, now) {
            session.flow = flow;
        }
        Ok(Some((flow, 0)))
    }

    fn announced(
        &mut self,
        edge: &mut impl Edge<K>,
        batch: &impl Batch,
        received: &Received,
    ) -> Result<Found, Refusal> {
        let header = framed(received.data, frame::datagram)?;
        let payload = received.data.len() > header.len();
        let now = edge.now();
        let known = self.sessions.get(&received.path, now);
        let known = known.filter(|session| *session.header == *header).map(|session| session.flow);
        let flow = match known.filter(|flow| self.flows.state(*flow, now) != State::Gone) {
            Some(flow) => flow,
            None => {
                let path = &received.path;
                let flow = self.resolve(edge, batch, path, header, carrier::DATAGRAM)?;
                self.sessions.set(path, header, flow, now);
                flow
            }
        };
        Ok(payload.then_some((flow, header.len())))
    }

    /// Decodes a header, and finds or opens the flow of whom it names.
    fn resolve(
        &mut self,
        edge: &mut impl Edge<K>,
        batch: &impl Batch,
        path: &Path,
        header: &[u8],
        carrier: u32,
    ) -> Result<FlowRef, Refusal> {
        let peer = path.peer.socket_addr().ok_or(Refusal::Incomplete)?;
        if !edge.allows(peer) {
            return Err(Refusal::PeerNotAllowed);
        }
        let owner = match edge.decode(header, carrier, peer)? {
            Source::Client(client) => Owner::Client(client),
            Source::Own => Owner::Peer(peer),
        };
        Ok(self.flow_of(edge, batch, owner, peer, header))
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
