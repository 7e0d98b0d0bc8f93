//! The state of a worker that outlives its thread.

use std::io;
use std::sync::{Arc, Mutex};

use super::scratch::Scratch;
use super::wake::Wake;
use crate::abi::layout::{level, Event};
use crate::observe::access::Account;
use crate::observe::events::{Ring, ACCOUNTS, EVENTS};
use crate::observe::stats::{Counter, Stats};
use crate::proxy::Proxy;

/// One worker. It serves every listener; its sockets are the listeners' (`proxy/port.rs`).
pub struct Worker {
    /// From 0.
    pub index: u32,
    pub proxy: Arc<Proxy>,
    /// What is counted of no listener.
    pub stats: Stats,
    pub scratch: Scratch,
    pub wake: Wake,
    /// Held while a thread serves the worker.
    pub serving: Mutex<()>,
    pub events: Ring<Event>,
    /// Only where the log level requests it.
    pub accounts: Option<Ring<Box<Account>>>,
}

impl Worker {
    /// A worker that no thread serves yet.
    pub fn open(proxy: &Arc<Proxy>, index: u32) -> io::Result<Arc<Worker>> {
        let keeps_accounts = proxy.settings.log_level >= level::ACCESS;
        Ok(Arc::new(Worker {
            index,
            stats: Stats::default(),
            scratch: Scratch::new(),
            wake: Wake::new()?,
            serving: Mutex::default(),
            events: Ring::new(EVENTS),
            accounts: keeps_accounts.then(|| Ring::new(ACCOUNTS)),
            proxy: proxy.clone(),
        }))
    }

    /// Whether events of this level are wanted. Ask before building one on a busy path.
    #[inline]
    pub fn logs(&self, level: u8) -> bool {
        level <= self.proxy.settings.log_level
    }

    /// Queues an event for the log, if its level is wanted. Only the serving thread may call it.
    pub fn tell(&self, event: Event) {
        if !self.logs(event.level) {
            return;
        }
        if !self.events.push(Event { worker: self.index, ..event }) {
            self.stats.add(Counter::EventsLost, 1);
        }
        self.proxy.ring();
    }

    /// Whether the access log is wanted: ask before keeping an account.
    #[inline]
    pub fn keeps_accounts(&self) -> bool {
        self.accounts.is_some()
    }

    /// Whether flows count what they carry.
    #[inline]
    pub fn counts_traffic(&self) -> bool {
        self.keeps_accounts() || self.proxy.settings.counts_traffic
    }

    /// Queues an entry of the access log, if that is wanted. Only the serving thread may call it.
    pub fn tell_account(&self, mut account: Box<Account>) {
        let Some(ring) = &self.accounts else { return };
        account.record.worker = self.index;
        if !ring.push(account) {
            self.stats.add(Counter::EventsLost, 1);
        }
        self.proxy.ring();
    }

    /// Whether something waits for the log.
    pub fn has_told(&self) -> bool {
        self.events.has_some() || self.accounts.as_ref().is_some_and(Ring::has_some)
    }

    /// How many lines were lost since the last call.
    pub fn take_lost(&self) -> usize {
        self.events.take_lost() + self.accounts.as_ref().map_or(0, Ring::take_lost)
    }
}
