//! Connections without a complete header: their peers, the memory they hold, and which one is evicted.
//!
//! Pure logic: no socket and no clock. Connections are identified by their slot. If there are too many, or they hold
//! too much memory, the oldest connection of the peer with the most is evicted, so that no peer can keep out another
//! (docs/decisions/0053-who-gives-way.md). The cost does not grow with the number of connections, except for bytes,
//! which few headers hold: O(log n).

use std::collections::BTreeSet;
use std::net::IpAddr;

use hashbrown::HashMap;

use crate::abi::layout::MAX_HEADER;
use crate::net::network::Network;

/// Bytes that half-read headers may hold, over all workers.
const BYTES: usize = 16 << 20;

/// Limits beyond which connections are evicted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of one peer.
    pub connections_a_peer: usize,
    /// Bytes of all.
    pub bytes: usize,
    /// Bytes of one peer.
    pub bytes_a_peer: usize,
}

/// The connections that wait for their header.
pub struct Pending {
    limits: Limits,
    /// By the connection's slot.
    entries: Vec<Entry>,
    peers: Vec<Peer>,
    free: Vec<u32>,
    by_network: HashMap<Network, u32>,
    /// Peers by their number of connections; among equals, the one that has had that number longest comes first.
    ranks: Vec<List>,
    /// The largest rank that has a peer, or 0.
    most: usize,
    /// Peers by the bytes that they hold, if any.
    by_bytes: BTreeSet<(usize, u32)>,
    bytes: usize,
    /// Links of each connection among its peer's, by age.
    ages: Vec<Link>,
    /// Links of each connection among its peer's that hold bytes, by when they began to.
    holders: Vec<Link>,
    /// Links of each peer among those of its rank.
    ranked: Vec<Link>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// `NONE` where the slot's connection does not wait.
    peer: u32,
    bytes: usize,
}

struct Peer {
    network: Network,
    connections: usize,
    bytes: usize,
    ages: List,
    holders: List,
}

const NONE: u32 = u32::MAX;

/// A list through an array of links: any index can leave it.
#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

impl Limits {
    /// The share of one of this many workers that may have this many connections.
    pub fn of_a_worker(workers: usize, connections: usize) -> Limits {
        // One header of the largest size always fits.
        let bytes = (BYTES / workers).max(2 * MAX_HEADER);
        Limits {
            // A quarter is never held by one peer's silence.
            connections_a_peer: (connections - connections / 4).max(1),
            bytes,
            bytes_a_peer: bytes / 2,
        }
    }
}

impl Pending {
    /// Changes the limits; whoever waits already is not ended for it before there is need.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Nobody waits yet.
    pub fn new(limits: Limits) -> Pending {
        Pending {
            limits,
            entries: Vec::new(),
            peers: Vec::new(),
            free: Vec::new(),
            by_network: HashMap::new(),
            ranks: Vec::new(),
            most: 0,
            by_bytes: BTreeSet::new(),
            bytes: 0,
            ages: Vec::new(),
            holders: Vec::new(),
            ranked: Vec::new(),
        }
    }

    /// A connection begins to wait. Its slot must not wait already.
    pub fn enter(&mut self, slot: u32, peer: IpAddr) {
        let needed = slot as usize + 1;
        if self.entries.len() < needed {
            self.entries.resize(needed, Entry { peer: NONE, bytes: 0 });
            self.ages.resize(needed, Link::LOOSE);
            self.holders.resize(needed, Link::LOOSE);
        }
        let peer = self.peer_at(Network::of(peer));
        self.entries[slot as usize] = Entry { peer, bytes: 0 };
        let found = &mut self.peers[peer as usize];
        found.ages.push(&mut self.ages, slot);
        found.connections += 1;
        let connections = found.connections;
        self.rank(peer, connections - 1, connections);
    }

    /// A connection waits no more; one that did not wait is left alone.
    pub fn leave(&mut self, slot: u32) {
        let Some(Entry { peer, .. }) = self.waiting(slot) else { return };
        self.hold(slot, 0);
        self.entries[slot as usize].peer = NONE;
        let found = &mut self.peers[peer as usize];
        found.ages.remove(&mut self.ages, slot);
        found.connections -= 1;
        let (network, connections) = (found.network, found.connections);
        self.rank(peer, connections + 1, connections);
        if connections == 0 {
            self.by_network.remove(&network);
            self.free.push(peer);
        }
    }

    /// A waiting connection holds this many bytes now.
    pub fn hold(&mut self, slot: u32, bytes: usize) {
        let Some(Entry { peer, bytes: before }) = self.waiting(slot) else { return };
        if bytes == before {
            return;
        }
        self.entries[slot as usize].bytes = bytes;
        self.bytes = self.bytes - before + bytes;
        let found = &mut self.peers[peer as usize];
        if before == 0 {
            found.holders.push(&mut self.holders, slot);
        } else if bytes == 0 {
            found.holders.remove(&mut self.holders, slot);
        }
        self.by_bytes.remove(&(found.bytes, peer));
        found.bytes = found.bytes - before + bytes;
        if found.bytes > 0 {
            self.by_bytes.insert((found.bytes, peer));
        }
    }

    /// How many wait that have the peer of this one.
    pub fn siblings(&self, slot: u32) -> usize {
        self.waiting(slot).map_or(0, |entry| self.peers[entry.peer as usize].connections)
    }

    /// The connection to evict for lack of room: the oldest of the peer that has the most.
    pub fn oldest_of_most(&self) -> Option<u32> {
        let peer = self.ranks.get(self.most)?.first()?;
        self.peers[peer as usize].ages.first()
    }

    /// The connection to evict because this one's peer has more than its limit.
    pub fn oldest_of_too_many(&self, slot: u32) -> Option<u32> {
        let peer = &self.peers[self.waiting(slot)?.peer as usize];
        if peer.connections <= self.limits.connections_a_peer {
            return None;
        }
        peer.ages.first()
    }

    /// The connection to evict because all peers, or this one's, hold more bytes than allowed: of those that hold
    /// any. It may be this one itself.
    pub fn oldest_of_too_much(&self, slot: u32) -> Option<u32> {
        let mut peer = self.waiting(slot)?.peer;
        if self.bytes > self.limits.bytes {
            peer = self.by_bytes.last()?.1;
        } else if self.peers[peer as usize].bytes <= self.limits.bytes_a_peer {
            return None;
        }
        self.peers[peer as usize].holders.first()
    }

    fn waiting(&self, slot: u32) -> Option<Entry> {
        self.entries.get(slot as usize).copied().filter(|entry| entry.peer != NONE)
    }

    /// The place of a peer, new or not.
    fn peer_at(&mut self, network: Network) -> u32 {
        if let Some(&peer) = self.by_network.get(&network) {
            return peer;
        }
        let new =
            Peer { network, connections: 0, bytes: 0, ages: List::EMPTY, holders: List::EMPTY };
        let peer = match self.free.pop() {
            Some(peer) => {
                self.peers[peer as usize] = new;
                peer
            }
            None => {
                self.peers.push(new);
                self.ranked.push(Link::LOOSE);
                self.peers.len() as u32 - 1
            }
        };
        self.by_network.insert(network, peer);
        peer
    }

    /// Moves a peer between neighbouring ranks; rank 0 has no list.
    fn rank(&mut self, peer: u32, from: usize, to: usize) {
        if self.ranks.len() <= to {
            self.ranks.resize(to + 1, List::EMPTY);
        }
        if from > 0 {
            self.ranks[from].remove(&mut self.ranked, peer);
        }
        if to > 0 {
            self.ranks[to].push(&mut self.ranked, peer);
        }
        if to > self.most || from == self.most && self.ranks[from].first().is_none() {
            self.most = to;
        }
    }
}

impl Link {
    const LOOSE: Link = Link { before: NONE, after: NONE };
}

impl List {
    const EMPTY: List = List { first: NONE, last: NONE };

    fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// Appends an index that is in no list of these links.
    fn push(&mut self, links: &mut [Link], index: u32) {
        links[index as usize] = Link { before: self.last, after: NONE };
        match self.last {
            NONE => self.first = index,
            last => links[last as usize].after = index,
        }
        self.last = index;
    }

    /// Takes out an index that is in this list.
    fn remove(&mut self, links: &mut [Link], index: u32) {
        let Link { before, after } = std::mem::replace(&mut links[index as usize], Link::LOOSE);
        match before {
            NONE => self.first = after,
            before => links[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            after => links[after as usize].before = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { connections_a_peer: 6, bytes: 1000, bytes_a_peer: 600 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_oldest_of_the_peer_that_has_most_gives_way() {
        let mut pending = Pending::new(LIMITS);
        assert_eq!(pending.oldest_of_most(), None);
        pending.enter(7, address("192.0.2.1"));
        for slot in [3, 1, 2] {
            pending.enter(slot, address("198.51.100.1"));
        }
        assert_eq!((pending.siblings(3), pending.siblings(7)), (3, 1));
        for victim in [3, 1] {
            assert_eq!(pending.oldest_of_most(), Some(victim));
            pending.leave(victim);
        }
        // One each: the one that has had this number longest.
        assert_eq!(pending.oldest_of_most(), Some(7));
        pending.leave(7);
        pending.leave(7);
        pending.leave(2);
        assert_eq!(pending.oldest_of_most(), None);
    }

    #[test]
    fn a_host_does_not_become_many_by_its_own_64_bits() {
        let mut pending = Pending::new(LIMITS);
        for slot in 0..3 {
            pending.enter(slot, address(&format!("2001:db8::{slot}")));
        }
        pending.enter(3, address("2001:db8:0:1::1"));
        pending.enter(4, address("192.0.2.1"));
        pending.enter(5, address("192.0.2.2"));
        assert_eq!([0, 3, 4].map(|slot| pending.siblings(slot)), [3, 1, 1]);
    }

    #[test]
    fn a_peer_beyond_its_own_limit_gives_way_itself() {
        let mut pending = Pending::new(LIMITS);
        for slot in 0..6 {
            pending.enter(slot, address("192.0.2.1"));
            assert_eq!(pending.oldest_of_too_many(slot), None);
        }
        pending.enter(6, address("192.0.2.1"));
        assert_eq!(pending.oldest_of_too_many(6), Some(0));
    }

    #[test]
    fn bytes_are_given_up_by_who_holds_them() {
        let mut pending = Pending::new(LIMITS);
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        for (slot, peer, bytes) in [(0, one, 0), (1, one, 500), (2, other, 400), (3, one, 100)] {
            pending.enter(slot, peer);
            pending.hold(slot, bytes);
            assert_eq!(pending.oldest_of_too_much(slot), None);
        }
        pending.hold(2, 401);
        // The silent one in slot 0 is older, and would give nothing back.
        assert_eq!(pending.oldest_of_too_much(2), Some(1));
        pending.leave(1);
        assert_eq!(pending.oldest_of_too_much(2), None);
        pending.hold(2, 601);
        assert_eq!(pending.oldest_of_too_much(3), None, "its own peer holds little");
        assert_eq!(pending.oldest_of_too_much(2), Some(2), "beyond what one peer may");
    }

    #[test]
    fn a_workers_share_has_room_for_the_largest_header() {
        for workers in [1, 2, 1024] {
            let limits = Limits::of_a_worker(workers, 4);
            assert!(limits.bytes_a_peer >= MAX_HEADER, "{limits:?}");
            assert!(workers > 100 || limits.bytes * workers <= BYTES);
            assert_eq!(limits.connections_a_peer, 3);
        }
        assert_eq!(Limits::of_a_worker(1, 1).connections_a_peer, 1);
    }

    /// Connections in the order of their age.
    struct Model(Vec<(u32, Network, usize, u64)>);

    impl Model {
        /// The oldest connections of each of the peers that have most of `what`.
        fn oldest_of_most(
            &self,
            of: impl Fn(&&(u32, Network, usize, u64)) -> bool,
            what: impl Fn(&(u32, Network, usize, u64)) -> usize,
        ) -> Vec<u32> {
            let sum = |network| {
                self.0.iter().filter(|entry| entry.1 == network).map(&what).sum::<usize>()
            };
            let Some(most) = self.0.iter().filter(&of).map(|entry| sum(entry.1)).max() else {
                return Vec::new();
            };
            let mut seen = Vec::new();
            let mut eldest: Vec<_> = self.0.iter().filter(&of).collect();
            eldest.sort_by_key(|entry| entry.3);
            eldest.retain(|entry| {
                !seen.contains(&entry.1) && {
                    seen.push(entry.1);
                    true
                }
            });
            eldest.retain(|entry| sum(entry.1) == most);
            eldest.iter().map(|entry| entry.0).collect()
        }
    }

    /// Against a list that is searched through, whatever comes, leaves and grows.
    #[test]
    fn agrees_with_a_naive_model() {
        for seed in 0..60u64 {
            let mut state = seed;
            let mut next = move |below: usize| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as usize % below
            };
            let mut pending = Pending::new(LIMITS);
            // Slot, peer, bytes, since when it holds any.
            let mut model = Model(Vec::new());
            let peers: Vec<IpAddr> = (0..1 + next(5))
                .map(|index| match index % 2 {
                    0 => address(&format!("192.0.2.{index}")),
                    _ => address(&format!("2001:db8:0:{index}::{}", next(9))),
                })
                .collect();
            for step in 0..300u64 {
                let taken: Vec<u32> = model.0.iter().map(|entry| entry.0).collect();
                match next(4) {
                    0 if !taken.is_empty() => {
                        let slot = taken[next(taken.len())];
                        pending.leave(slot);
                        model.0.retain(|entry| entry.0 != slot);
                    }
                    1 if !taken.is_empty() => {
                        let at = next(taken.len());
                        let bytes = next(4) * 100;
                        pending.hold(taken[at], bytes);
                        if model.0[at].2 == 0 {
                            model.0[at].3 = step;
                        }
                        model.0[at].2 = bytes;
                    }
                    _ => {
                        let slot = next(40) as u32;
                        if !taken.contains(&slot) {
                            let peer = peers[next(peers.len())];
                            pending.enter(slot, peer);
                            model.0.push((slot, Network::of(peer), 0, step));
                        }
                    }
                }
                // Those that hold nothing are as old as they are.
                let by_age = Model(
                    model
                        .0
                        .iter()
                        .enumerate()
                        .map(|(age, e)| (e.0, e.1, e.2, age as u64))
                        .collect(),
                );
                let eldest = by_age.oldest_of_most(|_| true, |_| 1);
                match pending.oldest_of_most() {
                    None => assert!(eldest.is_empty(), "seed {seed}"),
                    Some(victim) => assert!(eldest.contains(&victim), "seed {seed} step {step}"),
                }
                let all: usize = model.0.iter().map(|entry| entry.2).sum();
                assert_eq!(pending.bytes, all);
                for &(slot, network, ..) in &model.0 {
                    let of_peer = |entry: &&(u32, Network, usize, u64)| entry.1 == network;
                    let siblings = model.0.iter().filter(of_peer).count();
                    assert_eq!(pending.siblings(slot), siblings);
                    let first = model.0.iter().find(of_peer).map(|entry| entry.0);
                    let over = siblings > LIMITS.connections_a_peer;
                    assert_eq!(pending.oldest_of_too_many(slot), first.filter(|_| over));
                    let held: usize = model.0.iter().filter(of_peer).map(|entry| entry.2).sum();
                    let victims = if all > LIMITS.bytes {
                        model.oldest_of_most(|entry| entry.2 > 0, |entry| entry.2)
                    } else if held > LIMITS.bytes_a_peer {
                        model.oldest_of_most(|entry| of_peer(entry) && entry.2 > 0, |entry| entry.2)
                    } else {
                        Vec::new()
                    };
                    match pending.oldest_of_too_much(slot) {
                        None => assert!(victims.is_empty(), "seed {seed} step {step}"),
                        Some(victim) => assert!(victims.contains(&victim), "seed {seed}"),
                    }
                }
                // Bounded by what waits now.
                assert_eq!(pending.peers.len() - pending.free.len(), pending.by_network.len());
                assert!(pending.peers.len() <= peers.len());
            }
            while let Some(victim) = pending.oldest_of_most() {
                pending.leave(victim);
            }
            assert_eq!((pending.most, pending.bytes, pending.by_network.len()), (0, 0, 0));
            assert!(pending.by_bytes.is_empty());
        }
    }
}
