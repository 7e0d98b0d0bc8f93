//! Deadlines that all lie the same time ahead: a queue from which any entry can leave.

const NONE: u32 = u32::MAX;

/// A queue of slot indexes, the earliest deadline first. An index may be queued once.
pub struct Deadlines {
    ahead: u64,
    links: Vec<Link>,
    first: u32,
    last: u32,
}

#[derive(Clone, Copy)]
struct Link {
    at: u64,
    before: u32,
    after: u32,
    queued: bool,
}

impl Deadlines {
    /// A queue whose entries are due `ahead` milliseconds after they enter.
    pub fn new(ahead: u64) -> Deadlines {
        Deadlines { ahead, links: Vec::new(), first: NONE, last: NONE }
    }

    /// Queues an index. `now`, in milliseconds, never goes back.
    pub fn push(&mut self, index: u32, now: u64) {
        let needed = index as usize + 1;
        if self.links.len() < needed {
            self.links.resize(needed, Link { at: 0, before: NONE, after: NONE, queued: false });
        }
        let link = Link { at: now + self.ahead, before: self.last, after: NONE, queued: true };
        self.links[index as usize] = link;
        match self.last {
            NONE => self.first = index,
            last => self.links[last as usize].after = index,
        }
        self.last = index;
    }

    /// Takes an index out; one that is not queued is left alone.
    pub fn remove(&mut self, index: u32) {
        let Some(link) = self.links.get_mut(index as usize).filter(|link| link.queued) else {
            return;
        };
        link.queued = false;
        let Link { before, after, .. } = *link;
        match before {
            NONE => self.first = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            after => self.links[after as usize].before = before,
        }
    }

    /// When the first entry is due.
    pub fn next(&self) -> Option<u64> {
        self.links.get(self.first as usize).map(|link| link.at)
    }

    /// Takes out the first entry if it is due.
    pub fn pop_due(&mut self, now: u64) -> Option<u32> {
        let index = self.first;
        if self.next()? > now {
            return None;
        }
        self.remove(index);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_leave_in_order_or_from_the_middle() {
        let mut queue = Deadlines::new(10);
        for (index, now) in [(4, 0), (0, 1), (7, 2), (2, 3)] {
            queue.push(index, now);
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
        queue.push(2, 20);
        assert_eq!(queue.pop_due(30), Some(2));
    }
}
