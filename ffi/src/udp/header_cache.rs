//! Caches the meaning of a peer's header, so that the next datagram with it needs no decode.
//!
//! An accelerator, never the identity: losing an entry costs a decode and drops no datagram. The bytes of all entries
//! are limited; the least recently used ones are evicted.

use std::hash::BuildHasher;
use std::mem::size_of;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::flow_table::FlowRef;
use super::path::Path;

const NONE: u32 = u32::MAX;

/// Headers by port, path and bytes.
pub struct HeaderCache {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// The most recently used, and the least: a list through `newer` and `older`.
    newest: u32,
    oldest: u32,
    bytes: usize,
    most_bytes: usize,
    /// The entry that was found last.
    last: u32,
    /// The current batch: within one, an entry moves to the front once.
    batch: u32,
}

struct Entry {
    port: u32,
    path: Path,
    header: Box<[u8]>,
    flow: FlowRef,
    hash: u64,
    newer: u32,
    older: u32,
    batch: u32,
}

/// What an entry takes in addition to its header.
const OVERHEAD: usize = size_of::<Option<Entry>>() + 2 * size_of::<u32>();

impl HeaderCache {
    /// A cache of at most this many bytes.
    pub fn new(most_bytes: usize) -> HeaderCache {
        HeaderCache {
            entries: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            newest: NONE,
            oldest: NONE,
            bytes: 0,
            most_bytes,
            last: NONE,
            batch: 0,
        }
    }

    /// Begins a batch.
    pub fn start(&mut self) {
        self.batch = self.batch.wrapping_add(1);
    }

    /// What the entry that was found last leads to, if the datagram came to its port by its path and
    /// begins with its header: the flow and the header's length.
    ///
    /// A header's own bytes say where it ends, so what begins with a header's bytes has that header.
    #[inline]
    pub fn last(&self, port: u32, path: &Path, datagram: &[u8]) -> Option<(FlowRef, usize)> {
        let entry = self.entries.get(self.last as usize)?.as_ref()?;
        let same = datagram.starts_with(&entry.header) && entry.path == *path && entry.port == port;
        same.then_some((entry.flow, entry.header.len()))
    }

    /// What a header means that came to a port by a path.
    #[inline]
    pub fn find(&mut self, port: u32, path: &Path, header: &[u8]) -> Option<FlowRef> {
        let hash = self.hash(port, path, header);
        let at = self.position(hash, port, path, header)?;
        self.last = at;
        let entry = self.entries[at as usize].as_mut()?;
        let flow = entry.flow;
        if entry.batch != self.batch {
            entry.batch = self.batch;
            self.unlink(at);
            self.link(at);
        }
        Some(flow)
    }

    /// Notes what a header means that came to a port by a path. One too large to keep is not kept.
    pub fn insert(&mut self, port: u32, path: &Path, header: &[u8], flow: FlowRef) {
        let hash = self.hash(port, path, header);
        if let Some(known) = self.position(hash, port, path, header) {
            if let Some(entry) = &mut self.entries[known as usize] {
                entry.flow = flow;
            }
            self.last = known;
            return;
        }
        let size = OVERHEAD + header.len();
        if size > self.most_bytes {
            return;
        }
        while self.bytes + size > self.most_bytes {
            self.remove(self.oldest);
        }
        let entry = Entry {
            port,
            path: *path,
            header: header.into(),
            flow,
            hash,
            newer: NONE,
            older: NONE,
            batch: self.batch,
        };
        let at = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[at as usize] = Some(entry);
        let entries = &self.entries;
        let rehash = |at: &u32| entries[*at as usize].as_ref().map_or(0, |entry| entry.hash);
        self.index.insert_unique(hash, at, rehash);
        self.link(at);
        self.bytes += size;
        self.last = at;
    }

    /// Forgets everything: what headers mean may have changed.
    pub fn clear(&mut self) {
        *self = HeaderCache { batch: self.batch, ..HeaderCache::new(self.most_bytes) };
    }

    /// Bytes of all entries.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn position(&self, hash: u64, port: u32, path: &Path, header: &[u8]) -> Option<u32> {
        let same = |at: &u32| {
            let entry = self.entries[*at as usize].as_ref();
            entry.is_some_and(|entry| {
                *entry.header == *header && entry.path == *path && entry.port == port
            })
        };
        self.index.find(hash, same).copied()
    }

    fn hash(&self, port: u32, path: &Path, header: &[u8]) -> u64 {
        self.hasher.hash_one((port, path, header))
    }

    fn remove(&mut self, at: u32) {
        if self.entries.get(at as usize).is_none_or(Option::is_none) {
            return;
        }
        self.unlink(at);
        let Some(entry) = self.entries[at as usize].take() else { return };
        if let Ok(found) = self.index.find_entry(entry.hash, |other| *other == at) {
            found.remove();
        }
        self.free.push(at);
        self.bytes -= OVERHEAD + entry.header.len();
    }

    /// Puts an entry before the newest.
    fn link(&mut self, at: u32) {
        let before = std::mem::replace(&mut self.newest, at);
        if let Some(entry) = self.entry(at) {
            (entry.newer, entry.older) = (NONE, before);
        }
        match self.entry(before) {
            Some(entry) => entry.newer = at,
            None => self.oldest = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Some((newer, older)) = self.entry(at).map(|entry| (entry.newer, entry.older)) else {
            return;
        };
        match self.entry(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.entry(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn entry(&mut self, at: u32) -> Option<&mut Entry> {
        self.entries.get_mut(at as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn path(port: u16) -> Path {
        Path::of(([198, 51, 100, 1], port).into())
    }

    fn flow(serial: u64) -> FlowRef {
        FlowRef { index: 0, serial }
    }

    #[test]
    fn a_header_is_found_by_path_and_bytes() {
        let mut cache = HeaderCache::new(1 << 20);
        cache.insert(1, &path(1), b"header", flow(1));
        cache.insert(1, &path(2), b"header", flow(2));
        assert_eq!(cache.find(1, &path(1), b"header"), Some(flow(1)));
        assert_eq!(cache.find(1, &path(2), b"header"), Some(flow(2)));
        assert_eq!(cache.find(1, &path(1), b"heade"), None);
        assert_eq!(cache.find(1, &path(1), b"header "), None);
        assert_eq!(cache.find(2, &path(1), b"header"), None, "another port");
        cache.insert(1, &path(1), b"header", flow(3));
        assert_eq!(cache.find(1, &path(1), b"header"), Some(flow(3)));
    }

    #[test]
    fn the_last_is_known_by_the_datagrams_beginning() {
        let mut cache = HeaderCache::new(1 << 20);
        assert_eq!(cache.last(1, &path(1), b"headerpayload"), None);
        cache.insert(1, &path(1), b"header", flow(1));
        assert_eq!(cache.last(1, &path(1), b"headerpayload"), Some((flow(1), 6)));
        assert_eq!(cache.last(1, &path(2), b"headerpayload"), None);
        assert_eq!(cache.last(2, &path(1), b"headerpayload"), None);
        assert_eq!(cache.last(1, &path(1), b"heade"), None);
        cache.clear();
        assert_eq!(cache.last(1, &path(1), b"headerpayload"), None);
        assert_eq!((cache.bytes(), cache.find(1, &path(1), b"header")), (0, None));
    }

    #[test]
    fn one_that_is_larger_than_the_cache_is_not_kept() {
        let mut cache = HeaderCache::new(1000);
        cache.insert(1, &path(1), b"kept", flow(1));
        cache.insert(1, &path(1), &[0; 1000], flow(2));
        assert_eq!(cache.find(1, &path(1), &[0; 1000]), None);
        assert_eq!(cache.find(1, &path(1), b"kept"), Some(flow(1)));
    }

    /// Against a list that is searched from end to end.
    #[test]
    fn the_least_recently_used_make_room() {
        for seed in 1..=50u64 {
            let mut state = seed;
            let mut random = move |below: u64| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) % below
            };
            let most = 10 * (OVERHEAD + 20);
            let mut cache = HeaderCache::new(most);
            // The newest first.
            let mut model: VecDeque<(Vec<u8>, u64)> = VecDeque::new();
            for step in 0..2_000 {
                cache.start();
                let mut header = vec![b'h'; random(40) as usize];
                header.push(random(12) as u8);
                let known = model.iter().position(|(key, _)| *key == header);
                let found = cache.find(1, &path(1), &header);
                assert_eq!(found, known.map(|at| flow(model[at].1)), "seed {seed}, step {step}");
                match known.and_then(|at| model.remove(at)) {
                    Some(used) => model.push_front(used),
                    None => {
                        cache.insert(1, &path(1), &header, flow(step));
                        model.push_front((header, step));
                        let size = |model: &VecDeque<(Vec<u8>, u64)>| -> usize {
                            model.iter().map(|(header, _)| OVERHEAD + header.len()).sum()
                        };
                        while size(&model) > most {
                            model.pop_back();
                        }
                        assert_eq!(cache.bytes(), size(&model), "seed {seed}, step {step}");
                    }
                }
            }
        }
    }
}
