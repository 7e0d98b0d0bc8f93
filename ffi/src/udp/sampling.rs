//! Which datagrams of a batch the kernel is asked to tell the DSCP of.
//!
//! It costs the kernel one control message a datagram, some 4 % of a flood's CPU time, and nearly
//! always the answer is 0. So the first of each batch are asked, which are all where there is no flood;
//! one that has a DSCP makes all be asked for a while.

/// After a DSCP all datagrams of so many batches are asked.
const BATCHES: u32 = 64;

/// What the batches so far make of the next one.
pub struct Sampling {
    first: usize,
    all_for: u32,
}

impl Sampling {
    /// Asks the first so many of each batch.
    pub fn of_first(first: usize) -> Sampling {
        Sampling { first, all_for: 0 }
    }

    /// Whether every datagram of the next batch is asked.
    pub fn asks_all(&self) -> bool {
        self.all_for > 0
    }

    /// Whether the datagram in a place of the next batch is asked.
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
