//! The datagrams of a batch by flow, as pure logic: each group in the order of arrival.

use super::flow_table::FlowRef;

const END: u16 = u16::MAX;

/// Where a flow's datagrams of a batch are; kept next to the flow.
#[derive(Clone, Copy, Default)]
pub struct Mark {
    batch: u64,
    group: u16,
}

/// The groups of the current batch.
pub struct Groups {
    /// Counts batches: a mark of an earlier one means nothing.
    batch: u64,
    groups: Vec<Group>,
    /// Chains the datagrams of a group.
    next: Box<[u16]>,
    pieces: Box<[Piece]>,
}

/// What of a datagram goes to the upstream, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Where the payload starts.
    pub offset: u32,
    /// In the upper six bits.
    pub dscp: u8,
}

#[derive(Clone, Copy)]
struct Group {
    flow: FlowRef,
    first: u16,
    last: u16,
}

impl Groups {
    /// For batches of up to `room` datagrams: 65,535 at most.
    pub fn new(room: usize) -> Groups {
        assert!(room <= usize::from(END), "a slot's number must not be the end of a chain");
        Groups {
            batch: 0,
            groups: Vec::with_capacity(room),
            next: vec![END; room].into(),
            pieces: vec![Piece::default(); room].into(),
        }
    }

    /// Begins a batch.
    pub fn start(&mut self) {
        self.batch += 1;
        self.groups.clear();
    }

    /// Adds a datagram behind the others of its flow; whether it is the first of a group.
    #[inline]
    pub fn add(&mut self, flow: FlowRef, mark: &mut Mark, slot: usize, piece: Piece) -> bool {
        self.pieces[slot] = piece;
        self.next[slot] = END;
        let slot = slot as u16;
        if mark.batch == self.batch {
            let group = &mut self.groups[usize::from(mark.group)];
            // A group that was forwarded already begins again.
            if group.first != END {
                self.next[usize::from(group.last)] = slot;
                group.last = slot;
                return false;
            }
        }
        *mark = Mark { batch: self.batch, group: self.groups.len() as u16 };
        self.groups.push(Group { flow, first: slot, last: slot });
        true
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// The flow of a group that was not taken yet.
    pub fn flow(&self, group: usize) -> Option<FlowRef> {
        self.groups.get(group).filter(|group| group.first != END).map(|group| group.flow)
    }

    /// The group that a mark of this batch stands for.
    pub fn of(&self, mark: Mark) -> Option<usize> {
        (mark.batch == self.batch && usize::from(mark.group) < self.groups.len())
            .then_some(usize::from(mark.group))
    }

    /// Takes a group out: its chain, and the slot of its last datagram.
    pub fn take(&mut self, group: usize) -> Option<Chain> {
        let group = self.groups.get_mut(group).filter(|group| group.first != END)?;
        let chain = Chain { at: group.first, last: usize::from(group.last) };
        group.first = END;
        Some(chain)
    }

    /// The next datagram of a chain: its slot, and what of it is sent.
    #[inline]
    pub fn step(&self, chain: &mut Chain) -> Option<(usize, Piece)> {
        if chain.at == END {
            return None;
        }
        let slot = usize::from(chain.at);
        chain.at = self.next[slot];
        Some((slot, self.pieces[slot]))
    }

    /// What of a datagram of the batch is sent.
    pub fn piece(&self, slot: usize) -> Piece {
        self.pieces[slot]
    }

    /// How many datagrams a chain has.
    pub fn count(&self, mut chain: Chain) -> u64 {
        std::iter::from_fn(|| self.step(&mut chain)).count() as u64
    }
}

/// A group that was taken, on the way through its datagrams.
#[derive(Clone, Copy)]
pub struct Chain {
    at: u16,
    /// The slot of the last datagram.
    pub last: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(groups: &Groups, mut chain: Chain) -> Vec<(usize, u32)> {
        let step = || groups.step(&mut chain).map(|(slot, piece)| (slot, piece.offset));
        std::iter::from_fn(step).collect()
    }

    fn piece(offset: u32) -> Piece {
        Piece { offset, dscp: 0 }
    }

    fn flow(index: u32) -> FlowRef {
        FlowRef { index, serial: u64::from(index) }
    }

    #[test]
    fn a_group_keeps_the_order_of_arrival() {
        let mut groups = Groups::new(8);
        let (mut one, mut two) = (Mark::default(), Mark::default());
        groups.start();
        assert!(groups.add(flow(1), &mut one, 0, piece(10)));
        assert!(groups.add(flow(2), &mut two, 1, piece(20)));
        assert!(!groups.add(flow(1), &mut one, 3, piece(30)));
        assert_eq!(groups.len(), 2);
        let chain = groups.take(0).unwrap();
        assert_eq!((slots(&groups, chain), chain.last), (vec![(0, 10), (3, 30)], 3));
        assert!(groups.take(0).is_none(), "taken once");
        let chain = groups.take(1).unwrap();
        assert_eq!(slots(&groups, chain), [(1, 20)]);
    }

    #[test]
    fn a_group_that_was_taken_begins_anew() {
        let mut groups = Groups::new(8);
        let mut mark = Mark::default();
        groups.start();
        groups.add(flow(1), &mut mark, 0, piece(0));
        groups.take(0);
        assert!(groups.add(flow(1), &mut mark, 1, piece(0)));
        let chain = groups.take(1).unwrap();
        assert_eq!(slots(&groups, chain), [(1, 0)]);
    }

    #[test]
    fn a_mark_of_an_earlier_batch_means_nothing() {
        let mut groups = Groups::new(8);
        let mut mark = Mark::default();
        groups.start();
        assert_eq!(groups.of(mark), None);
        groups.add(flow(1), &mut mark, 0, piece(0));
        assert_eq!(groups.of(mark), Some(0));
        groups.start();
        assert_eq!(groups.of(mark), None);
        assert!(groups.add(flow(1), &mut mark, 0, piece(0)));
    }
}
