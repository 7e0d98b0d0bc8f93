//! Who has been idle longest, as pure logic: times come in, keys go out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Keys, each with a time at which to look at it: never later than it is due, perhaps earlier. One that
/// was used meanwhile goes back in, so that using it costs nothing here.
pub struct IdleQueue<K> {
    checks: BinaryHeap<Reverse<(u64, K)>>,
    /// Milliseconds after its last use at which a key is due.
    after: u64,
}

impl<K: Ord + Copy> IdleQueue<K> {
    /// A queue whose keys are due `after` idle milliseconds.
    pub fn new(after: u64) -> IdleQueue<K> {
        IdleQueue { checks: BinaryHeap::new(), after }
    }

    /// Adds a key that was used at `now`.
    pub fn push(&mut self, key: K, now: u64) {
        self.checks.push(Reverse((now + self.after, key)));
    }

    /// How many checks are queued: one a key, and those of keys that are gone.
    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// Queues these keys alone, each with its last use.
    pub fn rebuild(&mut self, keys: impl Iterator<Item = (K, u64)>) {
        let after = self.after;
        self.checks = keys.map(|(key, used)| Reverse((used + after, key))).collect();
    }

    /// When `pop_due` is worth a call.
    pub fn next_check(&self) -> Option<u64> {
        self.checks.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out a key that is due by `now`. `last_used` answers `None` for a key that is gone.
    pub fn pop_due(&mut self, now: u64, last_used: impl Fn(&K) -> Option<u64>) -> Option<K> {
        loop {
            let Reverse((check, key)) = *self.checks.peek()?;
            if check > now {
                return None;
            }
            self.checks.pop();
            let Some(used) = last_used(&key) else { continue };
            let due = used + self.after;
            if due <= check {
                return Some(key);
            }
            self.checks.push(Reverse((due, key)));
        }
    }

    /// Takes out the key that has been idle longest.
    pub fn pop_idlest(&mut self, last_used: impl Fn(&K) -> Option<u64>) -> Option<K> {
        self.pop_due(u64::MAX, last_used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_idle_key_is_due_and_a_used_one_stays() {
        let mut queue = IdleQueue::new(100);
        let mut used = BTreeMap::from([(1, 0), (2, 0)]);
        used.keys().for_each(|key| queue.push(*key, 0));
        used.insert(2, 50);
        let last_used = |key: &u32| used.get(key).copied();
        assert_eq!(queue.next_check(), Some(100));
        assert_eq!(queue.pop_due(99, last_used), None);
        assert_eq!(queue.pop_due(100, last_used), Some(1));
        assert_eq!(queue.pop_due(149, last_used), None);
        assert_eq!(queue.pop_due(150, last_used), Some(2));
        assert_eq!(queue.next_check(), None);
    }

    #[test]
    fn a_key_that_is_gone_is_passed_over() {
        let mut queue = IdleQueue::new(100);
        queue.push(1, 0);
        queue.push(2, 1);
        assert_eq!(queue.pop_idlest(|key| (*key == 2).then_some(1)), Some(2));
    }

    /// A queue that looks at little and a model that looks at everything, under the same random story.
    #[test]
    fn the_queue_does_what_a_simple_model_does() {
        for seed in 0..300u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut random = move |below: u64| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) % below
            };
            let after = 1 + random(50);
            let mut queue: IdleQueue<u64> = IdleQueue::new(after);
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let mut now = 0;
            for step in 0..400 {
                now += random(8);
                let mut due = Vec::new();
                while let Some(key) = queue.pop_due(now, |key| model.get(key).copied()) {
                    due.push(key);
                }
                due.sort_unstable();
                let expected: Vec<u64> = model
                    .iter()
                    .filter(|(_, used)| **used + after <= now)
                    .map(|(key, _)| *key)
                    .collect();
                assert_eq!(due, expected, "seed {seed}, step {step}");
                model.retain(|key, _| !due.contains(key));
                if random(10) == 0 {
                    let idlest = model.values().min().copied();
                    let popped = queue.pop_idlest(|key| model.get(key).copied());
                    let popped = popped.and_then(|key| model.remove(&key));
                    assert_eq!(popped, idlest, "seed {seed}, step {step}");
                }
                let key = random(10);
                if model.insert(key, now).is_none() {
                    queue.push(key, now);
                }
            }
        }
    }
}
