//! The table of listeners. It is read and replaced as a unit; workers compare a version number once per turn, and take
//! the lock only if it has changed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::listener::Listener;
use super::places::Places;
use super::settings::Budgets;
use crate::system::sync::lock;

/// The listeners at one moment.
#[derive(Default)]
pub struct Snapshot {
    pub listeners: Vec<Arc<Listener>>,
    pub places: Places,
    pub budgets: Budgets,
}

/// The listeners now.
#[derive(Default)]
pub struct Table {
    current: Mutex<Arc<Snapshot>>,
    /// Grows with each change, from 0.
    version: AtomicU32,
}

impl Table {
    /// A change says to call `snapshot` again.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// What it holds now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.current).clone()
    }

    /// Replaces all of it. One change at a time: the caller holds a lock over what it has read and this.
    pub fn publish(
        &self,
        listeners: Vec<Arc<Listener>>,
        budgets: Budgets,
        metrics: Option<SocketAddr>,
    ) {
        let places = Places::of(&listeners, metrics);
        *lock(&self.current) = Arc::new(Snapshot { listeners, places, budgets });
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl Snapshot {
    /// A listener by its number.
    pub fn find(&self, id: u32) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| listener.id == id)
    }
}
