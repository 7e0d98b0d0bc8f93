//! The stages of the old program's workers: each worker follows in its next turn, and reports it.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::abi::errors::{Error, Result};
use crate::proxy::Proxy;
use crate::system::sync::lock;
use crate::udp::Leaving;

/// Longer than any turn takes; a worker that is not served has no turn at all.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What the workers do with the sockets that another program is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// They serve them.
    #[default]
    Serving,
    /// They read nothing from them, nor from the upstream sockets of their flows. Once all are here, no flow
    /// changes.
    Paused,
    /// They show their flows.
    Leaving,
    /// They have given them up.
    Released,
}

/// The stage, and who has followed.
#[derive(Default)]
pub struct Stages {
    state: Mutex<State>,
    followed: Condvar,
}

#[derive(Default)]
struct State {
    stage: Stage,
    /// The numbers of the sockets that go.
    going: Arc<HashSet<u32>>,
    /// Workers that have followed.
    workers: HashSet<u32>,
    leaving: Vec<(u32, Leaving)>,
}

impl Stages {
    /// The stage, and the numbers of the sockets that it is about.
    pub fn now(&self) -> (Stage, Arc<HashSet<u32>>) {
        let state = lock(&self.state);
        (state.stage, state.going.clone())
    }

    /// A worker has followed, and shows what leaves with it.
    pub fn follow(&self, worker: u32, stage: Stage, leaving: Option<Leaving>) {
        let mut state = lock(&self.state);
        // One that comes late is of no account.
        if state.stage != stage {
            return;
        }
        state.workers.insert(worker);
        state.leaving.extend(leaving.map(|leaving| (worker, leaving)));
        self.followed.notify_one();
    }
}

impl Proxy {
    /// Brings every worker to a stage; what they showed on the way.
    ///
    /// # Errors
    /// Where one does not follow in time.
    pub(super) fn bring_to(
        &self,
        stage: Stage,
        going: &Arc<HashSet<u32>>,
    ) -> Result<Vec<(u32, Leaving)>> {
        let stages = &self.stages;
        let mut state = lock(&stages.state);
        (state.stage, state.going) = (stage, going.clone());
        state.workers.clear();
        state.leaving.clear();
        self.wake();
        let workers = self.open_workers();
        let deadline = Instant::now() + TIMEOUT;
        while state.workers.len() < workers {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let missing = (0..workers as u32).find(|at| !state.workers.contains(at));
                let missing = missing.unwrap_or_default();
                return Err(Error::invalid(format!("worker {missing} did not answer in time")));
            }
            let waited = stages.followed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(std::mem::take(&mut state.leaving))
    }
}
