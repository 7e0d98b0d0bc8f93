//! The table of listeners. It is read as a whole and replaced as a whole; workers compare a version
//! number once a turn, and take the lock only when it has changed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::listener::Listener;
use super::places::Places;
use crate::system::sync::lock;

/// The listeners at one moment.
#[derive(Default)]
pub struct Snapshot {
    pub listeners: Vec<Arc<Listener>>,
    pub places: Places,
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

    /// Puts a listener in, in place of the one with its number if there is one. One change at a time:
    /// the caller holds a lock over what it has read and this.
    pub fn put(&self, listener: Listener, metrics: Option<SocketAddr>) {
        let mut listeners = self.snapshot().listeners.clone();
        let listener = Arc::new(listener);
        match listeners.iter_mut().find(|known| known.id == listener.id) {
            Some(known) => *known = listener,
            None => listeners.push(listener),
        }
        self.publish(listeners, metrics);
    }

    /// Takes a listener out; as `put`, one change at a time.
    pub fn remove(&self, id: u32, metrics: Option<SocketAddr>) {
        let mut listeners = self.snapshot().listeners.clone();
        listeners.retain(|known| known.id != id);
        self.publish(listeners, metrics);
    }

    fn publish(&self, listeners: Vec<Arc<Listener>>, metrics: Option<SocketAddr>) {
        let places = Places::of(&listeners, metrics);
        *lock(&self.current) = Arc::new(Snapshot { listeners, places });
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl Snapshot {
    /// A listener by its number.
    pub fn find(&self, id: u32) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| listener.id == id)
    }
}
