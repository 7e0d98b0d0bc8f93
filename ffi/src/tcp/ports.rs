//! Remembers for a moment that no port was free: a search through all of them takes the worker half a millisecond, and
//! would fail again. Pure logic, of a fixed size.

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};

use hashbrown::DefaultHashBuilder;

use crate::net::socket::Source;

/// Milliseconds for which a search is not repeated: ports come free as connections end.
const FORGET_MS: u64 = 250;
/// Places; two searches that share one forget each other, which costs one more search.
const PLACES: usize = 256;

/// From which address to which upstream; without one, from the proxy's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Way {
    from: Option<IpAddr>,
    to: SocketAddr,
}

/// The searches of the last moment that found nothing.
#[derive(Default)]
pub struct Exhausted {
    /// Empty until the first.
    places: Vec<Option<(Way, u64)>>,
    hasher: DefaultHashBuilder,
}

impl Exhausted {
    /// A search from this source towards an upstream has found no port.
    pub fn note(&mut self, source: Source, to: SocketAddr, now: u64) {
        self.places.resize(PLACES, None);
        let way = Way::of(source, to);
        let place = self.place(&way);
        self.places[place] = Some((way, now + FORGET_MS));
    }

    /// Whether one has found none a moment ago.
    #[inline]
    pub fn knows(&self, source: Source, to: SocketAddr, now: u64) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let way = Way::of(source, to);
        self.places[self.place(&way)].is_some_and(|(known, until)| known == way && now < until)
    }

    fn place(&self, way: &Way) -> usize {
        self.hasher.hash_one(way) as usize % PLACES
    }
}

impl Way {
    fn of(source: Source, to: SocketAddr) -> Way {
        let from = match source {
            Source::Client(client) => Some(client.ip()),
            Source::Own => None,
        };
        Way { from, to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Source {
        Source::Client(text.parse().unwrap())
    }

    #[test]
    fn a_search_is_remembered_for_its_client_and_upstream() {
        let mut exhausted = Exhausted::default();
        let (to, other) = ("127.0.0.1:443".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
        assert!(!exhausted.knows(client("192.0.2.1:5"), to, 0));
        exhausted.note(client("192.0.2.1:5"), to, 10);
        assert!(exhausted.knows(client("192.0.2.1:6"), to, 10), "whatever port it asks for");
        assert!(!exhausted.knows(client("192.0.2.2:5"), to, 10));
        assert!(!exhausted.knows(Source::Own, to, 10));
        assert!(!exhausted.knows(client("192.0.2.1:5"), other, 10));
        assert!(exhausted.knows(client("192.0.2.1:5"), to, 9 + FORGET_MS));
        assert!(!exhausted.knows(client("192.0.2.1:5"), to, 10 + FORGET_MS));
    }

    #[test]
    fn many_clients_take_no_more_room() {
        let mut exhausted = Exhausted::default();
        let to = "[2001:db8::1]:443".parse().unwrap();
        for index in 0..10_000u32 {
            let from = Source::Client(SocketAddr::from((index.to_be_bytes(), 1)));
            exhausted.note(from, to, 0);
            assert!(exhausted.knows(from, to, 0));
        }
        assert_eq!(exhausted.places.len(), PLACES);
    }
}
