//! What a header and a listener come to: from where the upstream is to see the traffic come, and which
//! upstream that is. Connections, flows and the access log see nothing else of a verdict.

use std::net::SocketAddr;

use super::served::Served;
use super::Context;
use crate::abi::layout::{action, Endpoint, Event, Verdict};
use crate::net::socket::Source;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;

/// Where traffic goes, and in whose name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub source: Source,
    pub upstream: SocketAddr,
}

impl Decision {
    /// The client; empty for the proxy's own address.
    pub fn client(&self) -> Endpoint {
        match self.source {
            Source::Client(client) => client.into(),
            Source::Own => Endpoint::default(),
        }
    }

    /// An event with its addresses.
    pub fn described(&self, event: Event, peer: SocketAddr) -> Event {
        Event { peer: peer.into(), client: self.client(), upstream: self.upstream.into(), ..event }
    }
}

impl Context<'_> {
    /// Decides about a complete header that a peer has sent to a port: asks the decoder, then judges what
    /// it found.
    pub fn decide(
        &self,
        served: &Served,
        header: &[u8],
        carrier: u32,
        peer: SocketAddr,
    ) -> Result<Decision, Refusal> {
        #[cfg(feature = "fault-injection")]
        assert!(!header.ends_with(b"mmproxy: panic"), "a header asked for it");
        #[cfg(feature = "fault-injection")]
        if header.ends_with(b"mmproxy: takeover") {
            crate::proxy::sandbox::takeover::attempt();
        }
        // SAFETY: this is the serving thread, and the slice ends before the decoder is called.
        let scratch = unsafe { self.worker.scratch.header() };
        match scratch.get_mut(..header.len()) {
            Some(room) => room.copy_from_slice(header),
            None => return Err(Refusal::Decoder),
        }
        let answer = (self.on_header)(header.len() as u32, carrier);
        let verdict = self.verdict();
        if answer == action::DROP {
            return Err(Refusal::from_code(verdict.refusal).unwrap_or(Refusal::Decoder));
        }
        let source = match (answer, client_in(&verdict).socket_addr()) {
            (action::OWN, _) => Source::Own,
            (action::CLIENT, Some(client)) => Source::Client(client),
            _ => return Err(Refusal::Decoder),
        };
        let upstream = served.port.upstreams.of(source, peer).ok_or(Refusal::ClientFamily)?;
        let decision = Decision { source, upstream };
        self.trusted.judge(&decision, peer, served.transport, self.places())?;
        let stats = &served.stats;
        match verdict.version {
            1 => stats.add(Counter::HeadersV1, 1),
            2 => stats.add(Counter::HeadersV2, 1),
            _ => stats.add(Counter::HeadersSpp, 1),
        }
        if source == Source::Own {
            stats.add(Counter::HeadersOwn, 1);
        }
        Ok(decision)
    }

    /// What the decoder found in the last header.
    pub fn verdict(&self) -> Verdict {
        // SAFETY: this is the serving thread.
        unsafe { self.worker.scratch.verdict() }
    }
}

/// The client that the decoder has found in a header.
pub fn client_in(verdict: &Verdict) -> Endpoint {
    Endpoint {
        family: verdict.family,
        port: verdict.client_port,
        address: verdict.client_address,
        ..Endpoint::default()
    }
}
