//! How many datagrams are taken in at once.
//!
//! Datagrams of one client that are taken in together leave in one send. With few clients a moderate
//! batch has enough of each, and stays in the processor's caches; with many it takes a larger one
//! (docs/decisions/0011-udp-batches.md).

use super::recv::INTAKE;

/// The least that is taken in at once.
const LEAST: usize = INTAKE / 8;
/// Fewer datagrams a client than this, and a larger batch pays.
const FEW: usize = 16;

/// The size of the next batch.
pub struct Intake {
    limit: usize,
}

impl Default for Intake {
    fn default() -> Intake {
        Intake { limit: LEAST }
    }
}

impl Intake {
    /// The most that the next batch may hold.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Learns from a batch of `datagrams` that were of so many `clients`.
    pub fn learn(&mut self, datagrams: usize, clients: usize) {
        if datagrams < LEAST || datagrams > 2 * FEW * clients {
            // So few say that there is no flood.
            self.limit = LEAST.max(self.limit / 2);
        } else if datagrams == self.limit && datagrams < FEW * clients {
            self.limit = INTAKE.min(self.limit * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(batches: &[(usize, usize)]) -> usize {
        let mut intake = Intake::default();
        for (datagrams, clients) in batches {
            intake.learn(*datagrams, *clients);
        }
        intake.limit()
    }

    #[test]
    fn grows_while_many_clients_flood() {
        assert_eq!(after(&[]), LEAST);
        assert_eq!(after(&[(LEAST, 512)]), 2 * LEAST);
        assert_eq!(after(&[(LEAST, 512), (2 * LEAST, 512), (4 * LEAST, 512)]), INTAKE);
    }

    #[test]
    fn stays_where_a_batch_has_enough_of_each_client() {
        assert_eq!(after(&[(LEAST, 16); 3]), LEAST);
        assert_eq!(after(&[(LEAST, 512), (2 * LEAST, 100)]), 2 * LEAST);
    }

    #[test]
    fn shrinks_when_the_flood_or_the_many_are_gone() {
        assert_eq!(after(&[(LEAST, 512), (2 * LEAST, 512), (3, 3)]), 2 * LEAST);
        assert_eq!(after(&[(LEAST, 512), (2 * LEAST, 512), (3, 3), (3, 3), (3, 3)]), LEAST);
        assert_eq!(after(&[(LEAST, 512), (2 * LEAST, 16)]), LEAST);
    }
}
