//! The size of the next batch of datagrams.
//!
//! Datagrams of one client that are received together leave in one send. With few clients, a moderate batch contains
//! enough of each, and stays in the processor's caches; with many clients, a larger batch is better
//! (docs/decisions/0011-udp-batches.md).

use super::recv::INTAKE;

/// The smallest batch limit.
const LEAST: usize = INTAKE / 8;
/// With fewer datagrams per client than this, a larger batch is better.
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

    /// Adapts the limit after a batch of `datagrams` for this number of `clients`.
    pub fn learn(&mut self, datagrams: usize, clients: usize) {
        if datagrams < LEAST || datagrams > 2 * FEW * clients {
            // With so few there is no flood.
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
