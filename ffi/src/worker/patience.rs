//! Whether a thread that has nothing to do looks again for a moment before it sleeps.
//!
//! To fall asleep and be woken costs more than what was waited for when a client and an upstream answer
//! each other within microseconds. So a thread whose last wait was a short one looks for a little
//! longer; one wait in vain, and it sleeps at once until waits are short again. A proxy with little to
//! do never looks twice (docs/decisions/0013-a-moment-before-sleep.md).

use std::io;
use std::time::{Duration, Instant};

use super::poll::{Events, Poll};

/// How long to look before sleeping.
const LOOK: Duration = Duration::from_micros(20);
/// A wait that was over so soon lets the next one begin with a look.
const SOON: Duration = Duration::from_micros(50);

/// A thread's way to wait.
pub struct Patience {
    /// There are more processors than threads that may look: whoever is waited for can run.
    may_look: bool,
    was_soon: bool,
}

impl Patience {
    /// Of one of so many `workers`, on a machine (or a container) with so many `processors`.
    pub fn new(workers: usize, processors: usize) -> Patience {
        Patience { may_look: processors > workers, was_soon: false }
    }

    /// Waits for events up to `timeout_ms` (-1: for ever, 0: not at all).
    ///
    /// `streams`: the last events were of connections. Datagrams are not looked for: they gather
    /// while the thread sleeps, and a larger batch costs less.
    pub fn wait(
        &mut self,
        poll: &Poll,
        events: &mut Events,
        timeout_ms: i32,
        streams: bool,
    ) -> io::Result<()> {
        if !self.may_look || !streams || timeout_ms == 0 {
            return poll.wait(events, timeout_ms);
        }
        let began = Instant::now();
        while self.was_soon {
            poll.wait(events, 0)?;
            if events.len() > 0 {
                return Ok(());
            }
            self.was_soon = began.elapsed() < LOOK;
        }
        poll.wait(events, timeout_ms)?;
        self.was_soon = began.elapsed() < SOON;
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

    /// A wait for something that is there already, and one for what never comes.
    fn waits(patience: &mut Patience, streams: bool) -> (bool, bool) {
        let poll = Poll::new().unwrap();
        let mut events = Events::new();
        let (socket, mut other) = UnixStream::pair().unwrap();
        poll.add(socket.as_raw_fd(), Token::Wake, Interest::Changes).unwrap();
        let mut soon = false;
        // Each is an edge: a slow machine may miss the moment once, not a hundred times.
        for _ in 0..100 {
            other.write_all(b".").unwrap();
            patience.wait(&poll, &mut events, 1_000, streams).unwrap();
            assert_eq!(events.len(), 1);
            soon |= patience.was_soon;
        }
        patience.wait(&poll, &mut events, 1, streams).unwrap();
        assert_eq!(events.len(), 0);
        (soon, patience.was_soon)
    }

    #[test]
    fn looks_after_a_short_wait_and_no_more_after_a_long_one() {
        assert_eq!(waits(&mut Patience::new(1, 2), true), (true, false));
    }

    #[test]
    fn never_looks_for_datagrams() {
        assert_eq!(waits(&mut Patience::new(1, 2), false), (false, false));
    }

    #[test]
    fn never_looks_where_the_other_side_could_not_run_meanwhile() {
        assert_eq!(waits(&mut Patience::new(1, 1), true), (false, false));
        assert_eq!(waits(&mut Patience::new(4, 4), true), (false, false));
    }
}
