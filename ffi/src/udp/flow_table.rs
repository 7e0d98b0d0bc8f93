//! One worker's flows by owner, as pure logic: no socket, no clock.
//!
//! A slot is used again at once, under another serial number: a reference to its former flow finds
//! nothing, within a batch and after it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use hashbrown::HashMap;

use super::flow::{Flow, KnownRoute, Owner};
use super::group::Mark;
use super::idle::IdleQueue;
use crate::worker::poll::Key;

/// Owners whose flow could not be opened: so many are remembered, the oldest make room.
const MOST_FAILED: usize = 1024;
const FIRST_SWEEP: usize = 1024;

/// A flow of a table. No two flows of a worker ever have the same serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowRef {
    pub index: u32,
    pub serial: u64,
}

impl FlowRef {
    /// Leads to no flow.
    pub const NONE: FlowRef = FlowRef { index: u32::MAX, serial: u64::MAX };

    /// What its events carry.
    pub fn key(self) -> Key {
        Key { index: self.index, generation: self.serial as u32 & Key::GENERATIONS }
    }
}

/// An owner's entry.
pub struct Entry<S, A> {
    pub owner: Owner,
    /// Where its datagrams of the current batch are.
    pub mark: Mark,
    pub known: KnownRoute,
    /// Cleared when the device towards the upstream cannot segment.
    pub segmenting: bool,
    pub place: Place<S, A>,
    serial: u64,
}

/// Where a flow is served.
pub enum Place<S, A> {
    /// By this worker. With its entry of the access log, where there is one.
    Here { flow: Arc<Flow<S>>, account: Option<A> },
    /// By another worker. `held` while datagrams of the batch wait for it.
    Elsewhere { flow: Weak<Flow<S>>, held: Option<Arc<Flow<S>>> },
    /// Nowhere: it could not be opened for this error, and is not tried before this time.
    Failed { until: u64, errno: i32 },
}

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Datagrams can be sent.
    Live,
    /// Datagrams are dropped for now.
    Failed,
    /// The header is to be decoded again.
    Gone,
}

/// The flows of a worker.
pub struct FlowTable<S, A> {
    by_owner: HashMap<Owner, FlowRef>,
    entries: Vec<Option<Entry<S, A>>>,
    free: Vec<u32>,
    next_serial: u64,
    idle: IdleQueue<FlowRef>,
    /// The earliest first.
    failed: VecDeque<(u64, FlowRef)>,
    here: usize,
    capacity: usize,
    /// So many entries of other workers' flows are worth a look for those that have ended.
    sweep_at: usize,
    elsewhere: usize,
}

impl<S, A> FlowTable<S, A> {
    /// A table of at most `capacity` flows of this worker, which are due `close_after` milliseconds
    /// after their last use.
    pub fn new(capacity: usize, close_after: u64) -> FlowTable<S, A> {
        FlowTable {
            by_owner: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            next_serial: 1,
            idle: IdleQueue::new(close_after),
            failed: VecDeque::new(),
            here: 0,
            capacity,
            sweep_at: FIRST_SWEEP,
            elsewhere: 0,
        }
    }

    /// An owner's entry.
    pub fn find(&self, owner: &Owner) -> Option<FlowRef> {
        self.by_owner.get(owner).copied()
    }

    #[inline]
    pub fn get(&self, at: FlowRef) -> Option<&Entry<S, A>> {
        self.entries.get(at.index as usize)?.as_ref().filter(|entry| entry.serial == at.serial)
    }

    #[inline]
    pub fn get_mut(&mut self, at: FlowRef) -> Option<&mut Entry<S, A>> {
        let entry = self.entries.get_mut(at.index as usize)?.as_mut();
        entry.filter(|entry| entry.serial == at.serial)
    }

    /// The flow that an event is for.
    pub fn of_key(&self, key: Key) -> Option<FlowRef> {
        let serial = self.entries.get(key.index as usize)?.as_ref()?.serial;
        let at = FlowRef { index: key.index, serial };
        (at.key() == key).then_some(at)
    }

    /// Whoever has a slot now.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn tenant(&self, index: u32) -> Option<FlowRef> {
        let serial = self.entries.get(index as usize)?.as_ref()?.serial;
        Some(FlowRef { index, serial })
    }

    /// What a reference leads to now.
    #[inline]
    pub fn state(&self, at: FlowRef, now: u64) -> State {
        match self.get(at).map(|entry| &entry.place) {
            Some(Place::Here { .. }) => State::Live,
            Some(Place::Elsewhere { flow, held }) => {
                let live = held.is_some() || flow.upgrade().is_some_and(|flow| flow.is_served());
                if live {
                    State::Live
                } else {
                    State::Gone
                }
            }
            Some(Place::Failed { until, .. }) if now < *until => State::Failed,
            Some(Place::Failed { .. }) | None => State::Gone,
        }
    }

    /// How many flows this worker serves.
    pub fn here(&self) -> usize {
        self.here
    }

    /// Whether one has to go before another comes.
    pub fn is_full(&self) -> bool {
        self.here >= self.capacity
    }

    /// Adds a flow that this worker serves. The owner has no entry.
    pub fn insert_here(&mut self, owner: Owner, flow: Arc<Flow<S>>, account: Option<A>) -> FlowRef {
        let used = flow.last_used();
        let at = self.insert(owner, Place::Here { flow, account });
        self.here += 1;
        self.idle.push(at, used);
        at
    }

    /// Adds a flow that another worker serves. The owner has no entry.
    pub fn insert_elsewhere(&mut self, owner: Owner, flow: &Arc<Flow<S>>) -> FlowRef {
        // Nobody tells this worker when such a flow ends: it looks once there are many.
        if self.elsewhere >= self.sweep_at {
            self.sweep();
        }
        self.elsewhere += 1;
        self.insert(owner, Place::Elsewhere { flow: Arc::downgrade(flow), held: None })
    }

    /// Notes that an owner's flow could not be opened. The owner has no entry. `until` never goes back.
    pub fn insert_failed(&mut self, owner: Owner, until: u64, errno: i32) -> FlowRef {
        if self.failed.len() >= MOST_FAILED {
            if let Some((_, oldest)) = self.failed.pop_front() {
                self.remove(oldest);
            }
        }
        let at = self.insert(owner, Place::Failed { until, errno });
        self.failed.push_back((until, at));
        at
    }

    /// Takes an entry out.
    pub fn remove(&mut self, at: FlowRef) -> Option<Entry<S, A>> {
        self.get(at)?;
        let entry = self.entries[at.index as usize].take()?;
        self.free.push(at.index);
        self.by_owner.remove(&entry.owner);
        match entry.place {
            Place::Here { .. } => self.here -= 1,
            Place::Elsewhere { .. } => self.elsewhere -= 1,
            Place::Failed { .. } => {}
        }
        Some(entry)
    }

    /// A flow of this worker that is due by `now`, or `None`. The caller removes it.
    pub fn expired(&mut self, now: u64) -> Option<FlowRef> {
        let entries = &self.entries;
        self.idle.pop_due(now, |at| last_used(entries, *at))
    }

    /// The flow of this worker that has been idle longest. The caller removes it.
    pub fn idlest(&mut self) -> Option<FlowRef> {
        let entries = &self.entries;
        self.idle.pop_idlest(|at| last_used(entries, *at))
    }

    /// Forgets the failures whose time is over.
    pub fn forget_failures(&mut self, now: u64) {
        while self.failed.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, at)) = self.failed.pop_front() {
                self.remove(at);
            }
        }
    }

    /// When `expired` or `forget_failures` is worth a call.
    pub fn next_check(&self) -> Option<u64> {
        let failed = self.failed.front().map(|(until, _)| *until);
        [self.idle.next_check(), failed].into_iter().flatten().min()
    }

    fn insert(&mut self, owner: Owner, place: Place<S, A>) -> FlowRef {
        debug_assert!(!self.by_owner.contains_key(&owner));
        let serial = self.next_serial;
        self.next_serial += 1;
        let entry = Entry {
            owner,
            mark: Mark::default(),
            known: KnownRoute::default(),
            segmenting: true,
            place,
            serial,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[index as usize] = Some(entry);
        let at = FlowRef { index, serial };
        self.by_owner.insert(owner, at);
        at
    }

    fn sweep(&mut self) {
        let ended: Vec<FlowRef> = self
            .by_owner
            .values()
            .copied()
            .filter(|at| match self.get(*at).map(|entry| &entry.place) {
                Some(Place::Elsewhere { flow, held }) => held.is_none() && flow.strong_count() == 0,
                _ => false,
            })
            .collect();
        for at in ended {
            self.remove(at);
        }
        self.sweep_at = 2 * self.elsewhere + FIRST_SWEEP;
    }
}

/// When a flow of this worker was last used; `None` for any other reference.
fn last_used<S, A>(entries: &[Option<Entry<S, A>>], at: FlowRef) -> Option<u64> {
    match entries.get(at.index as usize)?.as_ref().filter(|entry| entry.serial == at.serial)?.place
    {
        Place::Here { ref flow, .. } => Some(flow.last_used()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = FlowTable<(), ()>;

    fn owner(port: u16) -> Owner {
        Owner::Client(([192, 0, 2, 1], port).into())
    }

    fn flow(at: u64) -> Arc<Flow<()>> {
        Arc::new(Flow::new((), at))
    }

    #[test]
    fn a_reference_to_a_former_flow_finds_nothing() {
        let mut table = Table::new(8, 100);
        let first = table.insert_here(owner(1), flow(0), None);
        assert_eq!(table.find(&owner(1)), Some(first));
        assert!(table.remove(first).is_some());
        let second = table.insert_here(owner(2), flow(0), None);
        assert_eq!(second.index, first.index, "the slot is used again");
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.state(first, 0), State::Gone);
        assert_eq!(table.of_key(first.key()), None);
        assert_eq!(table.of_key(second.key()), Some(second));
        assert_eq!((table.here(), table.find(&owner(1))), (1, None));
    }

    #[test]
    fn the_idlest_goes_first_whatever_came_first() {
        let mut table = Table::new(2, 100);
        let (one, two) = (flow(0), flow(10));
        let first = table.insert_here(owner(1), one.clone(), None);
        let second = table.insert_here(owner(2), two, None);
        assert!(table.is_full());
        one.touch(20);
        assert_eq!(table.idlest(), Some(second));
        table.remove(second);
        assert_eq!(table.expired(119), None);
        assert_eq!(table.expired(120), Some(first));
    }

    #[test]
    fn a_flow_elsewhere_lives_while_its_worker_serves_it() {
        let mut table = Table::new(2, 100);
        let served = flow(0);
        let at = table.insert_elsewhere(owner(1), &served);
        assert_eq!(table.state(at, 0), State::Live);
        served.serve(false);
        assert_eq!(table.state(at, 0), State::Gone);
        served.serve(true);
        drop(served);
        assert_eq!(table.state(at, 0), State::Gone);
        assert_eq!(table.here(), 0);
    }

    #[test]
    fn flows_that_ended_elsewhere_do_not_pile_up() {
        let mut table = Table::new(2, 100);
        for port in 0..10_000 {
            table.insert_elsewhere(owner(port), &flow(0));
        }
        assert!(table.by_owner.len() <= 2 * FIRST_SWEEP);
    }

    #[test]
    fn a_failure_holds_for_its_time() {
        let mut table = Table::new(2, 100);
        let at = table.insert_failed(owner(1), 1_000, 1);
        assert_eq!(table.state(at, 999), State::Failed);
        assert_eq!(table.state(at, 1_000), State::Gone);
        assert_eq!(table.next_check(), Some(1_000));
        table.forget_failures(999);
        assert!(table.find(&owner(1)).is_some());
        table.forget_failures(1_000);
        assert!(table.find(&owner(1)).is_none());
        assert_eq!(table.next_check(), None);
    }

    #[test]
    fn failures_are_bounded_and_take_no_flows_room() {
        let mut table = Table::new(2, 100);
        for port in 0..5_000 {
            table.insert_failed(owner(port), u64::from(port), 1);
        }
        assert_eq!(table.by_owner.len(), MOST_FAILED);
        assert!(!table.is_full());
        assert!(table.find(&owner(4_999)).is_some());
    }
}
