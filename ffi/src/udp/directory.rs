//! The flows of all workers: a client keeps its flow, and its port towards the upstream, when its next peer reaches
//! another worker.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use super::flow::{Flow, Owner};
use crate::system::sync::lock;

const FIRST_SWEEP: usize = 1024;

/// The flows of a port by owner.
pub struct Directory<S> {
    flows: Mutex<Flows<S>>,
}

struct Flows<S> {
    by_owner: HashMap<Owner, Weak<Flow<S>>>,
    /// This many entries are worth a look for those that are gone.
    sweep_at: usize,
}

impl<S> Default for Directory<S> {
    fn default() -> Directory<S> {
        let flows = Flows { by_owner: HashMap::new(), sweep_at: FIRST_SWEEP };
        Directory { flows: Mutex::new(flows) }
    }
}

/// What a worker finds.
pub enum Claim<S> {
    /// The caller serves it from now on: it is new, or its worker had just given it up.
    Mine(Arc<Flow<S>>),
    /// Another worker serves it.
    Elsewhere(Arc<Flow<S>>),
}

impl<S> Directory<S> {
    /// The flow of an owner, or the one that `open` makes.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn claim(
        &self,
        owner: Owner,
        open: impl FnOnce() -> io::Result<Flow<S>>,
    ) -> io::Result<Claim<S>> {
        // The lock is held while the socket is opened: two workers must not open the same flow.
        let mut flows = lock(&self.flows);
        if let Some(flow) = flows.by_owner.get(&owner).and_then(Weak::upgrade) {
            return Ok(match flow.serve(true) {
                true => Claim::Elsewhere(flow),
                false => Claim::Mine(flow),
            });
        }
        let flow = Arc::new(open()?);
        flows.insert(owner, &flow);
        Ok(Claim::Mine(flow))
    }

    /// Its worker serves a flow no longer. The socket is closed here, unless another worker is about
    /// to send on it.
    pub fn give_up(&self, owner: &Owner, flow: Arc<Flow<S>>) {
        let mut flows = lock(&self.flows);
        flow.serve(false);
        let weak = Arc::downgrade(&flow);
        drop(flow);
        // One that is still in use stays: whoever claims its owner next takes it over, port and all.
        let gone = weak.strong_count() == 0;
        if gone && flows.by_owner.get(owner).is_some_and(|known| known.ptr_eq(&weak)) {
            flows.by_owner.remove(owner);
        }
    }

    /// How many flows are open.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn open(&self) -> usize {
        lock(&self.flows).by_owner.values().filter(|flow| flow.strong_count() > 0).count()
    }
}

impl<S> Flows<S> {
    fn insert(&mut self, owner: Owner, flow: &Arc<Flow<S>>) {
        if self.by_owner.len() >= self.sweep_at {
            self.by_owner.retain(|_, flow| flow.strong_count() > 0);
            self.sweep_at = 2 * self.by_owner.len() + FIRST_SWEEP;
        }
        self.by_owner.insert(owner, Arc::downgrade(flow));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(port: u16) -> Owner {
        Owner::Client(([192, 0, 2, 1], port).into())
    }

    fn open() -> io::Result<Flow<()>> {
        Ok(Flow::new((), 0))
    }

    #[test]
    fn an_owner_has_one_flow() {
        let directory = Directory::default();
        let Ok(Claim::Mine(first)) = directory.claim(owner(1), open) else { panic!("new") };
        let Ok(Claim::Elsewhere(second)) = directory.claim(owner(1), open) else { panic!("known") };
        assert!(Arc::ptr_eq(&first, &second));
        assert!(matches!(directory.claim(owner(2), open), Ok(Claim::Mine(_))));
    }

    #[test]
    fn a_flow_that_was_given_up_is_gone() {
        let directory = Directory::default();
        let Ok(Claim::Mine(flow)) = directory.claim(owner(1), open) else { panic!("new") };
        directory.give_up(&owner(1), flow);
        assert_eq!(lock(&directory.flows).by_owner.len(), 0);
    }

    #[test]
    fn a_flow_that_is_given_up_while_in_use_is_taken_over() {
        let directory = Directory::default();
        let Ok(Claim::Mine(flow)) = directory.claim(owner(1), open) else { panic!("new") };
        let sender = flow.clone();
        directory.give_up(&owner(1), flow);
        assert!(!sender.is_served());
        let Ok(Claim::Mine(taken)) = directory.claim(owner(1), || panic!("it is there")) else {
            panic!("taken over")
        };
        assert!(Arc::ptr_eq(&sender, &taken) && taken.is_served());
    }

    #[test]
    fn what_cannot_be_opened_leaves_nothing() {
        let directory: Directory<()> = Directory::default();
        let refused = || Err(io::Error::from_raw_os_error(libc::EMFILE));
        assert!(directory.claim(owner(1), refused).is_err());
        assert_eq!(lock(&directory.flows).by_owner.len(), 0);
    }

    #[test]
    fn flows_that_ended_in_use_do_not_pile_up() {
        let directory = Directory::default();
        for port in 0..10_000 {
            let Ok(Claim::Mine(flow)) = directory.claim(owner(port), open) else { panic!("new") };
            let in_use = flow.clone();
            directory.give_up(&owner(port), flow);
            drop(in_use);
        }
        assert!(lock(&directory.flows).by_owner.len() <= 2 * FIRST_SWEEP);
    }
}
