//! One worker's flows by port and owner, as pure logic: no socket, no clock.
//!
//! Each listener has a queue of its idle flows. If the table is full, the listener with the most flows makes room, so
//! that none can take the flows of the others.
//!
//! A slot is reused immediately, under another serial number: a reference to its former flow finds nothing, within a
//! batch and after it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use hashbrown::HashMap;

use super::edge::Kinds;
use super::flow::{Flow, KnownRoute, Owner};
use super::group::Mark;
use super::idle::IdleQueue;
use super::port::Port;
use crate::worker::decision::Decision;
use crate::worker::poll::Key;

/// The number of owners whose failed flow is remembered; the oldest are forgotten first.
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

/// An owner's entry at a port.
pub struct Entry<K: Kinds> {
    /// By which it was opened.
    pub port: Rc<Port<K>>,
    pub owner: Owner,
    pub decision: Decision,
    /// Where its datagrams of the current batch are.
    pub mark: Mark,
    pub known: KnownRoute,
    /// Cleared when the device towards the upstream cannot segment.
    pub segmenting: bool,
    pub place: Place<K>,
    serial: u64,
}

/// Where a flow is served.
pub enum Place<K: Kinds> {
    /// By this worker. With its entry of the access log, if there is one.
    Here { flow: Arc<Flow<K::Socket>>, account: Option<K::Account> },
    /// By another worker. `held` while datagrams of the batch wait for it.
    Elsewhere { flow: Weak<Flow<K::Socket>>, held: Option<Arc<Flow<K::Socket>>> },
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
pub struct FlowTable<K: Kinds> {
    by_owner: HashMap<(u32, Owner), FlowRef>,
    entries: Vec<Option<Entry<K>>>,
    free: Vec<u32>,
    next_serial: u64,
    /// Listeners that have flows here.
    shares: HashMap<u32, Share>,
    /// When a listener's queue is worth a look; what does not agree with it is of no account.
    checks: BinaryHeap<Reverse<(u64, u32)>>,
    /// The earliest first.
    failed: VecDeque<(u64, FlowRef)>,
    here: usize,
    capacity: usize,
    /// This many entries of other workers' flows are worth a look for those that have ended.
    sweep_at: usize,
    elsewhere: usize,
}

/// One listener's flows.
#[derive(Default)]
struct Share {
    here: usize,
    idle: IdleQueue<FlowRef>,
    /// When its next check is queued.
    check: Option<u64>,
}

/// What is noted of a new entry.
pub struct New<'a, K: Kinds> {
    pub port: &'a Rc<Port<K>>,
    pub owner: Owner,
    pub decision: Decision,
}

impl<K: Kinds> FlowTable<K> {
    /// A table of at most `capacity` flows of this worker.
    pub fn new(capacity: usize) -> FlowTable<K> {
        FlowTable {
            by_owner: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            next_serial: 1,
            shares: HashMap::new(),
            checks: BinaryHeap::new(),
            failed: VecDeque::new(),
            here: 0,
            capacity,
            sweep_at: FIRST_SWEEP,
            elsewhere: 0,
        }
    }

    /// An owner's entry at a port.
    pub fn find(&self, port: u32, owner: &Owner) -> Option<FlowRef> {
        self.by_owner.get(&(port, *owner)).copied()
    }

    #[inline]
    pub fn get(&self, at: FlowRef) -> Option<&Entry<K>> {
        self.entries.get(at.index as usize)?.as_ref().filter(|entry| entry.serial == at.serial)
    }

    #[inline]
    pub fn get_mut(&mut self, at: FlowRef) -> Option<&mut Entry<K>> {
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

    /// Changes how many flows of this worker there may be; those that there are stay.
    pub fn limit(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Whether one has to go before another comes.
    pub fn is_full(&self) -> bool {
        self.here >= self.capacity
    }

    /// Adds a flow that this worker serves. The owner has no entry at the port.
    pub fn insert_here(
        &mut self,
        new: New<K>,
        flow: Arc<Flow<K::Socket>>,
        account: Option<K::Account>,
    ) -> FlowRef {
        let due = flow.last_used() + new.port.close_after;
        let listener = new.port.listener;
        let at = self.insert(new, Place::Here { flow, account });
        self.here += 1;
        let share = self.shares.entry(listener).or_default();
        share.here += 1;
        share.idle.push(at, due);
        if share.check.is_none_or(|check| due < check) {
            share.check = Some(due);
            self.checks.push(Reverse((due, listener)));
        }
        at
    }

    /// Adds a flow that another worker serves. The owner has no entry at the port.
    pub fn insert_elsewhere(&mut self, new: New<K>, flow: &Arc<Flow<K::Socket>>) -> FlowRef {
        // This worker is not notified when such a flow ends: it checks when there are many.
        if self.elsewhere >= self.sweep_at {
            self.sweep();
        }
        self.elsewhere += 1;
        self.insert(new, Place::Elsewhere { flow: Arc::downgrade(flow), held: None })
    }

    /// Notes that an owner's flow could not be opened. The owner has no entry at the port. `until` never
    /// goes back.
    pub fn insert_failed(&mut self, new: New<K>, until: u64, errno: i32) -> FlowRef {
        if self.failed.len() >= MOST_FAILED {
            if let Some((_, oldest)) = self.failed.pop_front() {
                self.remove(oldest);
            }
        }
        let at = self.insert(new, Place::Failed { until, errno });
        self.failed.push_back((until, at));
        at
    }

    /// Takes an entry out.
    pub fn remove(&mut self, at: FlowRef) -> Option<Entry<K>> {
        self.get(at)?;
        let entry = self.entries[at.index as usize].take()?;
        self.free.push(at.index);
        self.by_owner.remove(&(entry.port.id, entry.owner));
        match entry.place {
            Place::Here { .. } => {
                self.here -= 1;
                if let Some(share) = self.shares.get_mut(&entry.port.listener) {
                    share.here -= 1;
                    if share.here == 0 {
                        self.shares.remove(&entry.port.listener);
                    }
                }
            }
            Place::Elsewhere { .. } => self.elsewhere -= 1,
            Place::Failed { .. } => {}
        }
        Some(entry)
    }

    /// A flow of this worker that is due by `now`, or `None`. The caller removes it.
    pub fn expired(&mut self, now: u64) -> Option<FlowRef> {
        let entries = &self.entries;
        loop {
            let &Reverse((at, listener)) = self.checks.peek()?;
            if at > now {
                return None;
            }
            let share = self.shares.get_mut(&listener).filter(|share| share.check == Some(at));
            // The check stays at the head while it finds something.
            let expired =
                share.and_then(|share| share.idle.pop_due(now, |at| due_at(entries, *at)));
            if expired.is_some() {
                return expired;
            }
            self.checks.pop();
            if let Some(share) = self.shares.get_mut(&listener) {
                if share.check == Some(at) {
                    share.check = share.idle.next_check();
                    self.checks.extend(share.check.map(|check| Reverse((check, listener))));
                }
            }
        }
    }

    /// Who makes room for a flow of a listener: of the listener that has most flows here, that one itself
    /// among equals, the flow that has been idle longest. The caller removes it.
    pub fn idlest(&mut self, listener: u32) -> Option<FlowRef> {
        let entries = &self.entries;
        let most = self.shares.iter_mut().max_by_key(|(id, share)| (share.here, **id == listener));
        most?.1.idle.pop_first(|at| due_at(entries, *at))
    }

    /// The flow of a listener that has been idle longest here, if it has any. The caller removes it.
    pub fn idlest_of(&mut self, listener: u32) -> Option<FlowRef> {
        let entries = &self.entries;
        self.shares.get_mut(&listener)?.idle.pop_first(|at| due_at(entries, *at))
    }

    /// Every entry of some ports.
    pub fn of_ports(&self, is_one: impl Fn(u32) -> bool) -> Vec<FlowRef> {
        self.by_owner.iter().filter(|((port, _), _)| is_one(*port)).map(|(_, at)| *at).collect()
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
        let idle = self.checks.peek().map(|Reverse((at, _))| *at);
        [idle, failed].into_iter().flatten().min()
    }

    fn insert(&mut self, new: New<K>, place: Place<K>) -> FlowRef {
        let New { port, owner, decision } = new;
        debug_assert!(!self.by_owner.contains_key(&(port.id, owner)));
        let serial = self.next_serial;
        self.next_serial += 1;
        let entry = Entry {
            port: port.clone(),
            owner,
            decision,
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
        self.by_owner.insert((port.id, owner), at);
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

/// When a flow of this worker is due; `None` for any other reference.
fn due_at<K: Kinds>(entries: &[Option<Entry<K>>], at: FlowRef) -> Option<u64> {
    let entry = entries.get(at.index as usize)?.as_ref().filter(|it| it.serial == at.serial)?;
    match &entry.place {
        Place::Here { flow, .. } => Some(flow.last_used() + entry.port.close_after),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::layout::udp_header;

    struct Nothing;

    impl Kinds for Nothing {
        type Socket = ();
        type Account = ();
        type Port = ();
    }

    type Table = FlowTable<Nothing>;

    fn owner(port: u16) -> Owner {
        Owner::Client(([192, 0, 2, 1], port).into())
    }

    fn flow(at: u64) -> Arc<Flow<()>> {
        Arc::new(Flow::new((), at))
    }

    /// The only port of a listener, of the same number.
    fn port(listener: u32) -> Rc<Port<Nothing>> {
        Rc::new(Port {
            mixed: false,
            many_upstreams: false,
            id: listener,
            listener,
            mode: udp_header::DATAGRAM,
            close_after: 100,
            directory: Arc::default(),
            outside: (),
        })
    }

    fn new(port: &Rc<Port<Nothing>>, of: u16) -> New<'_, Nothing> {
        let upstream = ([127, 0, 0, 1], 53).into();
        let owner = owner(of);
        New { port, owner, decision: Decision { source: owner.source(), upstream } }
    }

    #[test]
    fn a_reference_to_a_former_flow_finds_nothing() {
        let (mut table, port) = (Table::new(8), port(1));
        let first = table.insert_here(new(&port, 1), flow(0), None);
        assert_eq!(table.find(1, &owner(1)), Some(first));
        assert!(table.remove(first).is_some());
        let second = table.insert_here(new(&port, 2), flow(0), None);
        assert_eq!(second.index, first.index, "the slot is used again");
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.state(first, 0), State::Gone);
        assert_eq!(table.of_key(first.key()), None);
        assert_eq!(table.of_key(second.key()), Some(second));
        assert_eq!((table.here(), table.find(1, &owner(1))), (1, None));
    }

    #[test]
    fn an_owner_has_a_flow_at_each_port() {
        let (mut table, one, two) = (Table::new(8), port(1), port(2));
        let first = table.insert_here(new(&one, 1), flow(0), None);
        assert_eq!(table.find(2, &owner(1)), None);
        let second = table.insert_here(new(&two, 1), flow(0), None);
        assert_eq!(table.find(1, &owner(1)), Some(first));
        assert_eq!(table.of_ports(|id| id == 2), [second]);
    }

    #[test]
    fn the_idlest_goes_first_whatever_came_first() {
        let (mut table, port) = (Table::new(2), port(1));
        let (one, two) = (flow(0), flow(10));
        let first = table.insert_here(new(&port, 1), one.clone(), None);
        let second = table.insert_here(new(&port, 2), two, None);
        assert!(table.is_full());
        one.touch(20);
        assert_eq!(table.idlest(1), Some(second));
        table.remove(second);
        assert_eq!(table.expired(119), None);
        assert_eq!(table.expired(120), Some(first));
    }

    #[test]
    fn the_listener_that_has_most_makes_room() {
        let (mut table, quiet, flood) = (Table::new(4), port(1), port(2));
        let old = table.insert_here(new(&quiet, 1), flow(0), None);
        for (of, at) in [(2, 50), (3, 51), (4, 52)] {
            table.insert_here(new(&flood, of), flow(at), None);
        }
        let idlest = table.find(2, &owner(2));
        assert!(table.is_full());
        assert_eq!(table.idlest(1), idlest, "for the quiet one");
        table.remove(idlest.unwrap());
        let next = table.find(2, &owner(3));
        assert_eq!(table.idlest(2), next, "for the other, too: not the oldest of all");
        table.remove(next.unwrap());
        assert_eq!(table.idlest(1), Some(old), "among equals its own");
    }

    #[test]
    fn a_listener_gives_away_its_own_idlest_and_no_other() {
        let (mut table, one, two) = (Table::new(8), port(1), port(2));
        assert_eq!(table.idlest_of(1), None);
        table.insert_here(new(&two, 1), flow(0), None);
        let late = table.insert_here(new(&one, 1), flow(9), None);
        let first = table.insert_here(new(&one, 2), flow(5), None);
        for expected in [first, late] {
            assert_eq!(table.idlest_of(1), Some(expected));
            table.remove(expected);
        }
        assert_eq!(table.idlest_of(1), None);
        assert_eq!(table.here(), 1);
    }

    #[test]
    fn flows_of_several_listeners_are_due_in_their_order() {
        let (mut table, one, two) = (Table::new(8), port(1), port(2));
        let late = flow(0);
        let first = table.insert_here(new(&one, 1), late.clone(), None);
        let second = table.insert_here(new(&two, 2), flow(10), None);
        late.touch(50);
        assert_eq!(table.expired(109), None);
        assert_eq!(table.next_check(), Some(110));
        assert_eq!(table.expired(149), Some(second));
        table.remove(second);
        assert_eq!(table.expired(149), None);
        assert_eq!(table.next_check(), Some(150));
        assert_eq!(table.expired(150), Some(first));
        table.remove(first);
        assert_eq!((table.expired(150), table.next_check()), (None, None));
    }

    #[test]
    fn a_flow_elsewhere_lives_while_its_worker_serves_it() {
        let (mut table, port) = (Table::new(2), port(1));
        let served = flow(0);
        let at = table.insert_elsewhere(new(&port, 1), &served);
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
        let (mut table, port) = (Table::new(2), port(1));
        for of in 0..10_000 {
            table.insert_elsewhere(new(&port, of), &flow(0));
        }
        assert!(table.by_owner.len() <= 2 * FIRST_SWEEP);
    }

    #[test]
    fn a_failure_holds_for_its_time() {
        let (mut table, port) = (Table::new(2), port(1));
        let at = table.insert_failed(new(&port, 1), 1_000, 1);
        assert_eq!(table.state(at, 999), State::Failed);
        assert_eq!(table.state(at, 1_000), State::Gone);
        assert_eq!(table.next_check(), Some(1_000));
        table.forget_failures(999);
        assert!(table.find(1, &owner(1)).is_some());
        table.forget_failures(1_000);
        assert!(table.find(1, &owner(1)).is_none());
        assert_eq!(table.next_check(), None);
    }

    #[test]
    fn failures_are_bounded_and_take_no_flows_room() {
        let (mut table, port) = (Table::new(2), port(1));
        for of in 0..5_000 {
            table.insert_failed(new(&port, of), u64::from(of), 1);
        }
        assert_eq!(table.by_owner.len(), MOST_FAILED);
        assert!(!table.is_full());
        assert!(table.find(1, &owner(4_999)).is_some());
    }
}
