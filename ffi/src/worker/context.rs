//! The state of a thread that TCP and UDP share: its epoll and clock, the decoder, the log.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::decision::{client_in, destination_in, Decision};
use super::poll::Poll;
use super::served::Served;
use super::trusted::Trusted;
use super::Worker;
use crate::abi::layout::{level, AccessRecord, Endpoint, Event};
use crate::net::socket::{self, Source};
use crate::observe::access::Account;
use crate::observe::events::EventKind;
use crate::observe::log_limit::LogLimit;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::offload::Offload;
use crate::proxy::places::Places;
use crate::proxy::port::Transport;
use crate::proxy::table::Snapshot;

/// The decoder in TypeScript: the header's length in bytes and its `carrier`; an `action` comes back,
/// and the verdict in the scratch region.
pub type OnHeader = extern "C" fn(u32, u32) -> u32;

/// What both protocols need of their thread.
pub struct Context<'a> {
    pub worker: &'a Worker,
    pub poll: Poll,
    /// Milliseconds since the proxy was opened: read once per turn.
    pub now: u64,
    pub(super) on_header: OnHeader,
    /// The port to which the header was addressed that was decoded last.
    pub(super) addressed: Cell<u16>,
    log_limit: RefCell<LogLimit>,
    /// IPv4, IPv6: logged that this host lacks it.
    told_family: [Cell<bool>; 2],
    /// Who may be a client, as far as this host's addresses say.
    pub(super) trusted: Trusted,
    /// The listeners as the thread last saw them.
    snapshot: Arc<Snapshot>,
    /// The table's version at that time.
    version: Option<u32>,
}

impl Drop for Context<'_> {
    /// However a thread ends, what it held back is logged.
    fn drop(&mut self) {
        let mut limit = self.log_limit.borrow_mut();
        while let Some(event) = limit.pop() {
            self.worker.tell(event);
        }
    }
}

/// Whether an error may say that this host does not have the upstream's address family. No free port has
/// the same number: `socket::has_way_to` tells them apart.
fn may_lack_family(errno: i32, upstream: SocketAddr) -> bool {
    // A host lacks a route to its own loopback only if it lacks the family itself.
    let unroutable = matches!(errno, libc::ENETUNREACH | libc::EADDRNOTAVAIL);
    errno == libc::EAFNOSUPPORT || unroutable && upstream.ip().is_loopback()
}

impl<'a> Context<'a> {
    pub fn new(worker: &'a Worker, on_header: OnHeader) -> io::Result<Context<'a>> {
        Ok(Context {
            worker,
            poll: Poll::new()?,
            now: worker.proxy.now(),
            on_header,
            addressed: Cell::default(),
            log_limit: RefCell::default(),
            told_family: Default::default(),
            trusted: Trusted::default(),
            snapshot: Arc::default(),
            version: None,
        })
    }

    /// The listeners, where they have changed since the last call: those before, and those now.
    #[inline]
    pub fn look_at_listeners(&mut self) -> Option<(Arc<Snapshot>, Arc<Snapshot>)> {
        let table = &self.worker.proxy.table;
        // Read first: what changes behind it is seen at the next call.
        let version = Some(table.version());
        if version == self.version {
            return None;
        }
        self.version = version;
        let before = std::mem::replace(&mut self.snapshot, table.snapshot());
        Some((before, self.snapshot.clone()))
    }

    /// What hands connections over to the kernel, where that is asked for and can be had.
    #[inline]
    pub fn offload(&self) -> Option<&Arc<Offload>> {
        self.worker.proxy.offload.get()
    }

    /// Where this program listens.
    pub fn places(&self) -> &Places {
        &self.snapshot.places
    }

    /// Logs what is not of strangers' making. Anything else: `tell_limited`.
    pub fn tell(&self, served: &Served, event: Event) {
        self.worker.tell(served.event(event));
    }

    /// Logs what a stranger can cause, once a second for each reason.
    pub fn tell_limited(&self, served: &Served, event: Event) {
        if !self.worker.logs(event.level) {
            return;
        }
        if let Some(event) = self.log_limit.borrow_mut().admit(served.event(event), self.now) {
            self.worker.tell(event);
        }
    }

    /// Logs what was held back for a second.
    pub(super) fn tell_held(&self) {
        let mut limit = self.log_limit.borrow_mut();
        while let Some(event) = limit.pop_due(self.now) {
            self.worker.tell(event);
        }
    }

    /// When `tell_held` must be called.
    pub(super) fn next_held(&self) -> Option<u64> {
        self.log_limit.borrow().next_deadline()
    }

    /// Tells that an upstream was not reached; an `errno` of 0 is a timeout. A family that this host
    /// does not have is logged once.
    pub fn tell_failure(
        &self,
        served: &Served,
        kind: EventKind,
        errno: i32,
        peer: Option<SocketAddr>,
        decision: &Decision,
    ) {
        let upstream = decision.upstream;
        let mut event = Event::new(kind, level::WARN);
        if may_lack_family(errno, upstream) && !socket::has_way_to(upstream) {
            let family = if upstream.is_ipv4() { 4 } else { 6 };
            if self.told_family[usize::from(upstream.is_ipv6())].replace(true) {
                return;
            }
            event = Event::new(EventKind::FamilyUnavailable, level::WARN);
            event.value = family;
        }
        let event = Event {
            errno,
            peer: peer.map(Endpoint::from).unwrap_or_default(),
            client: decision.client(),
            upstream: upstream.into(),
            ..event
        };
        self.tell_limited(served, event);
    }

    /// Begins the access log's entry of what the header just decoded has opened; nothing if the
    /// log level does not ask for it.
    pub fn account(
        &self,
        served: &Served,
        protocol: u32,
        header: &[u8],
        peer: SocketAddr,
        decision: &Decision,
    ) -> Option<Box<Account>> {
        if !self.worker.keeps_accounts() {
            return None;
        }
        let verdict = self.verdict();
        let destination = match decision.source {
            Source::Own => Endpoint::default(),
            Source::Client(_) => destination_in(&verdict),
        };
        let record = AccessRecord {
            listener: served.id(),
            protocol: protocol as u8,
            version: verdict.version,
            peer: peer.into(),
            client: decision.client(),
            destination,
            upstream: decision.upstream.into(),
            ..AccessRecord::default()
        };
        Some(Account::new(record, header))
    }

    /// Copies this host's addresses again if they have changed.
    pub fn look_at_addresses(&mut self) {
        self.trusted.refresh(&self.worker.proxy.host);
        if let Some(errno) = self.trusted.take_unknown() {
            let event = Event::new(EventKind::AddressesUnknown, level::WARN);
            self.worker.tell(Event { errno, ..event });
        }
    }

    /// Whether this program listens on an address, or on all of this host's.
    pub fn listens_on(&self, address: SocketAddr, transport: Transport) -> bool {
        self.places().arrives_at(address, transport, |ip| self.trusted.is_own(ip)).is_some()
    }

    /// A number that changes with this host's addresses: what a header means may have changed, too.
    pub fn addresses_version(&self) -> u32 {
        self.trusted.version()
    }

    /// The event of a refusal that concerns whom a header names, or where it would have gone; `None`
    /// where the log has had its like. Call it before another header is decoded.
    pub fn refused_client(
        &self,
        served: &Served,
        refusal: Refusal,
        peer: SocketAddr,
    ) -> Option<Event> {
        let kind = match refusal {
            Refusal::ForwardingLoop => EventKind::ForwardingLoop,
            _ => EventKind::ClientRefused,
        };
        let client = client_in(&self.verdict());
        if refusal == Refusal::ClientFamily
            && !served.listener.lasting.is_first_without_upstream(client.socket_addr()?)
        {
            return None;
        }
        let mut event = Event::new(kind, level::WARN);
        if matches!(refusal, Refusal::ForwardingLoop | Refusal::DestinationNotAllowed) {
            let upstreams = &served.port.upstreams;
            event.upstream = match client.socket_addr() {
                Some(_) if upstreams.is_by_destination() => destination_in(&self.verdict()),
                client => {
                    let source = client.map_or(Source::Own, Source::Client);
                    let to = upstreams.of(source, peer, self.addressed.get());
                    to.map(Into::into).unwrap_or_default()
                }
            };
        }
        Some(Event { refusal: refusal as u8, peer: peer.into(), client, ..event })
    }

    /// Counts and logs that a client's port was not available.
    pub fn tell_fallback(&self, served: &Served, peer: SocketAddr, decision: &Decision) {
        served.stats.add(Counter::PortFallbacks, 1);
        let event = decision.described(Event::new(EventKind::PortFallback, level::DEBUG), peer);
        self.tell(served, Event { value: u32::from(event.client.port), ..event });
    }

    /// Counts and logs that an upstream socket would not have had its client's address.
    pub fn refuse_other_source(&self, served: &Served, peer: SocketAddr, decision: &Decision) {
        served.stats.refuse(Refusal::SourceMismatch);
        let event = Event::new(EventKind::ClientRefused, level::WARN);
        let event = decision.described(event, peer);
        let refusal = Refusal::SourceMismatch as u8;
        self.tell_limited(served, Event { refusal, ..event });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_family_is_told_from_a_missing_route() {
        let (loopback, elsewhere) =
            ("[::1]:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap());
        assert!(may_lack_family(libc::EAFNOSUPPORT, elsewhere));
        assert!(may_lack_family(libc::ENETUNREACH, loopback));
        assert!(!may_lack_family(libc::ENETUNREACH, elsewhere));
        assert!(!may_lack_family(libc::ECONNREFUSED, loopback));
        assert!(!may_lack_family(0, loopback));
    }
}
