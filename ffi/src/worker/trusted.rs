//! A worker's own copy of this host's addresses, for the check of clients and destinations.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::decision::Decision;
use crate::net::socket::Source;
use crate::observe::refusal::Refusal;
use crate::proxy::places::Places;
use crate::proxy::port::Transport;
use crate::trust::addresses::Nature;
use crate::trust::client;
use crate::trust::destinations::Destinations;
use crate::trust::host::{Host, Known};

/// This host's addresses as the thread last saw them.
#[derive(Default)]
pub struct Trusted {
    known: Option<Arc<Known>>,
    version: u32,
    /// Why the addresses are not known, until it has been logged.
    unknown: Option<i32>,
}

impl Trusted {
    /// Looks whether the host's addresses have changed; takes the lock only when they have.
    #[inline]
    pub fn refresh(&mut self, host: &Host) {
        let version = host.version();
        if version == self.version {
            return;
        }
        self.version = version;
        let known = host.known();
        if let Known::Unlisted(errno) = *known {
            self.unknown = Some(errno);
        }
        self.known = Some(known);
    }

    /// The version of the addresses. Never 0 after the first look.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Why the addresses are not known; once for each change.
    pub fn take_unknown(&mut self) -> Option<i32> {
        self.unknown.take()
    }

    /// Whether an address is one of this host's.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.known.as_ref().is_some_and(|known| known.nature_of(ip) == Nature::Own)
    }

    /// Whether a header may lead to a destination, as far as destinations and this host's addresses say.
    pub fn lets_lead(&self, destinations: &Destinations, to: SocketAddr) -> bool {
        // Never before the first look.
        self.known.as_ref().is_some_and(|known| destinations.allow(to, |ip| known.nature_of(ip)))
    }

    /// Whether a peer's header may lead where it was decided.
    ///
    /// `places`: where this program listens.
    pub fn judge(
        &self,
        decision: &Decision,
        peer: SocketAddr,
        transport: Transport,
        places: &Places,
    ) -> Result<(), Refusal> {
        // Never before the first look.
        let Some(known) = &self.known else { return Err(Refusal::Decoder) };
        let nature_of = |ip| known.nature_of(ip);
        let is_own = |ip| nature_of(ip) == Nature::Own;
        let Decision { source, upstream } = *decision;
        // Refused at the start; but an address may have come since.
        if places.arrives_at(upstream, transport, is_own).is_some() {
            return Err(Refusal::ForwardingLoop);
        }
        let Source::Client(client) = source else { return Ok(()) };
        client::judge(client, peer, nature_of)?;
        // Replies to it would arrive at the listener, or connect(2) would reach its own socket.
        if client == upstream || places.arrives_at(client, transport, is_own).is_some() {
            return Err(Refusal::ClientIsListener);
        }
        Ok(())
    }
}
