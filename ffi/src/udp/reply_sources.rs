//! Sockets from which transparent listeners reply: one for each address and port to which a peer has sent. Pure logic.
//!
//! They are opened for the first reply that needs one, limited in number, and closed after a minute without a reply;
//! the one that has been idle longest is evicted.

use std::io;

use hashbrown::HashMap;

use super::idle::IdleQueue;
use super::path::Local;
use crate::net::socket;

/// How long a socket stays open without a reply.
const KEEP_MS: u64 = 60_000;
/// How long one that could not be opened is not tried again.
const RETRY_MS: u64 = 1_000;

/// What is replied from: an address and port, by a socket of the listening socket's family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplySource {
    pub local: Local,
    /// Peers have IPv4 addresses in their mapped form at a dual-stack socket.
    pub ipv6: bool,
}

/// The sockets of a worker.
pub struct ReplySources<S> {
    by_source: HashMap<ReplySource, Entry<S>>,
    idle: IdleQueue<ReplySource>,
    most: usize,
}

struct Entry<S> {
    /// The errno of one that could not be opened.
    socket: Result<S, i32>,
    due_at: u64,
}

impl<S: Clone> ReplySources<S> {
    /// At most this many sockets.
    pub fn new(most: usize) -> ReplySources<S> {
        ReplySources { by_source: HashMap::new(), idle: IdleQueue::default(), most }
    }

    /// The socket of a source; `open` makes one that is not known.
    ///
    /// # Errors
    /// The errno of `open`, now or within the last second.
    pub fn get(
        &mut self,
        source: ReplySource,
        now: u64,
        open: impl Fn() -> io::Result<S>,
    ) -> Result<S, i32> {
        if let Some(entry) = self.by_source.get_mut(&source) {
            match &entry.socket {
                Ok(socket) => {
                    entry.due_at = now + KEEP_MS;
                    return Ok(socket.clone());
                }
                Err(errno) if now < entry.due_at => return Err(*errno),
                Err(_) => {}
            }
        }
        self.by_source.remove(&source);
        while self.by_source.len() >= self.most && self.evict() {}
        let mut opened = open();
        while opened.as_ref().is_err_and(socket::is_out_of_descriptors) && self.evict() {
            opened = open();
        }
        let socket = opened.map_err(|error| socket::errno(&error));
        let due_at = now + if socket.is_ok() { KEEP_MS } else { RETRY_MS };
        self.by_source.insert(source, Entry { socket: socket.clone(), due_at });
        self.idle.push(source, due_at);
        socket
    }

    /// Closes what is due.
    pub fn expire(&mut self, now: u64) {
        while let Some(source) = self.idle.pop_due(now, |source| due_at(&self.by_source, source)) {
            self.by_source.remove(&source);
        }
    }

    /// Closes all: where this program listens has changed. From now on at most this many sockets.
    pub fn reset(&mut self, most: usize) {
        *self = ReplySources::new(most);
    }

    /// When `expire` is worth a call.
    pub fn next_check(&self) -> Option<u64> {
        self.idle.next_check()
    }

    /// Closes the one that has been idle longest; whether there was one.
    fn evict(&mut self) -> bool {
        let idlest = self.idle.pop_first(|source| due_at(&self.by_source, source));
        idlest.is_some_and(|source| self.by_source.remove(&source).is_some())
    }
}

/// When a source is due; `None` for one that is gone.
fn due_at<S>(by_source: &HashMap<ReplySource, Entry<S>>, source: &ReplySource) -> Option<u64> {
    by_source.get(source).map(|entry| entry.due_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket::RawAddr;
    use std::cell::Cell;
    use std::collections::HashMap as Model;
    use std::rc::Rc;

    fn source(port: u16) -> ReplySource {
        let address = std::net::SocketAddr::from(([198, 51, 100, 1], port));
        ReplySource { local: Local::original(&RawAddr::from(address)), ipv6: false }
    }

    #[test]
    fn a_source_keeps_its_socket_and_no_other_has_it() {
        let mut sources: ReplySources<Rc<u16>> = ReplySources::new(2);
        let open = |port: u16| move || Ok(Rc::new(port));
        let one = sources.get(source(1), 0, open(1)).unwrap();
        let again = sources.get(source(1), 1, || panic!("it is open")).unwrap();
        assert!(Rc::ptr_eq(&one, &again));
        let mapped = ReplySource { ipv6: true, ..source(1) };
        assert_eq!(*sources.get(mapped, 2, open(7)).unwrap(), 7);
        // The first was used before the second: it makes room, and whoever holds it still has it.
        sources.get(source(3), 3, open(3)).unwrap();
        assert_eq!(Rc::strong_count(&one), 2);
        drop((one, again));
        assert_eq!(*sources.get(source(1), 4, open(8)).unwrap(), 8);
    }

    #[test]
    fn what_is_idle_is_closed_and_what_is_used_stays() {
        let mut sources = ReplySources::new(8);
        sources.get(source(1), 0, || Ok(1)).unwrap();
        sources.get(source(2), 0, || Ok(2)).unwrap();
        sources.get(source(2), 50_000, || Ok(9)).unwrap();
        sources.expire(KEEP_MS);
        assert_eq!(sources.by_source.len(), 1);
        sources.expire(50_000 + KEEP_MS);
        assert_eq!((sources.by_source.len(), sources.next_check()), (0, None));
    }

    #[test]
    fn one_that_cannot_be_opened_is_not_tried_again_for_a_second() {
        let mut sources = ReplySources::<u16>::new(2);
        let in_use = || Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        assert_eq!(sources.get(source(1), 0, in_use), Err(libc::EADDRINUSE));
        let panics = || panic!("it is tried again");
        assert_eq!(sources.get(source(1), RETRY_MS - 1, panics), Err(libc::EADDRINUSE));
        assert_eq!(sources.get(source(1), RETRY_MS, || Ok(1)), Ok(1));
    }

    #[test]
    fn without_descriptors_the_idlest_makes_room() {
        let mut sources = ReplySources::new(8);
        for port in 1..=3 {
            sources.get(source(port), u64::from(port), || Ok(port)).unwrap();
        }
        let tries = Cell::new(0);
        let open = || match tries.replace(tries.get() + 1) {
            0 | 1 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            _ => Ok(4),
        };
        assert_eq!(sources.get(source(4), 9, open), Ok(4));
        assert_eq!(sources.by_source.len(), 2);
        let none = || Err(io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(sources.get(source(5), 9, none), Err(libc::EMFILE));
        assert_eq!(sources.by_source.len(), 1, "the failure alone");
    }

    /// Whatever comes, a source has the socket that was opened for it, and there are never too many.
    #[test]
    fn the_sources_of_any_story_have_their_own_sockets() {
        for seed in 0..200u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut random = move |below: u64| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) % below
            };
            let most = 1 + random(6) as usize;
            let mut sources: ReplySources<u16> = ReplySources::new(most);
            let mut used: Model<u16, u64> = Model::new();
            let mut now = 0;
            for _ in 0..300 {
                now += random(9_000);
                sources.expire(now);
                let port = random(9) as u16;
                let fails = random(8) == 0;
                let open = || match fails {
                    true => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
                    false => Ok(port),
                };
                if let Ok(socket) = sources.get(source(port), now, open) {
                    assert_eq!(socket, port, "seed {seed}");
                    used.insert(port, now);
                }
                assert!(sources.by_source.len() <= most, "seed {seed}");
                let stale = sources.by_source.iter().any(|(_, entry)| entry.due_at < now);
                assert!(!stale, "seed {seed}");
            }
        }
    }
}
