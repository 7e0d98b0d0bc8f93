//! Services and their listeners: what the handles stand for.
//!
//! A service is one configuration with any number of listeners; each listener is served by one
//! thread. Everything that several threads touch lives here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::abi::errors::{self, Error, Result};
use crate::abi::layout::{
    level, protocol, udp_header, Event, ServiceConfig, SubnetRecord, HEADER_OFFSET, MAX_HEADER,
    SCRATCH_SIZE,
};
use crate::net::socket::{self, Source};
use crate::observe::access::Account;
use crate::observe::events::{Doorbell, EventKind, Ring, ACCOUNTS, EVENTS};
use crate::observe::log_limit::LogLimit;
use crate::observe::stats::{Counter, Stats, STATS_LENGTH};
use crate::tcp::keepalive::Keepalive;
use crate::trust::addresses::Nature;
use crate::trust::client;
use crate::trust::host::{Host, Known};
use crate::trust::subnets::Subnets;
use crate::udp::Directory;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Where each family's clients go, if anywhere; one of the two is there.
    upstream4: Option<SocketAddr>,
    upstream6: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    pub tcp: bool,
    pub udp: bool,
    pub udp_header: u32,
    pub mark: u32,
    pub header_timeout: Duration,
    pub connect_timeout: Duration,
    pub close_after: Duration,
    pub log_level: u8,
    pub max_flows: usize,
    pub max_connections: usize,
    pub max_pipes: usize,
    pub keepalive: Keepalive,
    pub idle_timeout: Option<Duration>,
    /// Connections to a service on loopback use reno.
    reno_over_loopback: bool,
}

impl Settings {
    fn new(config: &ServiceConfig) -> Result<Settings> {
        let missing = || Error::invalid("an address of the configuration is missing");
        let settings = Settings {
            listen: config.listen.socket_addr().ok_or_else(missing)?,
            upstream4: config.upstream4.socket_addr(),
            upstream6: config.upstream6.socket_addr(),
            metrics: config.metrics.socket_addr(),
            tcp: config.protocols & protocol::TCP != 0,
            udp: config.protocols & protocol::UDP != 0,
            udp_header: config.udp_header,
            mark: config.mark,
            header_timeout: Duration::from_millis(u64::from(config.header_timeout_ms)),
            connect_timeout: Duration::from_millis(u64::from(config.connect_timeout_ms)),
            close_after: Duration::from_millis(u64::from(config.close_after_ms)),
            log_level: u8::try_from(config.log_level).unwrap_or(level::DEBUG),
            max_flows: config.max_flows.max(1) as usize,
            max_connections: config.max_connections.max(1) as usize,
            max_pipes: config.max_pipes as usize,
            keepalive: Keepalive::new(config.keepalive_ms / 1000),
            idle_timeout: (config.idle_timeout_ms > 0)
                .then(|| Duration::from_millis(u64::from(config.idle_timeout_ms))),
            reno_over_loopback: socket::host_paces(),
        };
        if settings.upstream4.is_some_and(|upstream| !upstream.is_ipv4())
            || settings.upstream6.is_some_and(|upstream| !upstream.is_ipv6())
        {
            return Err(Error::invalid("an upstream is not of its family"));
        }
        if settings.upstreams().next().is_none() {
            return Err(missing());
        }
        if !settings.tcp && !settings.udp || settings.udp_header > udp_header::SPP {
            return Err(Error::invalid("the configuration names no protocol that there is"));
        }
        Ok(settings)
    }

    /// Settings with an IPv4 upstream, the rest for tests to change.
    #[cfg(test)]
    pub fn for_tests(upstream: SocketAddr) -> Settings {
        Settings {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            upstream4: Some(upstream),
            upstream6: None,
            metrics: None,
            tcp: true,
            udp: false,
            udp_header: udp_header::DATAGRAM,
            mark: 0,
            header_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            close_after: Duration::from_secs(60),
            log_level: level::DEBUG,
            max_flows: 16,
            max_connections: 16,
            max_pipes: 4,
            keepalive: Keepalive::new(15),
            idle_timeout: None,
            reno_over_loopback: false,
        }
    }

    /// Whether a connection to this service does without the host's own congestion control.
    pub fn wants_reno(&self, service: SocketAddr) -> bool {
        self.reno_over_loopback && service.ip().is_loopback()
    }

    /// Where traffic of a source goes: to the upstream of the client's family, if there is one. The
    /// proxy's own address is nobody's: where the peer's family has no upstream, the other's will do.
    pub fn upstream(&self, source: Source, peer: SocketAddr) -> Option<SocketAddr> {
        let (own, other) = match source.stands_for(peer) {
            IpAddr::V4(_) => (self.upstream4, self.upstream6),
            IpAddr::V6(_) => (self.upstream6, self.upstream4),
        };
        own.or(other.filter(|_| source == Source::Own))
    }

    /// Every upstream: one or two.
    fn upstreams(&self) -> impl Iterator<Item = SocketAddr> {
        self.upstream4.into_iter().chain(self.upstream6)
    }

    /// Where this program itself listens, if what is sent to an upstream arrives there.
    ///
    /// `is_own`: whether an address is one of this host's.
    pub fn own_listener(
        &self,
        upstream: SocketAddr,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Option<SocketAddr> {
        [Some(self.listen), self.metrics.filter(|_| self.tcp)]
            .into_iter()
            .flatten()
            .find(|listen| client::arrives_at(upstream, *listen, &is_own))
    }
}

/// One configuration and its listeners.
pub struct Service {
    pub settings: Settings,
    /// All listeners count their milliseconds from here.
    pub opened: Instant,
    /// UDP flows by client, over all listeners.
    pub flows: Arc<Directory>,
    listeners: Mutex<Vec<Arc<Listener>>>,
    subnets: Mutex<Option<Arc<Subnets>>>,
    /// Grows whenever `subnets` changes, so that a listener looks without taking the lock.
    subnets_version: AtomicU32,
    /// This host's addresses, which no client from elsewhere may have.
    pub host: Arc<Host>,
    /// IPv4, IPv6: the log has the first client that was refused for want of an upstream.
    told_families: [AtomicBool; 2],
    /// Set once, when the service is told to stop.
    stop_at: OnceLock<Instant>,
    doorbell: Doorbell,
    /// Somebody was told that most connections time out without a byte.
    pub told_silence: AtomicBool,
    /// Held by the one reader of the rings: what the listeners have told alike is one line, too.
    draining: Mutex<LogLimit>,
}

/// One listener: its sockets outlive the thread that serves them, so that a restart loses nothing
/// that waits in their queues.
pub struct Listener {
    pub index: u32,
    pub service: Arc<Service>,
    pub stats: Stats,
    pub scratch: Scratch,
    pub wake: Wake,
    pub tcp: Mutex<Option<Socket>>,
    pub udp: Mutex<Option<Socket>>,
    /// Held while a thread serves the listener.
    pub serving: Mutex<()>,
    events: Ring<Event>,
    /// Only where the log level asks for it.
    accounts: Option<Ring<Box<Account>>>,
}

static SERVICES: Mutex<Vec<Arc<Service>>> = Mutex::new(Vec::new());
static LISTENERS: Mutex<Vec<Arc<Listener>>> = Mutex::new(Vec::new());

/// A lock whose data stays usable when a thread panicked with it: every writer leaves it whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the system and registers a service; returns its handle.
pub fn open(config: &ServiceConfig) -> Result<i32> {
    errors::keep_panics_quiet();
    let settings = Settings::new(config)?;
    check_capabilities(settings.mark)?;
    let host = Host::watch().map_err(|error| {
        Error::system("Cannot start a thread for this host's addresses", &error)
    })?;
    check_loops(&settings, &host.known())?;
    check_listen(settings.listen, settings.tcp, settings.udp)?;
    Ok(register(&SERVICES, Service::new(settings, host)))
}

/// Whether this process may use the clients' addresses and, unless it is 0, the mark.
pub fn check_capabilities(mark: u32) -> Result<()> {
    socket::check_capabilities(mark).map_err(|error| {
        let what = if mark == 0 { "" } else { " and mark its packets" };
        Error::system(format!("Cannot use the clients' addresses{what}"), &error)
    })
}

/// Whether none of a configuration's upstreams is the program's own listener.
pub fn check_forwarding(config: &ServiceConfig) -> Result<()> {
    check_loops(&Settings::new(config)?, &Known::read())
}

fn check_loops(settings: &Settings, known: &Known) -> Result<()> {
    let is_own = |ip| known.nature_of(ip) == Nature::Own;
    for upstream in settings.upstreams() {
        if let Some(listen) = settings.own_listener(upstream, is_own) {
            let what = if listen == settings.listen { "listens" } else { "serves its metrics" };
            return Err(Error::forwarding_loop(format!(
                "Cannot forward to {upstream}: mmproxy itself {what} there, on {listen}"
            )));
        }
    }
    Ok(())
}

/// Whether this process may listen there, and nobody else does.
pub fn check_listen(listen: SocketAddr, tcp: bool, udp: bool) -> Result<()> {
    for (wanted, stream) in [(tcp, true), (udp, false)] {
        if wanted {
            socket::check_free(listen, stream)
                .map_err(|error| cannot_listen(listen, stream, &error))?;
        }
    }
    Ok(())
}

/// Opens a listener of a service; returns its handle.
pub fn open_listener(service: u32) -> Result<i32> {
    Ok(register(&LISTENERS, Listener::open(&find(service)?)?))
}

/// The service of a handle.
pub fn find(handle: u32) -> Result<Arc<Service>> {
    look_up(&SERVICES, handle)
}

/// The listener of a handle.
pub fn find_listener(handle: u32) -> Result<Arc<Listener>> {
    look_up(&LISTENERS, handle)
}

fn register<T>(table: &Mutex<Vec<Arc<T>>>, entry: Arc<T>) -> i32 {
    let mut table = lock(table);
    table.push(entry);
    // Handles start at 1, so that a zeroed one is never valid.
    table.len() as i32
}

fn look_up<T>(table: &Mutex<Vec<Arc<T>>>, handle: u32) -> Result<Arc<T>> {
    let index = (handle as usize).wrapping_sub(1);
    let found = lock(table).get(index).cloned();
    found.ok_or_else(|| Error::invalid(format!("there is no handle {handle}")))
}

fn cannot_listen(on: SocketAddr, stream: bool, error: &io::Error) -> Error {
    let protocol = if stream { "TCP" } else { "UDP" };
    Error::system(format!("Cannot listen on {on} ({protocol})"), error)
}

impl Service {
    /// A service without a listener yet. Nothing of the system is checked.
    pub fn new(settings: Settings, host: Arc<Host>) -> Arc<Service> {
        Arc::new(Service {
            opened: Instant::now(),
            flows: Arc::default(),
            listeners: Mutex::default(),
            subnets: Mutex::default(),
            subnets_version: AtomicU32::new(0),
            host,
            told_families: Default::default(),
            stop_at: OnceLock::new(),
            doorbell: Doorbell::default(),
            told_silence: AtomicBool::new(false),
            draining: Mutex::default(),
            settings,
        })
    }

    /// Replaces the allowed subnets. An empty set is refused: it would look like "allow all".
    pub fn set_subnets(&self, records: &[SubnetRecord]) -> Result<i32> {
        if records.is_empty() {
            return Err(Error::invalid("a set of subnets without a subnet allows nobody"));
        }
        let subnets = Subnets::new(records)
            .ok_or_else(|| Error::invalid("a subnet's prefix is longer than its address"))?;
        *lock(&self.subnets) = Some(Arc::new(subnets));
        self.subnets_version.fetch_add(1, Ordering::Release);
        Ok(0)
    }

    /// The version of the subnets: a change says to call `subnets` again.
    #[inline]
    pub fn subnets_version(&self) -> u32 {
        self.subnets_version.load(Ordering::Acquire)
    }

    /// The subnets whose peers may send headers; `None` allows all.
    pub fn subnets(&self) -> Option<Arc<Subnets>> {
        lock(&self.subnets).clone()
    }

    /// Whether a client of this family is the first that is refused for want of an upstream.
    pub fn is_first_without_upstream(&self, client: SocketAddr) -> bool {
        !self.told_families[usize::from(client.is_ipv6())].swap(true, Ordering::Relaxed)
    }

    /// How many listeners there are: one at least.
    pub fn listeners(&self) -> usize {
        lock(&self.listeners).len().max(1)
    }

    /// How many TCP connections each listener may have.
    pub fn connections_a_listener(&self) -> usize {
        (self.settings.max_connections / self.listeners()).max(1)
    }

    /// How many pipes each listener may have; perhaps none.
    pub fn pipes_a_listener(&self) -> usize {
        self.settings.max_pipes / self.listeners()
    }

    /// How many UDP flows each listener may have.
    pub fn flows_a_listener(&self) -> usize {
        (self.settings.max_flows / self.listeners()).max(1)
    }

    /// Begins the end: no new connections, and none at all after `grace`. Wakes the log, too.
    pub fn stop(&self, grace: Duration) -> Result<i32> {
        let _ = self.stop_at.set(Instant::now() + grace);
        for listener in lock(&self.listeners).iter() {
            listener.wake.signal();
        }
        self.doorbell.ring();
        Ok(0)
    }

    /// When the last connection must have ended, once `stop` was called.
    pub fn stop_at(&self) -> Option<Instant> {
        self.stop_at.get().copied()
    }

    /// Moves queued events into `into`; waits up to `timeout` for the first.
    pub fn next_events(&self, into: &mut [Event], timeout: Duration) -> Result<i32> {
        let mut limit = lock(&self.draining);
        let listeners: Vec<Arc<Listener>> = lock(&self.listeners).clone();
        // Nothing is held back once the end has come: this may be the last call.
        let now = || self.stop_at().is_none().then(|| self.now());
        let mut count = drain(&listeners, into, &mut limit, now());
        if count == 0 && !into.is_empty() {
            let ready = || listeners.iter().any(|listener| listener.has_told());
            let due = limit.next_deadline().map(|at| at.saturating_sub(self.now()));
            let timeout = due.map_or(timeout, |due| timeout.min(Duration::from_millis(due)));
            self.doorbell.wait(timeout, ready);
            count = drain(&listeners, into, &mut limit, now());
        }
        Ok(count as i32)
    }

    /// Milliseconds since the service was opened.
    fn now(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    /// Moves entries of the access log into `into`, as many as fit; the bytes written.
    pub fn next_access(&self, into: &mut [u8]) -> Result<i32> {
        let _only_reader = lock(&self.draining);
        let listeners: Vec<Arc<Listener>> = lock(&self.listeners).clone();
        let mut written = 0;
        for ring in listeners.iter().filter_map(|listener| listener.accounts.as_ref()) {
            while let Some(size) = ring.peek(|account| account.size()) {
                let Some(room) = into.get_mut(written..written + size) else { break };
                let Some(account) = ring.pop() else { break };
                account.write(room);
                written += size;
            }
        }
        Ok(written as i32)
    }

    /// Writes the counters, summed over the listeners.
    pub fn stats(&self, into: &mut [u64]) -> Result<i32> {
        let mut sums = [0; STATS_LENGTH];
        for listener in lock(&self.listeners).iter() {
            listener.stats.read(&mut sums);
        }
        let room = into
            .get_mut(..STATS_LENGTH)
            .ok_or_else(|| Error::invalid(format!("{STATS_LENGTH} counters need more room")))?;
        room.copy_from_slice(&sums);
        Ok(STATS_LENGTH as i32)
    }
}

/// Moves queued events into `into`, as many as fit; how many. `limit`: what several listeners tell alike
/// within a second becomes one line; without it nothing is held back.
fn drain(
    listeners: &[Arc<Listener>],
    into: &mut [Event],
    limit: &mut LogLimit,
    now: Option<u64>,
) -> usize {
    let mut count = 0;
    while count < into.len() {
        let held = match now {
            Some(now) => limit.pop_due(now),
            None => limit.pop(),
        };
        let Some(event) = held else { break };
        into[count] = event;
        count += 1;
    }
    for listener in listeners {
        if count == into.len() {
            break;
        }
        let lost = listener.take_lost();
        if lost > 0 {
            let event = Event::new(EventKind::EventsLost, level::WARN);
            into[count] = Event { listener: listener.index, value: lost as u32, ..event };
            count += 1;
        }
        while count < into.len() {
            let Some(event) = listener.events.pop() else { break };
            let event = match now {
                Some(now) if event.level == level::WARN => limit.admit(event, now),
                _ => Some(event),
            };
            let Some(event) = event else { continue };
            into[count] = event;
            count += 1;
        }
    }
    count
}

impl Listener {
    /// One more listener of a service: its sockets are open.
    pub fn open(service: &Arc<Service>) -> Result<Arc<Listener>> {
        let listen = service.settings.listen;
        let (tcp, udp) = (service.settings.tcp, service.settings.udp);
        let tcp = tcp.then(|| socket::tcp_listener(listen)).transpose();
        let udp = udp.then(|| socket::udp_listener(listen)).transpose();
        let mut siblings = lock(&service.listeners);
        let listener = Arc::new(Listener {
            index: siblings.len() as u32,
            stats: Stats::default(),
            scratch: Scratch::new(),
            wake: Wake::new().map_err(|error| Error::system("Cannot open an eventfd", &error))?,
            tcp: Mutex::new(tcp.map_err(|error| cannot_listen(listen, true, &error))?),
            udp: Mutex::new(udp.map_err(|error| cannot_listen(listen, false, &error))?),
            serving: Mutex::default(),
            events: Ring::new(EVENTS),
            accounts: (service.settings.log_level >= level::ACCESS).then(|| Ring::new(ACCOUNTS)),
            service: service.clone(),
        });
        siblings.push(listener.clone());
        Ok(listener)
    }

    /// Whether events of this level are wanted. Ask before building one on a busy path.
    #[inline]
    pub fn logs(&self, level: u8) -> bool {
        level <= self.service.settings.log_level
    }

    /// Queues an event for the log, if its level is wanted. Only the serving thread may call it.
    pub fn tell(&self, event: Event) {
        if !self.logs(event.level) {
            return;
        }
        if !self.events.push(Event { listener: self.index, ..event }) {
            self.stats.add(Counter::EventsLost, 1);
        }
        self.service.doorbell.ring();
    }

    /// Whether the access log is wanted: ask before keeping an account.
    #[inline]
    pub fn keeps_accounts(&self) -> bool {
        self.accounts.is_some()
    }

    /// Queues an entry of the access log, if that is wanted. Only the serving thread may call it.
    pub fn tell_account(&self, mut account: Box<Account>) {
        let Some(ring) = &self.accounts else { return };
        account.record.listener = self.index;
        if !ring.push(account) {
            self.stats.add(Counter::EventsLost, 1);
        }
        self.service.doorbell.ring();
    }

    /// Whether something waits for the log.
    fn has_told(&self) -> bool {
        self.events.has_some() || self.accounts.as_ref().is_some_and(Ring::has_some)
    }

    /// How many lines were lost since the last call.
    fn take_lost(&self) -> usize {
        self.events.take_lost() + self.accounts.as_ref().map_or(0, Ring::take_lost)
    }
}

/// Memory that a listener shares with its decoder: the verdict, and the header behind it.
pub struct Scratch {
    start: *mut u8,
}

// SAFETY: the memory is written only by the thread that serves the listener, inside `serve` and in
// the callback that `serve` calls; `Listener::serving` admits one such thread.
unsafe impl Send for Scratch {}
// SAFETY: as above.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// Allocated once a listener and never freed: TypeScript keeps a view of it.
    fn new() -> Scratch {
        let region = vec![0u64; SCRATCH_SIZE.div_ceil(8)].into_boxed_slice();
        Scratch { start: Box::leak(region).as_mut_ptr().cast() }
    }

    /// The region's first byte, aligned to 8.
    pub fn address(&self) -> *const u8 {
        self.start
    }

    /// Where a header goes: room for the longest, and one byte more.
    ///
    /// # Safety
    /// Only the serving thread may call it, and may hold one such slice at a time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn header(&self) -> &mut [u8] {
        // SAFETY: the region is SCRATCH_SIZE bytes, initialised and never freed; the caller promises
        // that no other slice of it lives.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(HEADER_OFFSET), MAX_HEADER + 1) }
    }

    /// What the decoder answered.
    ///
    /// # Safety
    /// Only the serving thread may call it.
    pub unsafe fn verdict(&self) -> crate::abi::layout::Verdict {
        // SAFETY: the region starts with a `Verdict`, aligned, and any bit pattern is one.
        unsafe { self.start.cast::<crate::abi::layout::Verdict>().read() }
    }
}

/// Wakes a listener's epoll from another thread (eventfd(2)).
pub struct Wake(OwnedFd);

impl Wake {
    fn new() -> io::Result<Wake> {
        // SAFETY: no pointers are passed.
        let fd =
            socket::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        Ok(Wake(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The descriptor to poll. It stays readable: whoever wakes looks at what changed.
    pub fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read from `one`. A full counter (EAGAIN) has woken it already.
        unsafe { libc::write(self.fd(), one.as_ptr().cast(), one.len()) };
    }
}
