//! Busy polling: a thread that has nothing to do polls for a moment before it sleeps.
//!
//! If a client and an upstream answer each other within microseconds, falling asleep and waking up costs
//! more than the wait itself. A thread whose last wait was short therefore polls for a moment first. After
//! one unsuccessful poll it sleeps at once, until waits are short again. A proxy with little traffic never
//! polls (docs/decisions/0013-a-moment-before-sleep.md).

use std::io;
use std::time::{Duration, Instant};

use super::poll::{Events, Poll};

/// How long to poll before sleeping.
const POLL: Duration = Duration::from_micros(20);
/// A wait is short, and the next one begins with polling, if it took less than this.
const SHORT: Duration = Duration::from_micros(50);

/// How a thread waits for events.
pub struct BusyPoll {
    /// There are more processors than workers, so that the other side can run while this thread polls.
    may_poll: bool,
    was_short: bool,
}

impl BusyPoll {
    /// For one of `workers` threads, on a machine or container with this number of `processors`.
    pub fn new(workers: usize, processors: usize) -> BusyPoll {
        BusyPoll { may_poll: processors > workers, was_short: false }
    }

    /// Waits for events up to `timeout_ms` (-1: forever, 0: not at all).
    ///
    /// `streams`: the last events were for TCP connections. The thread does not poll for datagrams: they
    /// accumulate while it sleeps, and a larger batch costs less.
    pub fn wait(
        &mut self,
        poll: &Poll,
        events: &mut Events,
        timeout_ms: i32,
        streams: bool,
    ) -> io::Result<()> {
        if !self.may_poll || !streams || timeout_ms == 0 {
            return poll.wait(events, timeout_ms);
        }
        let began = Instant::now();
        while self.was_short {
            poll.wait(events, 0)?;
            if events.len() > 0 {
                return Ok(());
            }
            self.was_short = began.elapsed() < POLL;
        }
        poll.wait(events, timeout_ms)?;
        self.was_short = began.elapsed() < SHORT;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::poll::{Interest, Token};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    /// Waits for an event that is already there, then for one that never comes.
    fn waits(busy_poll: &mut BusyPoll, streams: bool) -> (bool, bool) {
        let poll = Poll::new().unwrap();
        let mut events = Events::new();
        let (socket, mut other) = UnixStream::pair().unwrap();
        poll.add(socket.as_raw_fd(), Token::Wake, Interest::Changes).unwrap();
        let mut short = false;
        // Edge-triggered: a slow machine may miss the short wait once, but not a hundred times.
        for _ in 0..100 {
            other.write_all(b".").unwrap();
            busy_poll.wait(&poll, &mut events, 1_000, streams).unwrap();
            assert_eq!(events.len(), 1);
            short |= busy_poll.was_short;
        }
        busy_poll.wait(&poll, &mut events, 1, streams).unwrap();
        assert_eq!(events.len(), 0);
        (short, busy_poll.was_short)
    }

    #[test]
    fn polls_after_a_short_wait_and_not_after_a_long_one() {
        assert_eq!(waits(&mut BusyPoll::new(1, 2), true), (true, false));
    }

    #[test]
    fn never_polls_for_datagrams() {
        assert_eq!(waits(&mut BusyPoll::new(1, 2), false), (false, false));
    }

    #[test]
    fn never_polls_if_the_other_side_could_not_run() {
        assert_eq!(waits(&mut BusyPoll::new(1, 1), true), (false, false));
        assert_eq!(waits(&mut BusyPoll::new(4, 4), true), (false, false));
    }
}
