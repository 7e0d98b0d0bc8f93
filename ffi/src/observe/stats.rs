//! Counters of one listener in one worker: written only by the worker's thread, read by any thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::named::named;
use crate::observe::refusal::Refusal;

named! {
    /// What is counted. Gauges (`*Active`) go down again; everything else only grows.
    Counter: usize {
        /// TCP connections taken from the listening socket.
        Accepted, "accepted";
        /// TCP connections open now.
        ConnectionsActive, "connections_active";
        /// TCP connections on which nothing ever came: probes, or a sender that waits. They are in the
        /// refusals `incomplete` or `timeout` as well.
        Silent, "silent";
        /// Headers by version: version 1.
        HeadersV1, "headers_v1";
        /// Version 2.
        HeadersV2, "headers_v2";
        /// Simple Proxy Protocol.
        HeadersSpp, "headers_spp";
        /// Connections and flows that were taken without a header.
        HeadersNone, "headers_none";
        /// Headers without a client: LOCAL, UNKNOWN, UNSPEC, unix.
        HeadersOwn, "headers_own";
        /// Connections to the upstream that were established.
        Connected, "connected";
        /// Connections to the upstream that failed.
        ConnectErrors, "connect_errors";
        /// Connections to the upstream that were not answered within the connect timeout.
        ConnectTimeouts, "connect_timeouts";
        /// Connections to the upstream that failed for want of a free port: they are errors as well.
        PortsExhausted, "ports_exhausted";
        /// The client's port was not available; an ephemeral one was used.
        PortFallbacks, "port_fallbacks";
        /// Bytes from clients to the upstream, TCP.
        BytesUp, "bytes_up";
        /// Bytes from the upstream to clients, TCP.
        BytesDown, "bytes_down";
        /// TCP connections ended because no byte moved for the idle timeout.
        IdleTimeouts, "idle_timeouts";
        /// TCP connections handed over to the kernel.
        Offloaded, "offloaded";
        /// Times that accepting paused because file descriptors or memory ran out.
        AcceptPauses, "accept_pauses";
        /// Datagrams from clients to the upstream.
        DatagramsUp, "datagrams_up";
        /// Datagrams from the upstream to clients.
        DatagramsDown, "datagrams_down";
        /// Bytes of the datagrams from clients to the upstream.
        DatagramBytesUp, "datagram_bytes_up";
        /// Bytes of the datagrams from the upstream to clients.
        DatagramBytesDown, "datagram_bytes_down";
        /// Datagrams the kernel would not take, in either direction.
        DatagramsLost, "datagrams_lost";
        /// ICMP errors of the upstream, reported on a flow's socket.
        UpstreamUnreachable, "upstream_unreachable";
        /// UDP flows opened.
        FlowsOpened, "flows_opened";
        /// UDP flows open now.
        FlowsActive, "flows_active";
        /// UDP flows evicted for newer ones.
        FlowsEvicted, "flows_evicted";
        /// UDP flows that could not be opened.
        FlowErrors, "flow_errors";
        /// Events that found their ring full.
        EventsLost, "events_lost";
    }
}

named! {
    /// How long something took, once a connection.
    Histogram: usize {
        /// From the acceptance to a complete header that was accepted.
        HeaderTime, "header_time";
        /// From the attempt to the upstream's answer.
        ConnectTime, "connect_time";
    }
}

/// The buckets' upper bounds in milliseconds; what takes longer has a last bucket of its own.
pub const BUCKETS_MS: [u64; 13] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// One more than the largest errno of Linux (errno.h: EHWPOISON).
pub const ERRNOS: usize = 134;

const REFUSALS: usize = Refusal::ALL.len();
const COUNTERS: usize = Counter::ALL.len();
const HISTOGRAMS: usize = Histogram::ALL.len();
const BUCKETS: usize = BUCKETS_MS.len() + 1;

/// How many `u64` `Stats::read` writes.
pub const STATS_LENGTH: usize = COUNTERS + REFUSALS + ERRNOS + HISTOGRAMS * (BUCKETS + 1);

/// The counters of one listener at one worker.
pub struct Stats {
    counters: [AtomicU64; COUNTERS],
    refusals: [AtomicU64; REFUSALS],
    connect_errors: [AtomicU64; ERRNOS],
    histograms: [Buckets; HISTOGRAMS],
}

/// How many fell into each bucket, each by itself, and the sum of all in milliseconds.
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            counters: zeroes(),
            refusals: zeroes(),
            connect_errors: zeroes(),
            histograms: [const { Buckets { counts: zeroes(), sum: AtomicU64::new(0) } };
                HISTOGRAMS],
        }
    }
}

const fn zeroes<const LENGTH: usize>() -> [AtomicU64; LENGTH] {
    [const { AtomicU64::new(0) }; LENGTH]
}

impl Stats {
    /// Adds to a counter. Only the worker's own thread may call it.
    #[inline]
    pub fn add(&self, counter: Counter, by: u64) {
        bump(&self.counters[counter as usize], by);
    }

    /// Takes one off a gauge. Only the worker's own thread may call it.
    #[inline]
    pub fn lower(&self, counter: Counter) {
        bump(&self.counters[counter as usize], u64::MAX);
    }

    /// Sets the gauges to zero: a thread that failed left nothing open. Only the worker's own thread
    /// may call it.
    pub fn clear_gauges(&self) {
        for gauge in [Counter::ConnectionsActive, Counter::FlowsActive] {
            self.counters[gauge as usize].store(0, Ordering::Relaxed);
        }
    }

    /// Counts a refusal. Only the worker's own thread may call it.
    #[inline]
    pub fn refuse(&self, refusal: Refusal) {
        bump(&self.refusals[refusal as usize], 1);
    }

    /// Counts a connection to the upstream that failed with this error. Only the worker's own thread
    /// may call it.
    pub fn fail_to_connect(&self, errno: i32) {
        let errors = &self.connect_errors;
        bump(usize::try_from(errno).ok().and_then(|at| errors.get(at)).unwrap_or(&errors[0]), 1);
    }

    /// Counts what took this many milliseconds. Only the worker's own thread may call it.
    #[inline]
    pub fn observe(&self, histogram: Histogram, ms: u64) {
        let buckets = &self.histograms[histogram as usize];
        bump(&buckets.counts[BUCKETS_MS.partition_point(|bound| *bound < ms)], 1);
        bump(&buckets.sum, ms);
    }

    #[cfg(test)]
    fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Adds every counter to `sums`: the counters, the refusals, the connect errors by errno, then
    /// each histogram's buckets and its sum.
    pub fn read(&self, sums: &mut [u64; STATS_LENGTH]) {
        let histograms =
            self.histograms.iter().flat_map(|buckets| buckets.counts.iter().chain([&buckets.sum]));
        let all = self
            .counters
            .iter()
            .chain(&self.refusals)
            .chain(&self.connect_errors)
            .chain(histograms);
        for (sum, value) in sums.iter_mut().zip(all) {
            *sum = sum.wrapping_add(value.load(Ordering::Relaxed));
        }
    }
}

/// One writer: a load and a store are enough, and cost no bus lock.
#[inline]
fn bump(value: &AtomicU64, by: u64) {
    value.store(value.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_go_up_and_down() {
        let stats = Stats::default();
        stats.add(Counter::ConnectionsActive, 2);
        stats.lower(Counter::ConnectionsActive);
        assert_eq!(stats.get(Counter::ConnectionsActive), 1);
    }

    #[test]
    fn a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        let stats = Stats::default();
        for ms in [0, 1, 2, 3, 10_000, 10_001, 70_000] {
            stats.observe(Histogram::ConnectTime, ms);
        }
        let mut sums = [0; STATS_LENGTH];
        stats.read(&mut sums);
        let buckets = &sums[STATS_LENGTH - BUCKETS - 1..];
        assert_eq!(buckets[..3], [2, 1, 1]);
        assert_eq!(buckets[BUCKETS - 2..], [1, 2, 90_007]);
        assert_eq!(buckets[..BUCKETS].iter().sum::<u64>(), 7);
    }

    #[test]
    fn an_error_is_counted_at_its_number_and_an_impossible_one_at_none() {
        let stats = Stats::default();
        for errno in [libc::ECONNREFUSED, libc::EHWPOISON, -1, i32::MAX] {
            stats.fail_to_connect(errno);
        }
        let mut sums = [0; STATS_LENGTH];
        stats.read(&mut sums);
        let errors = &sums[COUNTERS + REFUSALS..][..ERRNOS];
        assert_eq!((errors[0], errors[libc::ECONNREFUSED as usize]), (2, 1));
        assert_eq!(errors[ERRNOS - 1], 1);
    }

    #[test]
    fn reading_sums_up() {
        let (one, two) = (Stats::default(), Stats::default());
        one.add(Counter::BytesUp, 5);
        two.add(Counter::BytesUp, 7);
        two.refuse(Refusal::NotProxy);
        let mut sums = [0; STATS_LENGTH];
        one.read(&mut sums);
        two.read(&mut sums);
        assert_eq!(sums[Counter::BytesUp as usize], 12);
        assert_eq!(sums[COUNTERS + Refusal::NotProxy as usize], 1);
    }
}
