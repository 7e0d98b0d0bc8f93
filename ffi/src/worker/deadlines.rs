//! Deadlines: a queue from which any entry can be removed. Entries with the same time-out are in order, so one list per
//! time-out is sufficient, and there are only as many as the listeners use.

const NONE: u32 = u32::MAX;

/// A queue of slot indexes. An index may be queued once.
#[derive(Default)]
pub struct Deadlines {
    links: Vec<Link>,
    lists: Vec<List>,
}

/// Entries that were queued for the same time ahead, the earliest deadline first.
struct List {
    ahead: u64,
    first: u32,
    last: u32,
}

#[derive(Clone, Copy)]
struct Link {
    at: u64,
    before: u32,
    after: u32,
    /// `NONE` where it is not queued.
    list: u32,
}

impl Deadlines {
    /// Queues an index, due `ahead` milliseconds from `now`, which never goes back.
    pub fn push(&mut self, index: u32, now: u64, ahead: u64) {
        let needed = index as usize + 1;
        if self.links.len() < needed {
            self.links.resize(needed, Link { at: 0, before: NONE, after: NONE, list: NONE });
        }
        let at = self.list_of(ahead);
        let list = &mut self.lists[at];
        let before = std::mem::replace(&mut list.last, index);
        match before {
            NONE => list.first = index,
            before => self.links[before as usize].after = index,
        }
        self.links[index as usize] = Link { at: now + ahead, before, after: NONE, list: at as u32 };
    }

    /// Takes an index out; one that is not queued is left alone.
    pub fn remove(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index as usize).filter(|link| link.list != NONE) else {
            return;
        };
        let Link { before, after, list, .. } = *link;
        link.list = NONE;
        let list = &mut self.lists[list as usize];
        match before {
            NONE => list.first = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => list.last = before,
            after => self.links[after as usize].before = before,
        }
    }

    /// When the first entry is due.
    pub fn next(&self) -> Option<u64> {
        self.first().map(|(at, _)| at)
    }

    /// Takes out the first entry if it is due.
    pub fn pop_due(&mut self, now: u64) -> Option<u32> {
        let (at, index) = self.first()?;
        if at > now {
            return None;
        }
        self.remove(index);
        Some(index)
    }

    fn first(&self) -> Option<(u64, u32)> {
        let firsts = self.lists.iter().map(|list| list.first);
        firsts.filter_map(|first| Some((self.links.get(first as usize)?.at, first))).min()
    }

    /// The list of a time ahead: one that has nothing in it takes any.
    fn list_of(&mut self, ahead: u64) -> usize {
        if let Some(at) = self.lists.iter().position(|list| list.ahead == ahead) {
            return at;
        }
        if let Some(at) = self.lists.iter().position(|list| list.first == NONE) {
            self.lists[at].ahead = ahead;
            return at;
        }
        self.lists.push(List { ahead, first: NONE, last: NONE });
        self.lists.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_leave_in_order_or_from_the_middle() {
        let mut queue = Deadlines::default();
        for (index, now) in [(4, 0), (0, 1), (7, 2), (2, 3)] {
            queue.push(index, now, 10);
        }
        queue.remove(0);
        queue.remove(0);
        queue.remove(99);
        assert_eq!(queue.next(), Some(10));
        assert_eq!(queue.pop_due(9), None);
        assert_eq!(queue.pop_due(12), Some(4));
        assert_eq!(queue.pop_due(12), Some(7));
        assert_eq!(queue.pop_due(12), None);
        queue.remove(2);
        assert_eq!((queue.next(), queue.pop_due(u64::MAX)), (None, None));
        queue.push(2, 20, 10);
        assert_eq!(queue.pop_due(30), Some(2));
    }

    #[test]
    fn entries_of_several_times_ahead_leave_in_the_order_of_their_deadlines() {
        let mut queue = Deadlines::default();
        queue.push(1, 0, 100);
        queue.push(2, 1, 10);
        queue.push(3, 50, 20);
        queue.push(4, 60, 10);
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop_due(u64::MAX)).collect();
        assert_eq!(order, [2, 3, 4, 1]);
    }

    #[test]
    fn times_ahead_that_are_no_longer_used_leave_nothing() {
        let mut queue = Deadlines::default();
        for ahead in 0..1000 {
            queue.push(1, 0, ahead);
            assert_eq!(queue.pop_due(ahead), Some(1));
        }
        assert_eq!(queue.lists.len(), 1);
    }
}
