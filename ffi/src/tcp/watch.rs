//! Periodic checks of relayed connections: idle ones, and ones whose host is dead.
//!
//! Relaying a byte only stores a time, which a later check reads. A connection therefore costs no more than an entry in
//! a queue, and a short one is never checked.

use crate::proxy::settings::Settings;
use crate::worker::deadlines::Deadlines;

/// Wakes the thread at most once so often.
const TICK_MS: u64 = 1000;
/// A connection is looked at this often within the idle timeout: so late it may be noticed.
const LOOKS_AN_IDLE_TIMEOUT: u64 = 16;
/// When a connection is looked at if nothing else says when.
const DEFAULT_PERIOD_MS: u64 = 60_000;

/// The connections to look at.
#[derive(Default)]
pub struct Watch {
    queue: Deadlines,
}

/// What a connection remembers between two looks.
pub struct Watched {
    /// When a byte last moved.
    pub moved_at: u64,
    /// When its hosts were last looked at.
    hosts_at: u64,
    /// Both sockets have their keepalive options.
    keeps_alive: bool,
}

/// What is due for a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// Its hosts are to get a look; at the first one, both sockets get their keepalive options.
    Hosts {
        first: bool,
    },
    /// No byte has moved for the idle timeout.
    Idle,
}

impl Watch {
    /// Schedules the next check of a slot's connection, as its listener requires.
    pub fn push(&mut self, index: u32, now: u64, settings: &Settings) {
        self.queue.push(index, now, period(settings));
    }

    /// Stops watching a slot.
    pub fn remove(&mut self, index: u32) {
        self.queue.remove(index);
    }

    /// When `pop_due` is worth a call: on whole seconds, so that many connections are one wake-up.
    pub fn next(&self) -> Option<u64> {
        Some(self.queue.next()?.next_multiple_of(TICK_MS))
    }

    /// A slot that is due for a look, which leaves the queue.
    pub fn pop_due(&mut self, now: u64) -> Option<u32> {
        self.queue.pop_due(now)
    }
}

/// Milliseconds between two looks.
fn period(settings: &Settings) -> u64 {
    let idle = settings.idle_timeout.map_or(u64::MAX, |timeout| timeout / LOOKS_AN_IDLE_TIMEOUT);
    hosts_period(settings).min(idle.max(TICK_MS))
}

fn hosts_period(settings: &Settings) -> u64 {
    settings.keepalive.period_ms().unwrap_or(DEFAULT_PERIOD_MS)
}

impl Watched {
    /// For a connection that has just been established.
    pub fn new(now: u64) -> Watched {
        Watched { moved_at: now, hosts_at: now, keeps_alive: false }
    }

    /// The result of a check.
    pub fn look(&mut self, settings: &Settings, now: u64) -> Due {
        if settings.idle_timeout.is_some_and(|timeout| now - self.moved_at >= timeout) {
            return Due::Idle;
        }
        if now - self.hosts_at < hosts_period(settings) {
            return Due::Nothing;
        }
        self.hosts_at = now;
        Due::Hosts { first: !std::mem::replace(&mut self.keeps_alive, true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::keepalive::Keepalive;

    fn settings(keepalive: u32, idle_s: Option<u64>) -> Settings {
        Settings {
            keepalive: Keepalive::new(keepalive),
            idle_timeout: idle_s.map(|seconds| seconds * 1000),
            ..Settings::for_tests()
        }
    }

    /// When a connection on which bytes move at these times is ended as idle; and its looks till then.
    fn ends(settings: &Settings, moves: &[u64]) -> (u64, usize) {
        let mut watch = Watch::default();
        let mut watched = Watched::new(0);
        let mut looks = 0;
        watch.push(7, 0, settings);
        loop {
            let now = watch.next().unwrap();
            let moved = moves.iter().filter(|at| **at <= now);
            watched.moved_at = moved.max().copied().unwrap_or(0);
            assert_eq!(watch.pop_due(now), Some(7));
            looks += 1;
            if watched.look(settings, now) == Due::Idle {
                return (now, looks);
            }
            watch.push(7, now, settings);
        }
    }

    #[test]
    fn an_idle_connection_ends_within_a_sixteenth_and_a_tick() {
        for (timeout, moves) in [(320, &[][..]), (320, &[1_000, 300_500]), (2, &[1_900]), (1, &[])]
        {
            let (at, looks) = ends(&settings(15, Some(timeout)), moves);
            let due = moves.last().copied().unwrap_or(0) + timeout * 1000;
            let most = due + timeout * 1000 / LOOKS_AN_IDLE_TIMEOUT + 2 * TICK_MS;
            assert!((due..=most).contains(&at), "due at {due}, ended at {at}");
            assert!(looks < 50, "{looks} looks");
        }
    }

    #[test]
    fn hosts_are_looked_at_once_a_period() {
        let settings = settings(15, Some(160));
        let mut watched = Watched::new(0);
        let looks: Vec<Due> =
            [10_000, 15_000, 20_000, 30_000].map(|now| watched.look(&settings, now)).into();
        let (first, again) = (Due::Hosts { first: true }, Due::Hosts { first: false });
        assert_eq!(looks, [Due::Nothing, first, Due::Nothing, again]);
    }

    #[test]
    fn the_system_s_keepalive_is_set_once() {
        let settings = settings(0, None);
        let mut watched = Watched::new(0);
        assert_eq!(watched.look(&settings, 60_000), Due::Hosts { first: true });
        assert_eq!(watched.look(&settings, 120_000), Due::Hosts { first: false });
    }
}
