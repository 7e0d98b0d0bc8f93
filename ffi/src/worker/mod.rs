//! One listener's thread: one epoll, from a connection's first byte to its last.

pub mod deadlines;
mod patience;
pub mod poll;
pub mod slab;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::TryLockError;
use std::time::Instant;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{action, level, AccessRecord, Endpoint, Event, Verdict};
use crate::net::socket::{self, Source};
use crate::observe::access::Account;
use crate::observe::events::EventKind;
use crate::observe::log_limit::LogLimit;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::proxy::service::Listener;
use crate::tcp::connections::Listening;
use crate::trust::trusted::Trusted;
use crate::udp::Udp;
use patience::Patience;
use poll::{Events, Interest, Poll, Token};

/// The decoder in TypeScript: the header's length in bytes and its `carrier`; an `action` comes back,
/// and the verdict in the scratch region.
pub type OnHeader = extern "C" fn(u32, u32) -> u32;

/// What both protocols need of their thread.
pub struct Context<'a> {
    pub listener: &'a Listener,
    pub poll: Poll,
    /// Milliseconds since the service was opened: read once a turn.
    pub now: u64,
    on_header: OnHeader,
    log_limit: RefCell<LogLimit>,
    /// IPv4, IPv6: this host was told to lack it.
    told_family: [Cell<bool>; 2],
    /// Who may be a client, as far as this host's addresses say.
    trusted: Trusted,
}

/// Serves a listener until its service is stopped.
pub fn serve(listener: &Listener, on_header: OnHeader) -> Result<i32> {
    let _serving = match listener.serving.try_lock() {
        Ok(guard) => guard,
        // A thread that panicked here has unwound: the listener is free.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            return Err(Error::invalid("the listener is served by another thread"))
        }
    };
    let failed = |error: io::Error| Error::system("Cannot serve a listener", &error);
    listener.stats.clear_gauges();
    let opened = listener.service.opened;
    let mut cx = Context::new(listener, on_header).map_err(failed)?;
    // Edge-triggered: it tells once of each signal, and nobody needs to read it.
    cx.poll.add(listener.wake.fd(), Token::Wake, Interest::Changes).map_err(failed)?;
    let mut tcp = Listening::start(&cx).map_err(failed)?;
    let mut udp = Udp::start(&cx).map_err(failed)?;
    let mut events = Events::new();
    let mut patience = Patience::new(listener.service.listeners(), processors());
    let mut streams = false;
    loop {
        let timeout = if tcp.has_work() {
            0
        } else {
            let log = cx.log_limit.borrow().next_deadline();
            sleep_ms(cx.now, [tcp.next_deadline(), udp.next_deadline(), stop_in(&cx, opened), log])
        };
        patience.wait(&cx.poll, &mut events, timeout, streams).map_err(failed)?;
        cx.now = since(opened);
        cx.look_at_addresses();
        if events.len() > 0 {
            streams = false;
        }
        for index in 0..events.len() {
            match events.get(index) {
                (Token::Wake, _) => {}
                (Token::TcpListener, _) => {
                    streams = true;
                    tcp.set_acceptable();
                }
                (Token::UdpListener, _) => udp.set_receivable(),
                (Token::Flow(key), _) => udp.on_reply(&cx, key),
                (token, bits) => {
                    streams = true;
                    tcp.on_event(&mut cx, token, bits);
                }
            }
        }
        tcp.turn(&mut cx);
        udp.turn(&cx);
        cx.tell_held();
        if let Some(stop_at) = listener.service.stop_at() {
            let finished = tcp.stop(&cx) & udp.stop(&cx);
            if finished || Instant::now() >= stop_at {
                tcp.end_all(&cx);
                udp.end_all(&cx);
                return Ok(0);
            }
        }
    }
}

/// How many processors this process may use at a time: its affinity, and a container's quota.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Milliseconds to sleep until the earliest of the deadlines; -1 without any.
fn sleep_ms<const COUNT: usize>(now: u64, deadlines: [Option<u64>; COUNT]) -> i32 {
    match deadlines.into_iter().flatten().min() {
        None => -1,
        Some(at) => i32::try_from(at.saturating_sub(now)).unwrap_or(i32::MAX),
    }
}

fn since(opened: Instant) -> u64 {
    opened.elapsed().as_millis() as u64
}

fn stop_in(cx: &Context, opened: Instant) -> Option<u64> {
    let at = cx.listener.service.stop_at()?.saturating_duration_since(opened);
    // A millisecond more than the whole ones, so that the deadline has passed on waking.
    Some(at.as_millis() as u64 + 1)
}

/// The client of a source; empty for the proxy's own.
pub fn client_of(source: Source) -> Endpoint {
    match source {
        Source::Client(client) => client.into(),
        Source::Own => Endpoint::default(),
    }
}

/// Whether an error may say that this host does not have the service's address family. No free port has
/// the same number: `socket::has_way_to` tells them apart.
fn may_lack_family(errno: i32, service: SocketAddr) -> bool {
    // Nothing lies between a host and its own loopback but the family itself.
    let unroutable = matches!(errno, libc::ENETUNREACH | libc::EADDRNOTAVAIL);
    errno == libc::EAFNOSUPPORT || unroutable && service.ip().is_loopback()
}

impl Drop for Context<'_> {
    /// However a thread ends, what it held back is logged.
    fn drop(&mut self) {
        let mut limit = self.log_limit.borrow_mut();
        while let Some(event) = limit.pop() {
            self.listener.tell(event);
        }
    }
}

impl<'a> Context<'a> {
    pub fn new(listener: &'a Listener, on_header: OnHeader) -> io::Result<Context<'a>> {
        Ok(Context {
            listener,
            poll: Poll::new()?,
            now: since(listener.service.opened),
            on_header,
            log_limit: RefCell::default(),
            told_family: Default::default(),
            trusted: Trusted::default(),
        })
    }

    /// Logs what a stranger can cause, once a second for each reason. Anything else: `Listener::tell`.
    pub fn tell_limited(&self, event: Event) {
        if !self.listener.logs(event.level) {
            return;
        }
        if let Some(event) = self.log_limit.borrow_mut().admit(event, self.now) {
            self.listener.tell(event);
        }
    }

    /// Logs what was held back for a second.
    fn tell_held(&self) {
        let mut limit = self.log_limit.borrow_mut();
        while let Some(event) = limit.pop_due(self.now) {
            self.listener.tell(event);
        }
    }

    /// Tells that the service was not reached; an `errno` of 0 is a timeout. A family that this host
    /// does not have is told once.
    pub fn tell_failure(
        &self,
        kind: EventKind,
        errno: i32,
        peer: Option<SocketAddr>,
        source: Source,
        service: SocketAddr,
    ) {
        let mut event = Event::new(kind, level::WARN);
        if may_lack_family(errno, service) && !socket::has_way_to(service) {
            let family = if service.is_ipv4() { 4 } else { 6 };
            if self.told_family[usize::from(service.is_ipv6())].replace(true) {
                return;
            }
            event = Event::new(EventKind::FamilyUnavailable, level::WARN);
            event.value = family;
        }
        self.tell_limited(Event {
            errno,
            peer: peer.map(Endpoint::from).unwrap_or_default(),
            client: client_of(source),
            upstream: service.into(),
            ..event
        });
    }

    /// Begins the access log's entry of what the header just decoded has opened; nothing where the
    /// log level does not ask for it.
    pub fn account(
        &self,
        protocol: u32,
        header: &[u8],
        peer: SocketAddr,
        source: Source,
    ) -> Option<Box<Account>> {
        if !self.listener.keeps_accounts() {
            return None;
        }
        // SAFETY: this is the serving thread.
        let verdict = unsafe { self.listener.scratch.verdict() };
        let destination = match source {
            Source::Own => Endpoint::default(),
            Source::Client(_) => Endpoint {
                family: verdict.family,
                port: verdict.destination_port,
                address: verdict.destination_address,
                ..Endpoint::default()
            },
        };
        let record = AccessRecord {
            protocol: protocol as u8,
            version: verdict.version,
            peer: peer.into(),
            client: client_of(source),
            destination,
            upstream: self.upstream(source, peer).map(Endpoint::from).unwrap_or_default(),
            ..AccessRecord::default()
        };
        Some(Account::new(record, header))
    }

    /// Asks the decoder about a whole header that a peer has sent: from where the service is to see
    /// it come.
    pub fn decode(
        &self,
        header: &[u8],
        carrier: u32,
        peer: SocketAddr,
    ) -> std::result::Result<Source, Refusal> {
        #[cfg(feature = "fault-injection")]
        assert!(!header.ends_with(b"mmproxy: panic"), "a header asked for it");
        #[cfg(feature = "fault-injection")]
        if header.ends_with(b"mmproxy: takeover") {
            crate::proxy::sandbox::takeover::attempt();
        }
        // SAFETY: this is the serving thread, and the slice ends before the decoder is called.
        let scratch = unsafe { self.listener.scratch.header() };
        match scratch.get_mut(..header.len()) {
            Some(room) => room.copy_from_slice(header),
            None => return Err(Refusal::Decoder),
        }
        let answer = (self.on_header)(header.len() as u32, carrier);
        // SAFETY: this is the serving thread.
        let verdict = unsafe { self.listener.scratch.verdict() };
        let stats = &self.listener.stats;
        if answer == action::DROP {
            let refusal = Refusal::from_code(verdict.refusal).unwrap_or(Refusal::Decoder);
            return Err(refusal);
        }
        let client = client_in(&verdict);
        let source = match (answer, client.socket_addr()) {
            (action::OWN, _) => Source::Own,
            (action::CLIENT, Some(client)) => Source::Client(client),
            _ => return Err(Refusal::Decoder),
        };
        self.trusted.judge(source, peer, &self.listener.service.settings)?;
        match verdict.version {
            1 => stats.add(Counter::HeadersV1, 1),
            2 => stats.add(Counter::HeadersV2, 1),
            _ => stats.add(Counter::HeadersSpp, 1),
        }
        if source == Source::Own {
            stats.add(Counter::HeadersOwn, 1);
        }
        Ok(source)
    }

    /// Where what a peer sends goes, if there is an upstream for it.
    pub fn upstream(&self, source: Source, peer: SocketAddr) -> Option<SocketAddr> {
        self.listener.service.settings.upstream(source, peer)
    }

    /// Takes this host's addresses anew where they have changed.
    pub fn look_at_addresses(&mut self) {
        self.trusted.refresh(&self.listener.service);
        if let Some(errno) = self.trusted.take_unknown() {
            let event = Event::new(EventKind::AddressesUnknown, level::WARN);
            self.listener.tell(Event { errno, ..event });
        }
    }

    /// A number that changes with this host's addresses: what a header means may have changed, too.
    pub fn addresses_version(&self) -> u32 {
        self.trusted.version()
    }

    /// The event of a refusal that concerns whom a header names, or where it would have gone; `None`
    /// where the log has had its like. Call it before another header is decoded.
    pub fn refused_client(&self, refusal: Refusal, peer: SocketAddr) -> Option<Event> {
        let kind = match refusal {
            Refusal::ForwardingLoop => EventKind::ForwardingLoop,
            _ => EventKind::ClientRefused,
        };
        // SAFETY: this is the serving thread.
        let client = client_in(&unsafe { self.listener.scratch.verdict() });
        if refusal == Refusal::ClientFamily
            && !self.listener.service.is_first_without_upstream(client.socket_addr()?)
        {
            return None;
        }
        let mut event = Event::new(kind, level::WARN);
        if refusal == Refusal::ForwardingLoop {
            let source = client.socket_addr().map_or(Source::Own, Source::Client);
            event.upstream = self.upstream(source, peer).map(Into::into).unwrap_or_default();
        }
        Some(Event { refusal: refusal as u8, peer: peer.into(), client, ..event })
    }

    /// Counts and tells that an upstream socket would not have had its client's address.
    pub fn refuse_other_source(&self, peer: SocketAddr, source: Source, upstream: SocketAddr) {
        self.listener.stats.refuse(Refusal::SourceMismatch);
        let event = Event::new(EventKind::ClientRefused, level::WARN);
        self.tell_limited(Event {
            refusal: Refusal::SourceMismatch as u8,
            peer: peer.into(),
            client: client_of(source),
            upstream: upstream.into(),
            ..event
        });
    }
}

/// The client that the decoder has found in a header.
fn client_in(verdict: &Verdict) -> Endpoint {
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
    fn a_host_without_a_family_is_told_from_a_missing_route() {
        let (loopback, elsewhere) =
            ("[::1]:443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap());
        assert!(may_lack_family(libc::EAFNOSUPPORT, elsewhere));
        assert!(may_lack_family(libc::ENETUNREACH, loopback));
        assert!(!may_lack_family(libc::ENETUNREACH, elsewhere));
        assert!(!may_lack_family(libc::ECONNREFUSED, loopback));
        assert!(!may_lack_family(0, loopback));
    }

    #[test]
    fn sleep_ends_at_the_earliest_deadline() {
        assert_eq!(sleep_ms(5, [None, None, None]), -1);
        assert_eq!(sleep_ms(5, [Some(9), None, Some(7)]), 2);
        assert_eq!(sleep_ms(5, [Some(3), None, None]), 0);
        assert_eq!(sleep_ms(0, [Some(u64::MAX), None, None]), i32::MAX);
    }
}
