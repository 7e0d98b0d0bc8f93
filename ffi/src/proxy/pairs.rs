//! Clients that have a UDP flow to an upstream which the destination in a header selected.
//!
//! A client may send to several destinations from one port. The sockets that share this port differ only in their
//! upstream, so each pair may exist only once: of two sockets with the same pair, the kernel would deliver the
//! replies to either.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hashbrown::HashSet;

use crate::system::sync::lock;

/// A client and its upstream.
type Ends = (SocketAddr, SocketAddr);

/// The pairs whose sockets may share their port with others.
#[derive(Default)]
pub struct Pairs(Mutex<HashSet<Ends>>);

/// A pair, until it is dropped.
pub struct Pair {
    pairs: Arc<Pairs>,
    ends: Ends,
}

impl Pairs {
    /// A pair, unless it is there.
    pub fn take(pairs: &Arc<Pairs>, client: SocketAddr, upstream: SocketAddr) -> Option<Pair> {
        let ends = (client, upstream);
        lock(&pairs.0).insert(ends).then(|| Pair { pairs: pairs.clone(), ends })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        lock(&self.pairs.0).remove(&self.ends);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_there_once_until_it_is_dropped() {
        let pairs: Arc<Pairs> = Arc::default();
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let one = Pairs::take(&pairs, address(1), address(2)).unwrap();
        assert!(Pairs::take(&pairs, address(1), address(2)).is_none());
        let other = Pairs::take(&pairs, address(1), address(3));
        assert!(other.is_some());
        drop(one);
        assert!(Pairs::take(&pairs, address(1), address(2)).is_some());
    }
}
