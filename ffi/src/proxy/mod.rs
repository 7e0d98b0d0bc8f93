//! The proxy: its listeners and workers, and everything that several threads share.
//!
//! `table.rs` has the listeners, `port.rs` their sockets, `places.rs` the addresses on which the program itself
//! listens; `handles.rs` maps the handles of the boundary. A listener is never changed in place: opening, changing
//! and closing one publishes a new table, and the workers follow (`worker/`).

pub mod handles;
pub mod handover;
pub mod listener;
pub mod pairs;
pub mod places;
pub mod pool;
pub mod port;
pub mod quota;
mod replaced;
pub mod sandbox;
pub mod seats;
pub mod settings;
#[cfg(test)]
mod steps;
pub mod stored;
pub mod survey;
pub mod table;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crate::abi::errors::{self, Error, Result};
use crate::abi::layout::{
    level, AdoptionRecord, DestinationRecord, Endpoint, Event, ListenerRecord, PortRecord,
    ProxyConfig, TrustRecord,
};
use crate::net::socket;
use crate::observe::events::{Doorbell, EventKind};
use crate::observe::log_limit::LogLimit;
use crate::observe::stats::STATS_LENGTH;
use crate::offload::Offload;
use crate::system::fdstore;
use crate::system::sync::lock;
use crate::trust::destinations::Destinations;
use crate::trust::host::{Host, Known};
use crate::trust::table::TrustTable;
use crate::worker::Worker;
use handover::stages::Stages;
use handover::take::Predecessor;
use handover::wire::Channel;
use listener::{destinations_of, trust_of, Lasting, Listener};
use pairs::Pairs;
use places::Places;
use port::{Port, Sockets, Transport, Wanted};
use replaced::Replaced;
use settings::{Budgets, ProxySettings, Settings};
use stored::Stored;
use survey::Surveys;
use table::Table;

/// `Proxy::stop_at`, as long as it is not told to stop.
const NEVER: u64 = u64::MAX;

/// A running program's listeners and workers.
pub struct Proxy {
    pub settings: ProxySettings,
    /// All workers count their milliseconds from here.
    pub opened: Instant,
    pub table: Table,
    /// This host's addresses, which no client from elsewhere may have.
    pub host: Arc<Host>,
    /// UDP flows that may share their client's port.
    pub pairs: Arc<Pairs>,
    /// Connections to an upstream on loopback use reno.
    pub reno_over_loopback: bool,
    /// What hands connections over to the kernel, where that is asked for and can be had.
    pub offload: OnceLock<Arc<Offload>>,
    workers: Mutex<Vec<Arc<Worker>>>,
    /// Held over a change of the table. The numbers of the next listener and sockets.
    next: Mutex<Next>,
    /// Milliseconds since the proxy was opened, once it is told to stop; before, `NEVER`. It only comes nearer.
    stop_at: AtomicU64,
    /// The program whose sockets this one takes over.
    pub predecessor: Option<Arc<Predecessor>>,
    /// The listening sockets in the service manager's store.
    pub stored: Stored,
    /// The program that has taken over, until it is told that all is done.
    successor: Mutex<Option<Channel>>,
    /// How far a hand-over is.
    pub stages: Stages,
    doorbell: Doorbell,
    /// Held by the one reader of the rings: what the workers have told alike is one line, too.
    draining: Mutex<LogLimit>,
    closed: Mutex<Closed>,
    replaced: Mutex<Replaced>,
    pub surveys: Surveys,
}

struct Next {
    listener: Cell<u32>,
    sockets: Cell<u32>,
}

/// A listener as it is to be.
pub struct Plan {
    /// 0 for a new one.
    pub id: u32,
    pub settings: Settings,
    pub trust: Option<Arc<TrustTable>>,
    pub destinations: Arc<Destinations>,
    /// What is open of them already is kept.
    pub ports: Vec<Wanted>,
}

/// A whole configuration, as it comes.
#[derive(Clone, Copy)]
pub struct Records<'a> {
    pub listeners: &'a [ListenerRecord],
    pub ports: &'a [PortRecord],
    pub rules: &'a [TrustRecord],
    pub destinations: &'a [DestinationRecord],
}

/// Listeners that were closed: no counter is lost.
struct Closed {
    /// Those with connections, perhaps.
    draining: Vec<Arc<Lasting>>,
    sums: [u64; STATS_LENGTH],
}

/// Checks the system and registers a proxy without workers and listeners; its handle. It continues with what its
/// predecessor has, if there is one.
pub fn open(config: &ProxyConfig, predecessor: Option<Arc<Predecessor>>) -> Result<i32> {
    errors::keep_panics_quiet();
    let settings = ProxySettings::new(config)?;
    if let Some(before) = predecessor.as_ref().filter(|it| it.workers as usize > settings.workers) {
        return Err(Error::invalid(format!(
            "Cannot take over from a program of {} workers with {}: restart it to have fewer",
            before.workers, settings.workers
        )));
    }
    let host = Host::watch().map_err(|error| {
        Error::system("Cannot start a thread for this host's addresses", &error)
    })?;
    let stored = Stored::new(fdstore::passed());
    let proxy = Proxy { stored, ..Proxy::after(predecessor, settings, host) };
    Ok(handles::add_proxy(Arc::new(proxy)))
}

/// Whether this process may use the clients' addresses and, unless it is 0, the mark.
pub fn check_capabilities(mark: u32) -> Result<()> {
    socket::check_capabilities(mark).map_err(|error| {
        let what = if mark == 0 { "" } else { " and mark its packets" };
        Error::system(format!("Cannot use the clients' addresses{what}"), &error)
    })
}

/// Whether no upstream of these ports is one of them, or where the metrics are served.
pub fn check_forwarding(metrics: &Endpoint, records: &[PortRecord]) -> Result<()> {
    let ports = wanted(records)?;
    let listens = ports.iter().map(|port| (port.listen, port.tcp, port.udp));
    let places = Places::new(listens, metrics.socket_addr());
    let known = Known::read();
    ports.iter().try_for_each(|port| places.check(port, &known))
}

fn wanted(records: &[PortRecord]) -> Result<Vec<Wanted>> {
    if records.is_empty() {
        return Err(Error::invalid("a listener needs a port"));
    }
    records.iter().map(Wanted::new).collect()
}

/// Takes the next this many records off a list.
fn take<'a, T>(records: &mut &'a [T], count: u32) -> Result<&'a [T]> {
    let missing = || Error::invalid("fewer records came than the listeners have");
    let (taken, rest) = records.split_at_checked(count as usize).ok_or_else(missing)?;
    *records = rest;
    Ok(taken)
}

/// Plans from records: each listener's ports, rules and destinations are the next ones.
fn plans_of(records: &Records) -> Result<Vec<Plan>> {
    let Records { listeners, mut ports, mut rules, mut destinations } = *records;
    let mut plans = Vec::with_capacity(listeners.len());
    for record in listeners {
        let rules = Some(take(&mut rules, record.rules)?).filter(|own| !own.is_empty());
        plans.push(Plan {
            id: record.id,
            settings: Settings::new(&record.config)?,
            trust: rules.map(trust_of).transpose()?,
            destinations: destinations_of(take(&mut destinations, record.destinations)?)?,
            ports: wanted(take(&mut ports, record.ports)?)?,
        });
    }
    if !ports.is_empty() || !rules.is_empty() || !destinations.is_empty() {
        return Err(Error::invalid("more records came than the listeners have"));
    }
    Ok(plans)
}

impl Proxy {
    /// A proxy without workers and listeners. Nothing of the system is checked.
    #[cfg(test)]
    pub fn new(settings: ProxySettings, host: Arc<Host>) -> Arc<Proxy> {
        Arc::new(Proxy::after(None, settings, host))
    }

    /// A proxy without workers and listeners, whose clock continues where its predecessor's is.
    fn after(
        predecessor: Option<Arc<Predecessor>>,
        settings: ProxySettings,
        host: Arc<Host>,
    ) -> Proxy {
        let began = predecessor.as_ref().and_then(|predecessor| predecessor.opened());
        Proxy {
            opened: began.unwrap_or_else(Instant::now),
            table: Table::default(),
            host,
            pairs: Arc::default(),
            reno_over_loopback: socket::host_paces(),
            offload: OnceLock::new(),
            workers: Mutex::default(),
            next: Mutex::new(Next { listener: Cell::new(1), sockets: Cell::new(1) }),
            stop_at: AtomicU64::new(NEVER),
            predecessor,
            stored: Stored::default(),
            successor: Mutex::default(),
            stages: Stages::default(),
            doorbell: Doorbell::default(),
            draining: Mutex::default(),
            closed: Mutex::new(Closed { draining: Vec::new(), sums: [0; STATS_LENGTH] }),
            replaced: Mutex::default(),
            surveys: Surveys::default(),
            settings,
        }
    }

    /// Hands relayed connections over to the kernel from here on.
    ///
    /// # Errors
    /// `SYSTEM` where the BPF program cannot be loaded or attached.
    pub fn start_offload(&self) -> Result<()> {
        let offload = Offload::load().map_err(Error::unavailable)?;
        self.offload.get_or_init(|| Arc::new(offload));
        Ok(())
    }

    fn offload(&self) -> Result<&Arc<Offload>> {
        self.offload.get().ok_or_else(|| Error::invalid("nothing is handed over"))
    }

    /// Whether connections that are handed over outlive this program.
    ///
    /// # Errors
    /// `SYSTEM`, with the reason, where they do not.
    pub fn outlives_offload(&self) -> Result<()> {
        self.offload()?.outlives().map_err(|reason| Error::unavailable(reason.to_owned()))
    }

    /// Takes over the connections that earlier programs have left to the kernel.
    ///
    /// # Errors
    /// `SYSTEM` where they cannot be found.
    pub fn adopt_offload(&self) -> Result<AdoptionRecord> {
        self.offload()?.adopt().map_err(Error::unavailable)
    }

    /// From here on connections that need nothing of this program are left to the kernel, where they outlive it.
    pub fn leave_offload(&self) {
        if let Some(offload) = self.offload.get() {
            offload.leave();
            self.wake();
        }
    }

    /// The end, after that of the workers: how many connections are left to the kernel.
    pub fn end_offload(&self) -> usize {
        self.offload.get().map_or(0, |offload| offload.end())
    }

    /// One more worker.
    ///
    /// # Errors
    /// `INVALID` if there are as many as the configuration says.
    pub fn open_worker(self: &Arc<Proxy>) -> Result<Arc<Worker>> {
        let mut workers = lock(&self.workers);
        if workers.len() >= self.settings.workers {
            return Err(Error::invalid(format!("there are {} workers", workers.len())));
        }
        let worker = Worker::open(self, workers.len() as u32)
            .map_err(|error| Error::system("Cannot open an eventfd", &error))?;
        workers.push(worker.clone());
        Ok(worker)
    }

    /// Makes these all the listeners that there are: those that are named by number are changed, new ones
    /// (0) opened, and the others closed, with so much `grace`. Sockets of addresses that stay are not
    /// touched, whichever listener has them then. All or nothing. Their numbers, in order.
    pub fn configure(
        &self,
        records: &Records,
        budgets: Budgets,
        grace: Duration,
    ) -> Result<Vec<u32>> {
        let plans = plans_of(records)?;
        let marks: BTreeSet<u32> = plans.iter().map(|plan| plan.settings.mark).collect();
        marks.into_iter().try_for_each(check_capabilities)?;
        self.reconfigure(plans, budgets, grace)
    }

    /// As `configure`, without the capabilities.
    pub fn reconfigure(
        &self,
        plans: Vec<Plan>,
        budgets: Budgets,
        grace: Duration,
    ) -> Result<Vec<u32>> {
        let next = self.change()?;
        let before = self.table.snapshot();
        for (at, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.id != 0) {
            self.find(plan.id)?;
            if plans[..at].iter().any(|other| other.id == plan.id) {
                return Err(Error::invalid(format!("listener {} is named twice", plan.id)));
            }
        }
        let listeners = self.carry_out(&next, plans)?;
        let ids: Vec<u32> = listeners.iter().map(|listener| listener.id).collect();
        for gone in before.listeners.iter().filter(|known| !ids.contains(&known.id)) {
            self.close(gone, grace);
        }
        lock(&self.replaced).add(self.table.version(), &before.listeners);
        self.table.publish(listeners, budgets, self.settings.metrics);
        self.wake();
        Ok(ids)
    }

    /// Checks a plan for all listeners, and opens what it takes.
    fn carry_out(&self, next: &Next, plans: Vec<Plan>) -> Result<Vec<Arc<Listener>>> {
        let before = self.table.snapshot();
        self.check_loops(&plans)?;
        let mut kept: HashMap<(SocketAddr, Transport), Arc<Sockets>> = HashMap::new();
        for port in before.listeners.iter().flat_map(|listener| &listener.ports) {
            for transport in Transport::BOTH {
                let sockets = port.sockets(transport).cloned();
                kept.extend(sockets.map(|sockets| ((port.listen, transport), sockets)));
            }
        }
        let mut taken = HashSet::new();
        let mut listeners = Vec::with_capacity(plans.len());
        for plan in plans {
            let known = before.find(plan.id);
            let open = |wanted: &Wanted| self.open_port(next, wanted, &kept);
            let ports: Vec<Arc<Port>> = plan.ports.iter().map(open).collect::<Result<_>>()?;
            for port in &ports {
                for transport in Transport::BOTH {
                    let is_there = port.sockets(transport).is_some();
                    if is_there && !taken.insert((port.listen, transport)) {
                        return Err(port::twice(port.listen, transport));
                    }
                }
            }
            let Plan { settings, trust, destinations, .. } = plan;
            listeners.push(Arc::new(match known {
                Some(known) => {
                    Listener { settings, trust, destinations, ports, ..(**known).clone() }
                }
                None => {
                    let id = next.listener.get();
                    next.listener.set(id + 1);
                    let new = Listener::new(id, settings, ports, self.settings.workers);
                    Listener { trust, destinations, ..new }
                }
            }));
        }
        Ok(listeners)
    }

    fn open_port(
        &self,
        next: &Next,
        wanted: &Wanted,
        kept: &HashMap<(SocketAddr, Transport), Arc<Sockets>>,
    ) -> Result<Arc<Port>> {
        let own = |transport| kept.get(&(wanted.listen, transport)).cloned();
        let predecessor = self.predecessor.as_ref();
        let inherited = |transport| {
            let place = (wanted.listen, transport, wanted.how);
            let handed = predecessor.and_then(|it| it.sockets(place));
            handed.or_else(|| self.stored.sockets(place))
        };
        let is_own = |transport| {
            let mut places = kept.keys().filter(|(_, other)| *other == transport);
            wanted.listen.port() != 0
                && (places.any(|(place, _)| port::overlap(*place, wanted.listen))
                    || predecessor.is_some_and(|it| it.listens(wanted.listen, transport))
                    || self.stored.listens(wanted.listen, transport))
        };
        let new_id = || next.sockets.replace(next.sockets.get() + 1);
        Port::open(wanted, own, inherited, new_id, is_own, self.settings.workers).map(Arc::new)
    }

    /// Begins a listener's end.
    fn close(&self, listener: &Listener, grace: Duration) {
        let _ = listener.lasting.ends_at.set(Instant::now() + grace);
        lock(&self.closed).draining.push(listener.lasting.clone());
    }

    fn find(&self, id: u32) -> Result<Arc<Listener>> {
        let snapshot = self.table.snapshot();
        let found = snapshot.find(id).cloned();
        found.ok_or_else(|| Error::invalid(format!("there is no listener {id}")))
    }

    /// Begins a change of the table; nothing changes once the proxy stops.
    fn change(&self) -> Result<MutexGuard<'_, Next>> {
        let next = lock(&self.next);
        match self.stop_at() {
            None => Ok(next),
            Some(_) => Err(Error::invalid("the proxy stops")),
        }
    }

    /// Whether no upstream of a plan is one of its listeners.
    fn check_loops(&self, plans: &[Plan]) -> Result<()> {
        let ports: Vec<Wanted> = plans.iter().flat_map(|plan| plan.ports.clone()).collect();
        let listens = ports.iter().map(|port| (port.listen, port.tcp, port.udp));
        let places = Places::new(listens, self.settings.metrics);
        let known = self.host.known();
        // The new ones first: the operator has just requested them.
        ports.iter().rev().try_for_each(|port| places.check(port, &known))
    }

    /// How many workers are open.
    fn open_workers(&self) -> usize {
        lock(&self.workers).len()
    }

    fn wake(&self) {
        for worker in lock(&self.workers).iter() {
            worker.wake.signal();
        }
    }

    /// Begins the end: no new connections, and none at all after `grace`. Another call brings the end nearer,
    /// if it does anything. Wakes the log, too.
    pub fn stop(&self, grace: Duration) -> Result<i32> {
        let _changing = lock(&self.next);
        let at = self.ms_of(Instant::now() + grace);
        self.stop_at.fetch_min(at, Ordering::Relaxed);
        if let Some(predecessor) = &self.predecessor {
            predecessor.abandon();
        }
        self.wake();
        self.doorbell.ring();
        Ok(0)
    }

    /// When the last connection must have ended, in milliseconds since the proxy was opened, once `stop` was
    /// called.
    #[inline]
    pub fn stop_at(&self) -> Option<u64> {
        Some(self.stop_at.load(Ordering::Relaxed)).filter(|at| *at != NEVER)
    }

    /// Milliseconds since the proxy was opened.
    pub fn now(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    /// A moment as milliseconds since the proxy was opened: a millisecond more than the whole ones, so
    /// that it has passed on waking.
    pub fn ms_of(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.opened).as_millis() as u64 + 1
    }

    /// Wakes the reader of the rings.
    pub fn ring(&self) {
        self.doorbell.ring();
    }

    /// Moves queued events into `into`; waits up to `timeout` for the first.
    pub fn next_events(&self, into: &mut [Event], timeout: Duration) -> Result<i32> {
        let mut limit = lock(&self.draining);
        let workers: Vec<Arc<Worker>> = lock(&self.workers).clone();
        // Nothing is held back once the end has come: this may be the last call.
        let now = || self.stop_at().is_none().then(|| self.now());
        let mut count = drain(&workers, into, &mut limit, now());
        if count == 0 && !into.is_empty() {
            let ready = || workers.iter().any(|worker| worker.has_told());
            let due = limit.next_deadline().map(|at| at.saturating_sub(self.now()));
            let timeout = due.map_or(timeout, |due| timeout.min(Duration::from_millis(due)));
            self.doorbell.wait(timeout, ready);
            count = drain(&workers, into, &mut limit, now());
        }
        Ok(count as i32)
    }

    /// Moves entries of the access log into `into`, as many as fit; the bytes written.
    pub fn next_access(&self, into: &mut [u8]) -> Result<i32> {
        let _only_reader = lock(&self.draining);
        let workers: Vec<Arc<Worker>> = lock(&self.workers).clone();
        let mut written = 0;
        for ring in workers.iter().filter_map(|worker| worker.accounts.as_ref()) {
            while let Some(size) = ring.peek(|account| account.size()) {
                let Some(room) = into.get_mut(written..written + size) else { break };
                let Some(account) = ring.pop() else { break };
                account.write(room);
                written += size;
            }
        }
        Ok(written as i32)
    }

    /// Writes the counters of a listener, or with 0 those of the proxy, summed over the workers; how
    /// many. What listeners have counted that were closed stays in the proxy's.
    pub fn stats(&self, id: u32, into: &mut [u64]) -> Result<i32> {
        let room = into
            .get_mut(..STATS_LENGTH)
            .ok_or_else(|| Error::invalid(format!("{STATS_LENGTH} counters need more room")))?;
        let mut closed = lock(&self.closed);
        closed.sum_up();
        let snapshot = self.table.snapshot();
        let open = snapshot.listeners.iter().map(|listener| &listener.lasting);
        let mut sums = [0; STATS_LENGTH];
        if id == 0 {
            sums = closed.sums;
            open.chain(&closed.draining).for_each(|lasting| lasting.read(&mut sums));
            lock(&self.workers).iter().for_each(|worker| worker.stats.read(&mut sums));
        } else {
            let found = open.chain(&closed.draining).find(|lasting| lasting.id == id);
            found
                .ok_or_else(|| Error::invalid(format!("there is no listener {id}")))?
                .read(&mut sums);
        }
        room.copy_from_slice(&sums);
        Ok(STATS_LENGTH as i32)
    }

    /// Whether anybody still has a listener as one of the configurations `since` to `until` had it: a
    /// connection, a flow, or a worker that has not followed yet. Configurations count from 1.
    pub fn is_in_use(&self, listener: u32, since: u32, until: u32) -> bool {
        lock(&self.replaced).is_in_use(listener, since..=until)
    }

    /// Sets a worker's gauges to zero: a thread that failed left nothing open.
    pub fn clear_gauges(&self, worker: u32) {
        let closed = lock(&self.closed);
        let snapshot = self.table.snapshot();
        let open = snapshot.listeners.iter().map(|listener| &listener.lasting);
        open.chain(&closed.draining).for_each(|lasting| {
            lasting.stats[worker as usize].clear_gauges();
        });
    }
}

impl Closed {
    /// Adds up what those have counted that no worker knows any more.
    fn sum_up(&mut self) {
        let sums = &mut self.sums;
        self.draining.retain_mut(|lasting| {
            let is_over = Arc::get_mut(lasting).is_some();
            if is_over {
                lasting.read(sums);
            }
            !is_over
        });
    }
}

impl Lasting {
    fn read(&self, sums: &mut [u64; STATS_LENGTH]) {
        self.stats.iter().for_each(|stats| stats.read(sums));
    }
}

/// Moves queued events into `into`, as many as fit; how many. `limit`: what several workers tell alike
/// within a second becomes one line; without it nothing is held back.
fn drain(
    workers: &[Arc<Worker>],
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
    for worker in workers {
        if count == into.len() {
            break;
        }
        let lost = worker.take_lost();
        if lost > 0 {
            let event = Event::new(EventKind::EventsLost, level::WARN);
            into[count] = Event { worker: worker.index, value: lost as u32, ..event };
            count += 1;
        }
        while count < into.len() {
            let Some(event) = worker.events.pop() else { break };
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
