//! Events for the log: a bounded ring for each worker, which the main isolate reads.
//!
//! The worker's thread writes, one reader reads. A full ring drops the event and counts it: the relay never waits
//! for the log.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rtrb::{Consumer, Producer, RingBuffer};

use crate::abi::named::named;
use crate::system::sync::lock;

named! {
    /// The kind of an event, with the meaning of its `value`.
    EventKind: u16 {
        /// A connection was closed for its header, with what came instead. `value`: bytes that had come.
        HeaderRefused = 1, "header_refused";
        /// No complete header in time. `value`: bytes that had come.
        HeaderTimeout = 2, "header_timeout";
        /// A peer outside the allowed subnets was closed or its datagram dropped, or the listener has as many
        /// connections as it may: `refusal` says which.
        PeerRefused = 3, "peer_refused";
        /// The connection to the upstream failed; `errno` says why, or is 0 when nothing answered in time.
        ConnectFailed = 4, "connect_failed";
        /// The client's port was not available; an ephemeral one is used. `value`: the port requested.
        PortFallback = 5, "port_fallback";
        /// Accepting pauses for want of descriptors or memory. `value`: milliseconds.
        AcceptPaused = 6, "accept_paused";
        /// This host has no such address family: said once each. `value`: 4 or 6.
        FamilyUnavailable = 7, "family_unavailable";
        /// A connection is relayed to the upstream.
        ConnectionOpened = 8, "connection_opened";
        /// A relayed connection ended; `errno` is the error that ended it, or 0.
        ConnectionClosed = 9, "connection_closed";
        /// Datagrams were dropped: this one, and `left_out` more for the same reason.
        DatagramsRefused = 10, "datagrams_refused";
        /// A UDP flow was opened.
        FlowOpened = 11, "flow_opened";
        /// A UDP flow ended.
        FlowClosed = 12, "flow_closed";
        /// A UDP flow could not be opened; `errno` says why.
        FlowFailed = 13, "flow_failed";
        /// The flow table is full: the longest idle flow makes room. Said once a minute at most. With a
        /// `refusal` it is the listener's own limit, and said once a second. `value`: how many
        /// flows there may be.
        FlowsFull = 14, "flows_full";
        /// The ring was full. `value`: how many events were lost before this one.
        EventsLost = 15, "events_lost";
        /// A connection was closed for whom its header names: `refusal` says why, `client` who. Of
        /// clients whose family has no upstream, only the first is logged.
        ClientRefused = 16, "client_refused";
        /// The upstream has become an address on which this program listens.
        ForwardingLoop = 17, "forwarding_loop";
        /// This host's addresses cannot be read: the kernel is asked about each client. Said once.
        AddressesUnknown = 18, "addresses_unknown";
        /// A connection without a complete header made room for others. `value`: how many such the peer
        /// had.
        HeaderEvicted = 19, "header_evicted";
        /// Most connections time out without a byte: said once. `value`: how many did.
        MostlySilent = 20, "mostly_silent";
        /// No port is free from the client's address, or the proxy's own, towards the upstream.
        PortsExhausted = 21, "ports_exhausted";
        /// Replies are dropped: they cannot leave from the address and port that their peer spoke to, which
        /// `upstream` has; `errno` says why.
        ReplyFailed = 22, "reply_failed";
    }
}

/// Events a ring holds.
pub const EVENTS: usize = 1024;

/// Entries of the access log a ring holds: a log that keeps up loses nothing in a burst of this many on the
/// average.
pub const ACCOUNTS: usize = 16_384;

/// One worker's ring, from the thread that serves it to the log: `rtrb`'s, whose end for writing needs no
/// lock, in one value that both sides share.
pub struct Ring<T> {
    producer: UnsafeCell<Producer<T>>,
    /// The log reads from one thread at a time, for which it has a lock of its own.
    consumer: Mutex<Consumer<T>>,
    /// Dropped since the reader last asked.
    lost: AtomicUsize,
}

// SAFETY: only `push` looks at the producer, and one thread at a time may push: a worker's ring is
// written by the thread in `serve`, which holds `serving`. All else is Sync by itself.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Ring<T> {
    /// An empty ring with room for `capacity`.
    pub fn new(capacity: usize) -> Ring<T> {
        let (producer, consumer) = RingBuffer::new(capacity);
        Ring {
            producer: UnsafeCell::new(producer),
            consumer: Mutex::new(consumer),
            lost: AtomicUsize::new(0),
        }
    }

    /// Queues an event; `false` when the ring is full and the event is lost. One thread at a time may
    /// push.
    pub fn push(&self, event: T) -> bool {
        // SAFETY: the caller is the only one that pushes, and the reference does not leave this call.
        let pushed = unsafe { &mut *self.producer.get() }.push(event).is_ok();
        if !pushed {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        pushed
    }

    /// Looks at the oldest event, which stays.
    pub fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        lock(&self.consumer).peek().ok().map(look)
    }

    /// The oldest event, if any.
    pub fn pop(&self) -> Option<T> {
        lock(&self.consumer).pop().ok()
    }

    /// Whether `pop` would give an event.
    pub fn has_some(&self) -> bool {
        !lock(&self.consumer).is_empty()
    }

    /// How many events were lost since the last call.
    pub fn take_lost(&self) -> usize {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

/// Wakes the reader when a ring has something. A ring costs a system call only while it sleeps.
#[derive(Default)]
pub struct Doorbell {
    waiting: AtomicBool,
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Doorbell {
    /// Wakes the reader, if it sleeps.
    pub fn ring(&self) {
        if self.waiting.swap(false, Ordering::SeqCst) {
            *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.changed.notify_one();
        }
    }

    /// Sleeps until a ring or the timeout, unless `ready` finds something first.
    pub fn wait(&self, timeout: Duration, ready: impl Fn() -> bool) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        *rung = false;
        self.waiting.store(true, Ordering::SeqCst);
        if !ready() {
            let _ = self.changed.wait_timeout_while(rung, timeout, |rung| !*rung);
        }
        self.waiting.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::layout::Event;

    fn event(value: u32) -> Event {
        Event { value, ..Event::new(EventKind::HeaderRefused, 0) }
    }

    #[test]
    fn a_full_ring_drops_the_newest_and_counts() {
        let ring = Ring::new(EVENTS);
        for value in 0..EVENTS as u32 {
            assert!(ring.push(event(value)));
        }
        assert!(!ring.push(event(9999)));
        assert_eq!(ring.take_lost(), 1);
        assert_eq!(ring.take_lost(), 0);
        for value in 0..EVENTS as u32 {
            assert_eq!(ring.pop().map(|event| event.value), Some(value));
        }
        assert!(ring.pop().is_none());
        assert!(ring.push(event(1)));
    }

    #[test]
    fn what_a_ring_still_holds_is_dropped_with_it() {
        let held = std::sync::Arc::new(());
        let ring = Ring::new(4);
        ring.push(held.clone());
        ring.push(held.clone());
        assert!(ring.peek(|_| ()).is_some(), "looking takes nothing out");
        drop(ring.pop());
        assert_eq!(std::sync::Arc::strong_count(&held), 2);
        drop(ring);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[test]
    fn events_arrive_in_order_across_threads() {
        let ring = Ring::new(EVENTS);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut value = 0;
                while value < 100_000 {
                    if ring.push(event(value)) {
                        value += 1;
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < 100_000 {
                match ring.pop() {
                    Some(event) => {
                        assert_eq!(event.value, next);
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }

    #[test]
    fn a_doorbell_wakes_a_sleeper() {
        let bell = Doorbell::default();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| bell.wait(Duration::from_secs(60), || false));
            while !sleeper.is_finished() {
                bell.ring();
                std::thread::yield_now();
            }
        });
    }
}
