//! The table of UDP flows, as pure logic: no socket, no clock. Times come in, decisions go out.
//!
//! A flow belongs to a client, not to the peer in front of it. The table is bounded: a new client
//! takes the place of the one that has been idle longest.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

/// What the table asks of a flow.
pub trait Flow {
    /// When the flow last carried a datagram, in the table's milliseconds.
    fn last_used(&self) -> u64;
}

/// Flows by client, each with when it ends if nothing comes.
pub struct FlowTable<K, F> {
    flows: HashMap<K, F>,
    /// When to look at whom: never later than the flow is due, perhaps earlier. A flow that was used
    /// meanwhile goes back in, so that using one costs nothing here.
    checks: BinaryHeap<Reverse<(u64, K)>>,
    capacity: usize,
    close_after: u64,
}

impl<K: Hash + Eq + Ord + Copy, F: Flow> FlowTable<K, F> {
    /// A table of at most `capacity` flows that end after `close_after` idle milliseconds.
    pub fn new(capacity: usize, close_after: u64) -> FlowTable<K, F> {
        FlowTable { flows: HashMap::new(), checks: BinaryHeap::new(), capacity, close_after }
    }

    /// The flow of a client.
    pub fn get(&self, client: &K) -> Option<&F> {
        self.flows.get(client)
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Takes a flow in. The caller has made room.
    pub fn insert(&mut self, client: K, flow: F) {
        debug_assert!(self.flows.len() < self.capacity);
        self.checks.push(Reverse((flow.last_used() + self.close_after, client)));
        self.flows.insert(client, flow);
    }

    /// Makes room for one more: takes out the flow that has been idle longest when the table is full.
    pub fn make_room(&mut self) -> Option<(K, F)> {
        if self.flows.len() < self.capacity {
            return None;
        }
        self.evict()
    }

    /// Takes out the flow that has been idle longest.
    pub fn evict(&mut self) -> Option<(K, F)> {
        self.take_due(u64::MAX)
    }

    /// Takes out a flow that is due by `now`; call again until there is none.
    pub fn expire(&mut self, now: u64) -> Option<(K, F)> {
        self.take_due(now)
    }

    /// When `expire` is worth a call.
    pub fn next_check(&self) -> Option<u64> {
        self.checks.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out the flow that is due first, if it is due by `now`.
    fn take_due(&mut self, now: u64) -> Option<(K, F)> {
        loop {
            let Reverse((check, client)) = *self.checks.peek()?;
            if check > now {
                return None;
            }
            self.checks.pop();
            let due = self.flows.get(&client)?.last_used() + self.close_after;
            if due <= check {
                return self.flows.remove_entry(&client);
            }
            self.checks.push(Reverse((due, client)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    struct Used(Rc<Cell<u64>>);

    impl Flow for Used {
        fn last_used(&self) -> u64 {
            self.0.get()
        }
    }

    fn flow(at: u64) -> (Rc<Cell<u64>>, Used) {
        let used = Rc::new(Cell::new(at));
        (used.clone(), Used(used))
    }

    #[test]
    fn an_idle_flow_ends_and_a_used_one_stays() {
        let mut table = FlowTable::new(8, 100);
        let (_, idle) = flow(0);
        let (used, busy) = flow(0);
        table.insert(1, idle);
        table.insert(2, busy);
        used.set(50);
        assert_eq!(table.next_check(), Some(100));
        assert!(table.expire(99).is_none());
        assert_eq!(table.expire(100).map(|(client, _)| client), Some(1));
        assert!(table.expire(149).is_none());
        assert_eq!(table.expire(150).map(|(client, _)| client), Some(2));
        assert_eq!((table.len(), table.next_check()), (0, None));
    }

    #[test]
    fn a_full_table_gives_up_the_longest_idle_flow() {
        let mut table = FlowTable::new(2, 100);
        let (first, one) = flow(0);
        let (_, two) = flow(10);
        table.insert(1, one);
        table.insert(2, two);
        first.set(20);
        assert_eq!(table.make_room().map(|(client, _)| client), Some(2));
        assert!(table.make_room().is_none(), "there is room now");
        assert!(table.get(&1).is_some());
    }

    /// A model that looks at everything, and a table that looks at little, under the same random
    /// story. A seed that fails can be run again.
    #[test]
    fn the_table_does_what_a_simple_model_does() {
        for seed in 0..300u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut random = move |below: u64| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) % below
            };
            let (capacity, close_after) = (1 + random(6) as usize, 1 + random(50));
            let mut table: FlowTable<u64, Used> = FlowTable::new(capacity, close_after);
            let mut model: BTreeMap<u64, Rc<Cell<u64>>> = BTreeMap::new();
            let mut now = 0;
            for step in 0..400 {
                now += random(8);
                // Ending what is due comes first, as it does in the listener.
                let mut ended = Vec::new();
                while let Some((client, _)) = table.expire(now) {
                    ended.push(client);
                }
                ended.sort_unstable();
                let due: Vec<u64> = model
                    .iter()
                    .filter(|(_, used)| used.get() + close_after <= now)
                    .map(|(client, _)| *client)
                    .collect();
                assert_eq!(ended, due, "seed {seed}, step {step}");
                model.retain(|client, _| !due.contains(client));

                let client = random(10);
                match model.get(&client) {
                    Some(used) => {
                        assert!(table.get(&client).is_some(), "seed {seed}, step {step}");
                        used.set(now);
                    }
                    None => {
                        assert!(table.get(&client).is_none(), "seed {seed}, step {step}");
                        if model.len() == capacity {
                            let longest_idle = model.values().map(|used| used.get()).min().unwrap();
                            let (evicted, _) = table.make_room().expect("the table is full");
                            let evicted = model.remove(&evicted).expect("it was there");
                            assert_eq!(evicted.get(), longest_idle, "seed {seed}, step {step}");
                        } else {
                            assert!(table.make_room().is_none(), "seed {seed}, step {step}");
                        }
                        let (used, new) = flow(now);
                        table.insert(client, new);
                        model.insert(client, used);
                    }
                }
                assert_eq!(table.len(), model.len(), "seed {seed}, step {step}");
                assert!(table.len() <= capacity);
            }
        }
    }
}
