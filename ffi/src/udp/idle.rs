//! Order of idleness, as pure logic: times come in, keys go out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Keys, each with a time at which to look at it: never later than it is due, perhaps earlier. One that
/// was used meanwhile goes back in, so that using it costs nothing here.
pub struct IdleQueue<K> {
    checks: BinaryHeap<Reverse<(u64, K)>>,
}

impl<K: Ord> Default for IdleQueue<K> {
    fn default() -> IdleQueue<K> {
        IdleQueue { checks: BinaryHeap::new() }
    }
}

impl<K: Ord + Copy> IdleQueue<K> {
    /// Adds a key that is due at a time, unless it is used.
    pub fn push(&mut self, key: K, due: u64) {
        self.checks.push(Reverse((due, key)));
    }

    /// How many checks are queued: one a key, and those of keys that are gone.
    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// Queues these keys alone, each with the time at which it is due.
    pub fn rebuild(&mut self, keys: impl Iterator<Item = (K, u64)>) {
        self.checks = keys.map(|(key, due)| Reverse((due, key))).collect();
    }

    /// When `pop_due` is worth a call.
    #[inline]
    pub fn next_check(&self) -> Option<u64> {
        self.checks.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out a key that is due by `now`. `due_at` answers `None` for a key that is gone.
    pub fn pop_due(&mut self, now: u64, due_at: impl Fn(&K) -> Option<u64>) -> Option<K> {
        loop {
            let Reverse((check, key)) = *self.checks.peek()?;
            if check > now {
                return None;
            }
            self.checks.pop();
            let Some(due) = due_at(&key) else { continue };
            if due <= check {
                return Some(key);
            }
            self.checks.push(Reverse((due, key)));
        }
    }

    /// Takes out the key that is due first.
    pub fn pop_first(&mut self, due_at: impl Fn(&K) -> Option<u64>) -> Option<K> {
        self.pop_due(u64::MAX, due_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_idle_key_is_due_and_a_used_one_stays() {
        let mut queue = IdleQueue::default();
        let mut used = BTreeMap::from([(1, 0), (2, 0)]);
        used.keys().for_each(|key| queue.push(*key, 100));
        used.insert(2, 50);
        let last_used = |key: &u32| used.get(key).map(|used| used + 100);
        assert_eq!(queue.next_check(), Some(100));
        assert_eq!(queue.pop_due(99, last_used), None);
        assert_eq!(queue.pop_due(100, last_used), Some(1));
        assert_eq!(queue.pop_due(149, last_used), None);
        assert_eq!(queue.pop_due(150, last_used), Some(2));
        assert_eq!(queue.next_check(), None);
    }

    #[test]
    fn a_key_that_is_gone_is_passed_over() {
        let mut queue = IdleQueue::default();
        queue.push(1, 100);
        queue.push(2, 101);
        assert_eq!(queue.pop_first(|key| (*key == 2).then_some(101)), Some(2));
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
            let mut queue: IdleQueue<u64> = IdleQueue::default();
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let mut now = 0;
            for step in 0..400 {
                now += random(8);
                let mut due = Vec::new();
                while let Some(key) =
                    queue.pop_due(now, |key| model.get(key).map(|used| used + after))
                {
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
                    let popped = queue.pop_first(|key| model.get(key).map(|used| used + after));
                    let popped = popped.and_then(|key| model.remove(&key));
                    assert_eq!(popped, idlest, "seed {seed}, step {step}");
                }
                let key = random(10);
                if model.insert(key, now).is_none() {
                    queue.push(key, now + after);
                }
            }
        }
    }
}
