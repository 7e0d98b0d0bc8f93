//! `--udp-header session`: the header that a peer sent with its first datagram, as pure logic.
//!
//! Limited in number and in bytes: the session that has been idle longest is evicted.

use std::net::SocketAddr;

use hashbrown::HashMap;

use super::flow_table::FlowRef;
use super::idle::IdleQueue;
use super::moved::MovedSession;
use super::path::Path;

/// Checks of sessions that are gone may be so many more than sessions.
const SPARE_CHECKS: usize = 1024;

/// What a peer announced.
pub struct Session {
    /// The header, to recognize a repeated one, and to open the flow again.
    pub header: Box<[u8]>,
    pub flow: FlowRef,
    last_used: u64,
    /// Milliseconds after its last use at which it ends.
    close_after: u64,
}

/// Whose a session is: a peer's that has sent to a port.
pub type Between = (u32, Path);

/// The sessions of a worker.
pub struct Sessions {
    by_path: HashMap<Between, Session>,
    idle: IdleQueue<Between>,
    most: usize,
    bytes: usize,
    most_bytes: usize,
}

impl Sessions {
    /// At most this many sessions, with headers of at most this many bytes in all.
    pub fn new(most: usize, most_bytes: usize) -> Sessions {
        Sessions { by_path: HashMap::new(), idle: IdleQueue::default(), most, bytes: 0, most_bytes }
    }

    /// The session of a path, which is used by that.
    #[inline]
    pub fn get(&mut self, path: &Between, now: u64) -> Option<&mut Session> {
        let session = self.by_path.get_mut(path)?;
        session.last_used = now;
        Some(session)
    }

    /// Replaces a path's session; it is due `close_after` milliseconds after its last use.
    pub fn set(
        &mut self,
        path: &Between,
        header: &[u8],
        flow: FlowRef,
        now: u64,
        close_after: u64,
    ) {
        let session = Session { header: header.into(), flow, last_used: now, close_after };
        if let Some(known) = self.by_path.get_mut(path) {
            self.bytes = self.bytes + header.len() - known.header.len();
            *known = session;
            return self.make_room(path, 0, 0);
        }
        self.make_room(path, 1, header.len());
        self.bytes += header.len();
        self.by_path.insert(*path, session);
        self.idle.push(*path, now + close_after);
        // Checks of sessions that were removed early wait for their time: not too many of them.
        if self.idle.len() > 2 * self.by_path.len() + SPARE_CHECKS {
            let due = |(path, session): (&Between, &Session)| (*path, session.due_at());
            self.idle.rebuild(self.by_path.iter().map(due));
        }
    }

    /// Adopts a session of another program, last used at the given time.
    pub fn adopt(&mut self, path: &Between, header: &[u8], last_used: u64, close_after: u64) {
        self.set(path, header, FlowRef::NONE, last_used, close_after);
    }

    /// Every session.
    pub fn all(&self) -> impl Iterator<Item = (&Between, &Session)> {
        self.by_path.iter()
    }

    /// Evicts the idlest sessions until there is room for this many more, with this many bytes. Keeps `path`.
    fn make_room(&mut self, path: &Between, sessions: usize, bytes: usize) {
        while self.by_path.len() + sessions > self.most || self.bytes + bytes > self.most_bytes {
            let Some(idlest) = self.idle.pop_first(|path| due_at(&self.by_path, path)) else {
                break;
            };
            if idlest == *path {
                // The newest of all, and alone too large: it stays, as the only one.
                self.idle.push(idlest, due_at(&self.by_path, path).unwrap_or_default());
                break;
            }
            self.remove(&idlest);
        }
    }

    /// Ends a path's session.
    pub fn remove(&mut self, path: &Between) {
        if let Some(session) = self.by_path.remove(path) {
            self.bytes -= session.header.len();
        }
    }

    /// Ends the sessions that are due.
    pub fn expire(&mut self, now: u64) {
        while let Some(path) = self.idle.pop_due(now, |path| due_at(&self.by_path, path)) {
            self.remove(&path);
        }
    }

    /// Ends the sessions for whose path `keep` does not hold.
    pub fn retain(&mut self, keep: impl Fn(&Between) -> bool) {
        let bytes = &mut self.bytes;
        self.by_path.retain(|path, session| {
            let kept = keep(path);
            if !kept {
                *bytes -= session.header.len();
            }
            kept
        });
    }

    /// Whose each session is must be found again, by its header.
    pub fn forget_flows(&mut self) {
        self.by_path.values_mut().for_each(|session| session.flow = FlowRef::NONE);
    }

    /// When `expire` is worth a call.
    pub fn next_check(&self) -> Option<u64> {
        self.idle.next_check()
    }

    /// How many there are.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn len(&self) -> usize {
        self.by_path.len()
    }
}

impl Session {
    /// As sent to another program.
    pub fn moved(&self, listen: SocketAddr, path: Path) -> MovedSession {
        let (header, last_used, close_after) =
            (self.header.to_vec(), self.last_used, self.close_after);
        MovedSession { listen, path, header, last_used, close_after }
    }

    fn due_at(&self) -> u64 {
        self.last_used + self.close_after
    }
}

fn due_at(by_path: &HashMap<Between, Session>, path: &Between) -> Option<u64> {
    by_path.get(path).map(Session::due_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(port: u16) -> Between {
        (1, Path::of(([198, 51, 100, 1], port).into()))
    }

    fn flow(serial: u64) -> FlowRef {
        FlowRef { index: 0, serial }
    }

    #[test]
    fn a_session_is_set_anew_and_ends_when_idle() {
        let mut sessions = Sessions::new(8, 1000);
        sessions.set(&path(1), b"one", flow(1), 0, 100);
        sessions.set(&path(1), b"two", flow(2), 10, 100);
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions.get(&path(1), 50).map(|session| session.flow), Some(flow(2)));
        sessions.expire(149);
        assert_eq!(sessions.len(), 1);
        sessions.expire(150);
        assert_eq!((sessions.len(), sessions.bytes), (0, 0));
    }

    #[test]
    fn the_idlest_makes_room_in_number_and_in_bytes() {
        let mut sessions = Sessions::new(2, 10);
        sessions.set(&path(1), b"four", flow(1), 0, 100);
        sessions.set(&path(2), b"four", flow(2), 1, 100);
        sessions.get(&path(1), 2);
        sessions.set(&path(3), b"xx", flow(3), 3, 100);
        assert!(sessions.get(&path(2), 3).is_none(), "the third in number");
        sessions.set(&path(3), b"eightby8", flow(4), 4, 100);
        assert!(sessions.get(&path(1), 4).is_none(), "no room for the bytes of both");
        assert_eq!(sessions.bytes, 8);
    }

    #[test]
    fn a_peer_has_a_session_at_each_port() {
        let mut sessions = Sessions::new(8, 1000);
        let (one, two) = ((1, path(1).1), (2, path(1).1));
        sessions.set(&one, b"one", flow(1), 0, 100);
        assert!(sessions.get(&two, 0).is_none());
        sessions.set(&two, b"two", flow(2), 0, 50);
        sessions.expire(50);
        assert!(sessions.get(&two, 50).is_none());
        assert_eq!(sessions.get(&one, 50).map(|session| session.flow), Some(flow(1)));
    }

    #[test]
    fn sessions_of_peers_that_are_no_longer_allowed_end() {
        let mut sessions = Sessions::new(8, 1000);
        sessions.set(&path(1), b"one", flow(1), 0, 100);
        sessions.set(&path(2), b"two", flow(2), 0, 100);
        sessions.retain(|kept| *kept == path(2));
        assert_eq!((sessions.len(), sessions.bytes), (1, 3));
    }

    #[test]
    fn the_queue_does_not_grow_with_every_announcement() {
        let mut sessions = Sessions::new(8, 1000);
        for now in 0..10_000 {
            sessions.set(&path(1), b"header", flow(now), now, 100_000);
            if now % 2 == 0 {
                sessions.remove(&path(1));
            }
        }
        assert!(sessions.idle.len() <= SPARE_CHECKS + 16, "{}", sessions.idle.len());
        sessions.set(&path(1), b"header", flow(1), 20_000, 100_000);
        sessions.expire(119_999);
        assert_eq!(sessions.len(), 1);
        sessions.expire(120_000);
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn one_that_is_larger_than_all_room_is_the_only_one() {
        let mut sessions = Sessions::new(8, 10);
        sessions.set(&path(1), b"one", flow(1), 0, 100);
        sessions.set(&path(2), &[0; 50], flow(2), 1, 100);
        assert_eq!(sessions.len(), 1);
        sessions.set(&path(2), &[0; 60], flow(3), 2, 100);
        assert_eq!((sessions.len(), sessions.bytes), (1, 60));
    }
}
