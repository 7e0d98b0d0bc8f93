//! The result of a header at a listener: the source address towards the upstream, and the upstream. Connections, flows
//! and the access log see nothing else of a verdict.

use std::net::{IpAddr, SocketAddr};

use super::served::Served;
use super::Context;
use crate::abi::layout::{action, carrier, Endpoint, Event, Verdict};
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
    ///
    /// `addressed`: the port that the traffic was addressed to, of use where the upstream depends on it.
    pub fn decide(
        &self,
        served: &Served,
        header: &[u8],
        carrier: u32,
        peer: SocketAddr,
        addressed: u16,
    ) -> Result<Decision, Refusal> {
        #[cfg(feature = "fault-injection")]
        assert!(!header.ends_with(b"mmproxy: panic"), "a header asked for it");
        #[cfg(feature = "fault-injection")]
        if header.ends_with(b"mmproxy: takeover") {
            crate::proxy::sandbox::takeover::attempt();
        }
        self.decide_by(served, header, carrier, peer, addressed)
    }

    /// Decides about a peer that sends no header: it is the client, and is judged as any client is.
    ///
    /// `local`: the address that the peer spoke to.
    pub fn decide_bare(
        &self,
        served: &Served,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<Decision, Refusal> {
        let mut block = [0; BLOCK];
        let length = write_block(&mut block, peer, local);
        self.decide_by(served, &block[..length], carrier::NONE, peer, local.port())
    }

    fn decide_by(
        &self,
        served: &Served,
        header: &[u8],
        carrier: u32,
        peer: SocketAddr,
        addressed: u16,
    ) -> Result<Decision, Refusal> {
        self.addressed.set(addressed);
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
        let decision = Decision { source, upstream: self.upstream_of(served, source, peer)? };
        self.trusted.judge(&decision, peer, served.transport, self.places())?;
        Ok(decision)
    }

    /// Counts what was decided last as accepted. Not part of deciding: a UDP header may be decided about again
    /// without having come again.
    pub fn count_accepted(&self, served: &Served, decision: &Decision) {
        let stats = &served.stats;
        stats.add(
            match self.verdict().version {
                0 => Counter::HeadersNone,
                1 => Counter::HeadersV1,
                2 => Counter::HeadersV2,
                _ => Counter::HeadersSpp,
            },
            1,
        );
        if decision.source == Source::Own {
            stats.add(Counter::HeadersOwn, 1);
        }
    }

    /// Where traffic of a source goes, whose header was decoded last.
    fn upstream_of(
        &self,
        served: &Served,
        source: Source,
        peer: SocketAddr,
    ) -> Result<SocketAddr, Refusal> {
        let upstreams = &served.port.upstreams;
        let Source::Client(client) = source else {
            let none = if upstreams.is_by_destination() {
                Refusal::NoDestination
            } else {
                Refusal::ClientFamily
            };
            return upstreams.of(source, peer, self.addressed.get()).ok_or(none);
        };
        if !upstreams.is_by_destination() {
            return upstreams.of(source, peer, self.addressed.get()).ok_or(Refusal::ClientFamily);
        }
        let destination = destination_in(&self.verdict()).socket_addr();
        // A client of one family cannot be seen by an upstream of the other.
        let same_family = |to: &SocketAddr| to.ip().to_canonical().is_ipv4() == client.is_ipv4();
        let allowed = |to: &SocketAddr| self.trusted.lets_lead(&served.listener.destinations, *to);
        destination.filter(same_family).filter(allowed).ok_or(Refusal::DestinationNotAllowed)
    }

    /// What the decoder found in the last header.
    pub fn verdict(&self) -> Verdict {
        // SAFETY: this is the serving thread.
        unsafe { self.worker.scratch.verdict() }
    }
}

/// Bytes of the address block of IPv6 in a version 2 header.
const BLOCK: usize = 36;

/// Writes the address block of a version 2 header (section 2.2), of IPv6 unless both are of IPv4; its
/// length.
fn write_block(block: &mut [u8; BLOCK], from: SocketAddr, to: SocketAddr) -> usize {
    let mut length = 0;
    let mut push = |bytes: &[u8]| {
        block[length..length + bytes.len()].copy_from_slice(bytes);
        length += bytes.len();
    };
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            push(&from.octets());
            push(&to.octets());
        }
        (from, to) => [from, to].into_iter().for_each(|ip| {
            push(&match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            });
        }),
    }
    push(&from.port().to_be_bytes());
    push(&to.port().to_be_bytes());
    length
}

/// The destination that the decoder has found in a header with a client.
pub fn destination_in(verdict: &Verdict) -> Endpoint {
    Endpoint {
        family: verdict.family,
        port: verdict.destination_port,
        address: verdict.destination_address,
        ..Endpoint::default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_family_of_both_addresses() {
        let block = |from: &str, to: &str| {
            let mut block = [0; BLOCK];
            let length = write_block(&mut block, from.parse().unwrap(), to.parse().unwrap());
            block[..length].to_vec()
        };
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0, 80];
        assert_eq!(block("192.0.2.1:4660", "198.51.100.2:80"), v4);
        let mixed = block("192.0.2.1:4660", "[2001:db8::2]:80");
        assert_eq!(mixed.len(), BLOCK);
        assert_eq!(mixed[10..16], [0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(mixed[32..], [0x12, 0x34, 0, 80]);
    }
}
