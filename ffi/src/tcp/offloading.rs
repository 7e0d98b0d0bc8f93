//! When a relayed connection is handed over to the kernel, and what is left to do for it then.
//!
//! A connection that has lived a second, or moved a mebibyte, is watched: the BPF program notes by which
//! interfaces its packets come. Once it has seen both directions, and everything that was read is written, its
//! packets are translated. What was on its way to the sockets is still relayed; when that is acknowledged, the
//! sockets are closed without a word. From then on the connection is looked at once a second: its bytes are
//! counted, and its end is noticed.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::relay::{Party, Relay, Side};
use crate::net::socket::{self, Reset};
use crate::offload::record::{saw, Direction};
use crate::offload::translation::{self, Pair};
use crate::offload::{monotonic_ns, Offload, Place, Ticket};

/// How long a connection lives, or how many bytes it moves, before it is worth it.
/// In tests at once: they are over sooner.
const AGE_MS: u64 = if cfg!(feature = "fault-injection") { 0 } else { 1000 };
const BYTES: u64 = 1 << 20;
/// More than this on its way to an end is waited for.
const MOST_UNACKNOWLEDGED: u32 = 64 << 10;
/// How often a connection is looked at while its sockets are still needed, and afterwards.
const DRAIN_MS: u64 = 10;
/// After so many looks it is looked at half as often.
const LOOKS_EACH: u32 = 8;
const LOOK_MS: u64 = 1000;

/// How far a connection is.
#[derive(Default)]
pub enum Offloading {
    /// It is too young.
    #[default]
    Young,
    /// It stays with its relay.
    Refused,
    /// Its packets are seen, and go to the sockets.
    Watched(Box<Place>),
    /// Its packets are translated, and the sockets have something left to do.
    Draining(Box<Draining>),
    /// The sockets are gone.
    Offloaded(Box<Offloaded>),
}

pub struct Draining {
    place: Place,
    ticket: Ticket,
    /// How often it was looked at.
    looks: u32,
}

pub struct Offloaded {
    place: Place,
    /// Up to where acknowledged bytes were counted: up, down.
    counted: [u64; 2],
    /// It was over at the last look: the ends may still repeat themselves.
    lingers: bool,
}

/// What a look at an offloaded connection brings.
pub enum Look {
    /// Bytes that were delivered since the last one, and when to look again, in milliseconds.
    Goes { bytes: [u64; 2], again: u64 },
    /// The last of them; who ended it first, with which error, and how many milliseconds ago.
    Ended { bytes: [u64; 2], first: Party, error: Option<i32>, ago: u64 },
}

impl Offloading {
    /// Whether events of its sockets mean nothing any more.
    pub fn is_offloaded(&self) -> bool {
        matches!(self, Offloading::Offloaded(_))
    }

    /// Goes on with a connection whose relay has had its turn. When to look at it, where that is new.
    pub fn advance(
        &mut self,
        offload: &Arc<Offload>,
        age: u64,
        relay: &Relay,
        [peer, upstream]: [&Side; 2],
        pair: impl FnOnce() -> Option<Pair>,
    ) -> Option<u64> {
        let fds = [peer, upstream].map(|side| side.fd.as_raw_fd());
        match self {
            Offloading::Young => {
                let old = age >= AGE_MS || relay.up.taken() + relay.down.taken() >= BYTES;
                if old && relay.is_even(peer, upstream) {
                    let place =
                        pair().and_then(|pair| offload.watch(pair, fds[0], fds[1]).ok().flatten());
                    *self = place
                        .map_or(Offloading::Refused, |place| Offloading::Watched(Box::new(place)));
                }
                None
            }
            Offloading::Watched(place) => {
                let calm = || fds.iter().all(|fd| is_calm(*fd));
                if !place.is_seen() || !relay.is_even(peer, upstream) || !calm() {
                    return None;
                }
                let Offloading::Watched(place) = std::mem::take(self) else { return None };
                fds.iter().for_each(|fd| socket::acknowledge(*fd));
                set_boundaries(&place, fds);
                let Ok(ticket) = place.offload(fds) else {
                    *self = Offloading::Refused;
                    return None;
                };
                let draining = Draining { place: *place, ticket, looks: 0 };
                *self = Offloading::Draining(Box::new(draining));
                Some(DRAIN_MS)
            }
            Offloading::Draining(draining) => {
                set_boundaries(&draining.place, fds);
                None
            }
            Offloading::Refused | Offloading::Offloaded(_) => None,
        }
    }

    /// Looks at a connection whose packets are translated.
    pub fn look(&mut self, relay: &Relay, [peer, upstream]: [&mut Side; 2]) -> Look {
        let again = |again| Look::Goes { bytes: [0, 0], again };
        let fds = [&*peer, &*upstream].map(|side| side.fd.as_raw_fd());
        match self {
            Offloading::Draining(draining) => {
                set_boundaries(&draining.place, fds);
                if !draining.is_done(relay, fds) {
                    // An end that does not read may take long: then seldom is enough.
                    draining.looks += 1;
                    return again(LOOK_MS.min(DRAIN_MS << (draining.looks / LOOKS_EACH).min(7)));
                }
                let written = [fds[1], fds[0]].map(socket::write_next);
                let [Ok(up), Ok(down)] = written else { return again(DRAIN_MS) };
                if fds.iter().any(|fd| socket::leave(*fd).is_err()) {
                    return again(DRAIN_MS);
                }
                peer.fd.close();
                upstream.fd.close();
                let Offloading::Draining(draining) = std::mem::take(self) else {
                    return again(DRAIN_MS);
                };
                let Draining { place, .. } = *draining;
                let counted = [place.note_acknowledged(0, up), place.note_acknowledged(1, down)];
                let ended = [relay.up.has_ended(), relay.down.has_ended()];
                for (direction, number) in [up, down].into_iter().enumerate() {
                    if ended[direction] {
                        place.note_end(direction, number);
                    }
                }
                place.end_draining();
                *self =
                    Offloading::Offloaded(Box::new(Offloaded { place, counted, lingers: false }));
                again(LOOK_MS)
            }
            Offloading::Offloaded(offloaded) => offloaded.look(),
            Offloading::Young | Offloading::Refused | Offloading::Watched(_) => again(LOOK_MS),
        }
    }

    /// Makes the sockets of a connection that is cut short ready to be closed without a word, where the two ends
    /// are one connection by now: what the sockets know of it is old. Whether that is so; then `reset` has to
    /// follow their end. `by_end`: one of the ends has reset it.
    pub fn leave(&self, fds: [RawFd; 2], by_end: bool) -> bool {
        match self {
            Offloading::Draining(draining) => {
                for (direction, fd) in [(0, fds[1]), (1, fds[0])] {
                    let acknowledged = socket::unacknowledged(fd)
                        .and_then(|bytes| Ok(socket::write_next(fd)?.wrapping_sub(bytes)));
                    if let Ok(number) = acknowledged {
                        draining.place.note_acknowledged(direction, number);
                    }
                    let _ = socket::leave(fd);
                }
                true
            }
            // The reset of one end has reached the other.
            Offloading::Offloaded(_) => !by_end,
            Offloading::Young | Offloading::Refused | Offloading::Watched(_) => false,
        }
    }

    /// Gives the addresses back, and resets both ends. The sockets must be closed by then.
    pub fn reset(self, mark: u32) {
        let place = match self {
            Offloading::Draining(draining) => draining.place,
            Offloading::Offloaded(offloaded) => offloaded.place,
            Offloading::Young | Offloading::Refused | Offloading::Watched(_) => return,
        };
        let Pair { peer, listen, client, upstream } = *place.pair();
        let [up, down] = [0, 1].map(|direction| place.direction(direction));
        // What each end waits for, and what it sends next, in its own numbers.
        let (up_end, down_end) = (up.acknowledged as u32, down.acknowledged as u32);
        let of_peer = Reset {
            from: listen,
            to: peer,
            mark: 0,
            sequence: down_end,
            acknowledgement: up_end.wrapping_sub(up.add_sequence),
        };
        let of_upstream = Reset {
            from: client,
            to: upstream,
            mark,
            sequence: up_end,
            acknowledgement: down_end.wrapping_sub(down.add_sequence),
        };
        drop(place);
        for reset in [of_peer, of_upstream] {
            // Whoever is not reached here is reset by the kernel when it speaks again.
            let _ = socket::reset(reset);
        }
    }
}

/// Whether little enough of what a socket has written is on its way, and nothing waits to be sent.
fn is_calm(fd: RawFd) -> bool {
    let of = |read: fn(RawFd) -> io::Result<u32>| read(fd).unwrap_or(u32::MAX);
    of(socket::unacknowledged) <= MOST_UNACKNOWLEDGED && of(socket::unsent) == 0
}

/// Says which acknowledgements are the sockets': those of what they have written.
fn set_boundaries(place: &Place, [peer, upstream]: [RawFd; 2]) {
    for (direction, fd) in [(0, upstream), (1, peer)] {
        if let Ok(number) = socket::write_next(fd) {
            place.set_boundary(direction, number);
        }
    }
}

impl Draining {
    /// Whether nothing can arrive at the sockets any more, and all that did was delivered.
    fn is_done(&self, relay: &Relay, [peer, upstream]: [RawFd; 2]) -> bool {
        // First: what arrives until then may have to be relayed.
        if !self.place.has_passed(self.ticket) {
            return false;
        }
        let empty = |fd| socket::unread(fd).is_ok_and(|bytes| bytes == 0);
        let delivered = |direction, fd| {
            let all = socket::write_next(fd).is_ok_and(|end| {
                (self.place.acknowledged(direction) as u32).wrapping_sub(end) as i32 >= 0
            });
            all || socket::unacknowledged(fd).is_ok_and(|bytes| bytes == 0)
        };
        relay.holds_nothing()
            && empty(peer)
            && empty(upstream)
            && delivered(0, upstream)
            && delivered(1, peer)
    }
}

impl Offloaded {
    fn look(&mut self) -> Look {
        let directions = [0, 1].map(|direction| self.place.direction(direction));
        let mut bytes = [0, 0];
        for at in [0, 1] {
            let end = translation::delivered(&directions[at], self.counted[at]);
            bytes[at] = end;
            self.counted[at] += end;
        }
        // After both ends have closed, a reset only says that nobody reads any more.
        let closed = directions.iter().all(|direction| direction.seen & saw::FIN != 0);
        let reset = |direction: &Direction| direction.seen & saw::RST != 0;
        let was_reset = directions.iter().position(reset).filter(|_| !closed);
        let over = translation::is_over(&directions) || self.place.is_over();
        if !over || !std::mem::replace(&mut self.lingers, true) {
            return Look::Goes { bytes, again: LOOK_MS };
        }
        let parties = [Party::Peer, Party::Upstream];
        let last = directions[0].last.max(directions[1].last);
        let ago = monotonic_ns().saturating_sub(last) / 1_000_000;
        match was_reset {
            Some(by) => {
                Look::Ended { bytes, first: parties[by], error: Some(libc::ECONNRESET), ago }
            }
            None => {
                let first = usize::from(directions[1].seen & saw::FIRST_FIN != 0);
                Look::Ended { bytes, first: parties[first], error: None, ago }
            }
        }
    }
}
