//! Waiting until no packet is in the middle of the network stack that was there at some moment.
//!
//! A packet passes tc ingress and arrives at its socket within one read-side section of RCU. So after a grace
//! period every packet that has seen an entry as it was before a change has arrived. membarrier(2) with
//! MEMBARRIER_CMD_GLOBAL is such a wait: it takes milliseconds, so a thread of its own does it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::system::sync::lock;

/// MEMBARRIER_CMD_GLOBAL (linux/membarrier.h).
const GLOBAL: libc::c_long = 1;
/// Where the kernel does not offer it (nohz_full): no packet is this long on its way.
const INSTEAD: Duration = Duration::from_secs(1);

/// A moment that a grace period is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Grace periods, one after the other, as long as someone waits for one.
#[derive(Default)]
pub struct Grace {
    state: Mutex<State>,
    changed: Condvar,
    passed: AtomicU64,
}

#[derive(Default)]
struct State {
    asked: u64,
    stopped: bool,
}

impl Grace {
    /// Starts the thread.
    ///
    /// # Errors
    /// Those of starting one.
    pub fn start() -> io::Result<Arc<Grace>> {
        let grace = Arc::new(Grace::default());
        let run = grace.clone();
        std::thread::Builder::new().name("grace".into()).spawn(move || run.run())?;
        Ok(grace)
    }

    /// A ticket for everything that has happened so far.
    pub fn ask(&self) -> Ticket {
        let mut state = lock(&self.state);
        state.asked += 1;
        self.changed.notify_one();
        Ticket(state.asked)
    }

    /// Whether a grace period has passed since.
    pub fn has_passed(&self, Ticket(number): Ticket) -> bool {
        self.passed.load(Ordering::Acquire) >= number
    }

    /// Ends the thread.
    pub fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_one();
    }

    fn run(&self) {
        loop {
            let upto = {
                let mut state = lock(&self.state);
                while state.asked == self.passed.load(Ordering::Relaxed) && !state.stopped {
                    state =
                        self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if state.stopped {
                    return;
                }
                state.asked
            };
            // SAFETY: no pointers are passed.
            if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0 {
                std::thread::sleep(INSTEAD);
            }
            self.passed.store(upto, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_ticket_passes_and_later_ones_wait_for_their_own() {
        let grace = Grace::start().unwrap();
        let first = grace.ask();
        let until = Instant::now() + Duration::from_secs(10);
        while !grace.has_passed(first) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(grace.has_passed(first));
        assert!(!grace.has_passed(Ticket(first.0 + 1)));
        grace.stop();
    }
}
