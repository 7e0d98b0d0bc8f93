//! Times in buckets whose width is at most 1/64 of their value, so that a percentile is right to
//! 1.6 % at any scale.

/// Buckets per power of two.
const FINE: u64 = 64;
const FINE_BITS: u32 = FINE.trailing_zeros();
const BUCKETS: usize = (64 - FINE_BITS as usize + 1) * FINE as usize;

/// Counts of durations in nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0 }
    }

    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// The duration in microseconds that `share` (0 to 1) of all stayed within; 0 when there is
    /// none.
    pub fn percentile(&self, share: f64) -> f64 {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_bound(index) as f64 / 1000.0;
            }
        }
        0.0
    }
}

fn bucket(value: u64) -> usize {
    if value < FINE {
        return value as usize;
    }
    let shift = value.ilog2() - FINE_BITS;
    ((u64::from(shift) + 1) * FINE + (value >> shift) - FINE) as usize
}

/// The largest value that falls into a bucket.
fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < FINE {
        return index;
    }
    let shift = index / FINE - 1;
    // The last bucket ends at the largest u64.
    (((index % FINE + FINE + 1) as u128) << shift).saturating_sub(1).min(u128::from(u64::MAX))
        as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for value in (0..64).flat_map(|bit| [1u64 << bit, (1u64 << bit) - 1, 3u64 << bit >> 1]) {
            let index = bucket(value);
            assert!(upper_bound(index) >= value, "{value} above its bucket");
            assert!(index == 0 || upper_bound(index - 1) < value, "{value} below its bucket");
        }
        assert_eq!(upper_bound(bucket(u64::MAX)), u64::MAX);
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_of_a_known_series() {
        let mut histogram = Histogram::new();
        for microsecond in 1..=1000u64 {
            histogram.record(microsecond * 1000);
        }
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.percentile(share);
            assert!((found / expected - 1.0).abs() < 0.02, "{share}: {found} and not {expected}");
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(Histogram::new().percentile(0.5), 0.0);
    }
}
