//! Detects that most connections time out without a byte: a load balancer sends its header only with the client's
//! first bytes, but the upstream sends first. Pure logic.

/// The result of a connection, as far as it matters here. Headers without a client are
/// health checks, and connections that only open and close are probes: they do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something came: a header with a client, or anything else.
    Spoke,
    /// Nothing came before the header timeout.
    TimedOut,
}

/// This many connections are looked at together.
const INTERVAL: u32 = 20;
/// Fewer time-outs than this do not count.
const FEWEST: u32 = 10;

/// The connections of this interval so far, and the silent ones of them.
#[derive(Default)]
pub struct Silence {
    connections: u32,
    timed_out: u32,
}

impl Silence {
    /// Counts one. Where it makes enough of this interval's connections time out, and more than half of
    /// them so far: how many did.
    pub fn count(&mut self, outcome: Outcome) -> Option<u32> {
        if self.connections == INTERVAL {
            *self = Silence::default();
        }
        self.connections += 1;
        if outcome == Outcome::Spoke {
            return None;
        }
        self.timed_out += 1;
        let most = self.timed_out >= FEWEST && self.timed_out > self.connections / 2;
        most.then_some(self.timed_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is noticed first after this many of each, in this order.
    fn noticed(outcomes: &[(u32, Outcome)]) -> Option<u32> {
        let mut silence = Silence::default();
        let mut all = outcomes.iter().flat_map(|(count, outcome)| (0..*count).map(|_| *outcome));
        all.find_map(|outcome| silence.count(outcome))
    }

    use Outcome::{Spoke, TimedOut};

    #[test]
    fn more_than_half_is_most() {
        assert_eq!(noticed(&[(10, TimedOut)]), Some(10));
        assert_eq!(noticed(&[(9, Spoke), (10, TimedOut)]), Some(10));
        assert_eq!(noticed(&[(10, Spoke), (10, TimedOut)]), None);
        assert_eq!(noticed(&[(20, Spoke)]), None);
    }

    #[test]
    fn a_few_say_nothing() {
        assert_eq!(noticed(&[(9, TimedOut)]), None);
    }

    #[test]
    fn each_interval_stands_for_itself() {
        assert_eq!(noticed(&[(1000, Spoke), (10, TimedOut)]), Some(10));
        assert_eq!(noticed(&[(9, TimedOut), (11, Spoke), (9, TimedOut), (11, Spoke)]), None);
    }
}
