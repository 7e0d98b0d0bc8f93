//! Which flow a datagram belongs to, without decoding its header again: pure logic.
//!
//! A route is what a peer sends at the head of its datagrams (or sent first, in a session) and the
//! flow that it was found to mean. Routes are bounded by their flows: one flow keeps few of them, and
//! they leave with it.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Routes that a flow keeps: a client behind a few peers, or a header that varies a little.
const ROUTES_A_FLOW: usize = 8;

/// Where a datagram came from and was sent to, in bytes that are equal when the addresses are.
pub trait Path: PartialEq {
    /// Bytes to hash: equal for equal paths.
    fn bytes(&self) -> impl AsRef<[u8]>;
}

/// A route: a path, a header, and what they lead to.
pub struct Route<P, T> {
    pub path: P,
    pub header: Box<[u8]>,
    pub target: T,
}

/// The index of a route, valid until the route is removed.
pub type RouteId = u32;

/// The routes that lead to one flow.
#[derive(Default)]
pub struct Leading {
    routes: [RouteId; ROUTES_A_FLOW],
    count: usize,
    oldest: usize,
}

/// Routes by path and header, or by path alone where a peer sends its header once.
pub struct RouteTable<P, T> {
    routes: Vec<Option<Route<P, T>>>,
    free: Vec<RouteId>,
    index: HashTable<RouteId>,
    hasher: DefaultHashBuilder,
    by_path_alone: bool,
}

impl<P: Path, T> RouteTable<P, T> {
    /// An empty table. `by_path_alone`: a path has one route, whatever its header.
    pub fn new(by_path_alone: bool) -> RouteTable<P, T> {
        RouteTable {
            routes: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            by_path_alone,
        }
    }

    /// The route of a path and a header (which does not count where the path alone does).
    #[inline]
    pub fn find(&self, path: &P, header: &[u8]) -> Option<RouteId> {
        let same = |id: &RouteId| match &self.routes[*id as usize] {
            Some(route) => (self.by_path_alone || *route.header == *header) && route.path == *path,
            None => false,
        };
        self.index.find(self.hash(path, header), same).copied()
    }

    /// A route by its index.
    #[inline]
    pub fn get(&self, id: RouteId) -> Option<&Route<P, T>> {
        self.routes.get(id as usize)?.as_ref()
    }

    /// Adds a route that `find` does not find.
    pub fn insert(&mut self, route: Route<P, T>) -> RouteId {
        let hash = self.hash(&route.path, &route.header);
        let id = self.free.pop().unwrap_or_else(|| {
            self.routes.push(None);
            self.routes.len() as RouteId - 1
        });
        self.routes[id as usize] = Some(route);
        let (routes, hasher, alone) = (&self.routes, &self.hasher, self.by_path_alone);
        self.index.insert_unique(hash, id, |id| match &routes[*id as usize] {
            Some(route) => hash_of(hasher, &route.path, &route.header, alone),
            None => 0,
        });
        id
    }

    /// Takes a route out.
    pub fn remove(&mut self, id: RouteId) -> Option<Route<P, T>> {
        let route = self.routes.get_mut(id as usize)?.take()?;
        let hash = self.hash(&route.path, &route.header);
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        self.free.push(id);
        Some(route)
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len() - self.free.len()
    }

    /// Every route's index for which `which` holds.
    pub fn ids(&self, which: impl Fn(&Route<P, T>) -> bool) -> Vec<RouteId> {
        let held = self.routes.iter().enumerate();
        held.filter(|(_, route)| route.as_ref().is_some_and(&which))
            .map(|(id, _)| id as RouteId)
            .collect()
    }

    fn hash(&self, path: &P, header: &[u8]) -> u64 {
        hash_of(&self.hasher, path, header, self.by_path_alone)
    }
}

impl Leading {
    /// Notes a route to the flow; gives back the oldest when there are too many.
    pub fn add(&mut self, id: RouteId) -> Option<RouteId> {
        if self.count < ROUTES_A_FLOW {
            self.routes[self.count] = id;
            self.count += 1;
            return None;
        }
        let replaced = std::mem::replace(&mut self.routes[self.oldest], id);
        self.oldest = (self.oldest + 1) % ROUTES_A_FLOW;
        Some(replaced)
    }

    /// Forgets a route that was removed for another reason.
    pub fn forget(&mut self, id: RouteId) {
        if let Some(at) = self.routes[..self.count].iter().position(|other| *other == id) {
            self.count -= 1;
            self.routes.swap(at, self.count);
            self.oldest = 0;
        }
    }

    /// The routes to the flow.
    pub fn ids(&self) -> &[RouteId] {
        &self.routes[..self.count]
    }
}

fn hash_of<P: Path>(
    hasher: &DefaultHashBuilder,
    path: &P,
    header: &[u8],
    by_path_alone: bool,
) -> u64 {
    let path = path.bytes();
    if by_path_alone {
        hasher.hash_one(path.as_ref())
    } else {
        hasher.hash_one((path.as_ref(), header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Path for u8 {
        fn bytes(&self) -> impl AsRef<[u8]> {
            [*self]
        }
    }

    fn route(path: u8, header: &[u8], target: u32) -> Route<u8, u32> {
        Route { path, header: header.into(), target }
    }

    #[test]
    fn a_route_is_found_by_path_and_header() {
        let mut table = RouteTable::new(false);
        let one = table.insert(route(1, b"header", 10));
        let two = table.insert(route(2, b"header", 20));
        assert_eq!(table.find(&1, b"header"), Some(one));
        assert_eq!(table.find(&2, b"header"), Some(two));
        assert_eq!(table.find(&1, b"heade"), None);
        assert_eq!(table.find(&1, b"header "), None);
        assert_eq!(table.get(two).map(|route| route.target), Some(20));
        assert_eq!(table.remove(one).map(|route| route.target), Some(10));
        assert_eq!((table.find(&1, b"header"), table.get(one).is_some()), (None, false));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_session_is_found_by_its_path_alone() {
        let mut table = RouteTable::new(true);
        let one = table.insert(route(1, b"header", 10));
        assert_eq!(table.find(&1, b""), Some(one));
        assert_eq!(table.find(&2, b"header"), None);
    }

    #[test]
    fn many_routes_stay_apart() {
        let mut table = RouteTable::new(false);
        let ids: Vec<RouteId> =
            (0..5_000u32).map(|n| table.insert(route(1, &n.to_be_bytes(), n))).collect();
        for id in ids.iter().skip(1).step_by(2) {
            table.remove(*id);
        }
        for (n, id) in (0..5_000u32).zip(&ids) {
            let kept = n % 2 == 0;
            assert_eq!(table.find(&1, &n.to_be_bytes()), kept.then_some(*id));
        }
        assert_eq!(table.ids(|route| route.target < 10).len(), 5);
    }

    #[test]
    fn a_flow_keeps_its_latest_routes() {
        let mut leading = Leading::default();
        for id in 0..8 {
            assert_eq!(leading.add(id), None);
        }
        assert_eq!(leading.add(8), Some(0));
        assert_eq!(leading.add(9), Some(1));
        leading.forget(8);
        assert_eq!(leading.add(10), None);
        let mut ids = leading.ids().to_vec();
        ids.sort_unstable();
        assert_eq!(ids, [2, 3, 4, 5, 6, 7, 9, 10]);
    }
}
