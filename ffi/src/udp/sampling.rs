//! Selects the datagrams of a batch for which the kernel reports the DSCP.
//!
//! This costs the kernel one control message per datagram, some 4 % of a flood's CPU time, and the DSCP is nearly always
//! 0. Only the first datagrams of each batch report it, which is all of them unless there is a flood. After one with a
//! DSCP, all of them report it for a while.

/// After a DSCP, all datagrams of this many batches report theirs.
const BATCHES: u32 = 64;

/// What the batches so far make of the next one.
pub struct Sampling {
    first: usize,
    all_for: u32,
}

impl Sampling {
    /// With this many samples at the beginning of each batch.
    pub fn of_first(first: usize) -> Sampling {
        Sampling { first, all_for: 0 }
    }

    /// Whether every datagram of the next batch reports its DSCP.
    pub fn asks_all(&self) -> bool {
        self.all_for > 0
    }

    /// Whether the datagram at an index of the next batch reports its DSCP.
    #[inline]
    pub fn asks(&self, place: usize) -> bool {
        place < self.first || self.asks_all()
    }

    /// Takes note of a batch: whether a datagram of it, of those asked that were looked at, had a DSCP.
    pub fn learn(&mut self, any: bool) {
        self.all_for = if any { BATCHES } else { self.all_for.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_asked_and_all_after_a_dscp_for_a_while() {
        let mut sampling = Sampling::of_first(4);
        assert!(sampling.asks(3) && !sampling.asks(4));
        sampling.learn(true);
        for _ in 0..BATCHES {
            assert!(sampling.asks(8_000));
            sampling.learn(false);
        }
        assert!(sampling.asks(3) && !sampling.asks(4));
    }
}
