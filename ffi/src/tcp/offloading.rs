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

use super::keepalive::Keepalive;
use super::relay::{Party, Relay, Side};
use crate::net::socket::{self, Position};
use crate::offload::record::{saw, Direction};
use crate::offload::translation::{self, Pair};
use crate::offload::{monotonic_ns, Offload, Place, Ticket};

/// How long a connection lives, or how many bytes it moves, before it is worth it.
/// In tests at once: they are over sooner.
const AGE_MS: u64 = if cfg!(feature = "fault-injection") { 0 } else { 1000 };
const BYTES: u64 = 1 << 20;
/// More than this on its way to an end is waited for.
const MOST_UNACKNOWLEDGED: u32 = 64 << 10;
/// An end that pauses right now may have to wait for a repetition of that much.
const MOST_EXCESS: u32 = 4 << 10;
/// So many attempts are made with windows that are kept small; a connection that cannot be handed over needs large ones.
const NARROW_ATTEMPTS: u32 = 64;
/// A sender waits before it uses a window of less than a segment, which has 64 KiB over loopback.
const LEAST_WINDOW: u32 = 256 << 10;
/// Those who send in the two directions.
const PARTIES: [Party; 2] = [Party::Peer, Party::Upstream];
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
    Watched(Box<WatchedPlace>),
    /// Its packets are translated, and the sockets have something left to do.
    Draining(Box<Draining>),
    /// The sockets are gone.
    Offloaded(Box<Offloaded>),
}

pub struct WatchedPlace {
    place: Place,
    /// The age since which it is watched, and at which it is worth another attempt, in milliseconds.
    since: u64,
    next: u64,
    /// The age at which it is worth noting what has arrived, while the program has not seen both directions.
    note_at: u64,
    attempts: u32,
}

pub struct Draining {
    place: Place,
    ticket: Ticket,
    /// How often it was looked at.
    looks: u32,
    silence: Silence,
}

pub struct Offloaded {
    place: Place,
    /// Up to where acknowledged bytes were counted: up, down.
    counted: [u64; 2],
    /// It was over at the last look: the ends may still repeat themselves.
    lingers: bool,
    silence: Silence,
}

/// Which of the two hosts, the peer's and the upstream's, were asked whether they are there: the sockets cannot tell
/// any more, because what answers them may go to the other end.
struct Silence {
    /// When the connection was handed over, in nanoseconds (CLOCK_MONOTONIC).
    since: u64,
    /// How often, and when last.
    asked: [(u32, u64); 2],
}

/// How the hosts of a connection are asked whether they are there.
#[derive(Clone, Copy)]
pub struct Hosts {
    pub keepalive: Keepalive,
    /// The mark of packets to the upstream.
    pub mark: u32,
}

/// What a look at an offloaded connection brings.
pub enum Look {
    /// Bytes that were delivered since the last one, and when to look again, in milliseconds.
    Goes { bytes: [u64; 2], again: u64 },
    /// The last of them; who ended it first, with which error, and how many milliseconds ago.
    Ended { bytes: [u64; 2], first: Party, error: Option<i32>, ago: u64 },
}

impl Offloading {
    /// Whether what its sockets say of the hosts means nothing any more.
    pub fn is_handed_over(&self) -> bool {
        matches!(self, Offloading::Draining(_) | Offloading::Offloaded(_))
    }

    /// Whether events of its sockets mean nothing any more.
    pub fn is_offloaded(&self) -> bool {
        matches!(self, Offloading::Offloaded(_))
    }

    /// Whether the kernel goes on with it when this program ends.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Offloading::Offloaded(offloaded) if offloaded.place.is_lasting())
    }

    /// Leaves a connection that is `is_lasting` to the kernel.
    pub fn stay(self) {
        if let Offloading::Offloaded(offloaded) = self {
            offloaded.place.leave();
        }
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
                    *self = place.map_or(Offloading::Refused, |place| {
                        Offloading::Watched(Box::new(WatchedPlace {
                            place,
                            since: age,
                            next: age,
                            note_at: age + 1,
                            attempts: 0,
                        }))
                    });
                }
                None
            }
            Offloading::Watched(watched) => {
                if age < watched.next {
                    return None;
                }
                if !watched.place.is_seen() {
                    // What passed before the program knew the connection is missing from its counts: it would
                    // believe no acknowledgment of that, nor what carries one.
                    if age >= watched.note_at {
                        watched.place.note_arrived(fds);
                        watched.note_at = watched.later(age);
                    }
                    return None;
                }
                let calm = || fds.iter().all(|fd| is_calm(*fd));
                if !relay.is_even(peer, upstream) || !calm() {
                    return None;
                }
                if !watched.fits(fds) {
                    watched.next = watched.later(age);
                    return None;
                }
                let Offloading::Watched(watched) = std::mem::take(self) else { return None };
                let place = watched.place;
                fds.iter().for_each(|fd| socket::acknowledge(*fd));
                set_boundaries(&place, fds);
                let Ok(ticket) = place.offload(fds) else {
                    *self = Offloading::Refused;
                    return None;
                };
                for fd in fds {
                    socket::keep_silent(fd);
                    // Of a program that crashes, no socket stays that takes its ends' packets and answers none.
                    socket::reset_on_close(fd);
                }
                let silence = Silence { since: monotonic_ns(), asked: [(0, 0); 2] };
                *self =
                    Offloading::Draining(Box::new(Draining { place, ticket, looks: 0, silence }));
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
    pub fn look(&mut self, relay: &Relay, [peer, upstream]: [&mut Side; 2], hosts: Hosts) -> Look {
        let again = |again| Look::Goes { bytes: [0, 0], again };
        let fds = [&*peer, &*upstream].map(|side| side.fd.as_raw_fd());
        match self {
            Offloading::Draining(draining) => {
                set_boundaries(&draining.place, fds);
                if !draining.is_done(relay, fds) {
                    let directions = [0, 1].map(|direction| draining.place.direction(direction));
                    // It has reached the other end; the sockets hear nothing of it.
                    if let Some(by) = directions.iter().position(is_reset) {
                        return Look::Ended {
                            bytes: [0, 0],
                            first: PARTIES[by],
                            error: Some(libc::ECONNRESET),
                            ago: 0,
                        };
                    }
                    let ask = |at: usize| socket::ask_by(fds[at]);
                    if let Some(dead) = draining.silence.dead(&directions, hosts.keepalive, ask) {
                        return lost([0, 0], dead);
                    }
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
                let Draining { place, silence, .. } = *draining;
                let counted = [place.note_acknowledged(0, up), place.note_acknowledged(1, down)];
                let ended = [relay.up.has_ended(), relay.down.has_ended()];
                for (direction, number) in [up, down].into_iter().enumerate() {
                    if ended[direction] {
                        place.note_end(direction, number);
                    }
                }
                place.end_draining();
                *self = Offloading::Offloaded(Box::new(Offloaded {
                    place,
                    counted,
                    lingers: false,
                    silence,
                }));
                again(LOOK_MS)
            }
            Offloading::Offloaded(offloaded) => offloaded.look(hosts),
            Offloading::Young | Offloading::Refused | Offloading::Watched(_) => again(LOOK_MS),
        }
    }

    /// Makes the sockets of a connection that is cut short ready to be closed without a word, where the two ends
    /// are one connection by now: what the sockets know of it is old. Whether that is so; then `reset` has to
    /// follow their end. `by_end`: one of the ends has reset the other.
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
        let ends = place.ends(mark);
        drop(place);
        for end in ends {
            // Whoever is not reached here is reset by the kernel when it speaks again.
            let _ = socket::reset(end);
        }
    }
}

/// Whether little enough of what a socket has written is on its way, and nothing waits to be sent.
fn is_calm(fd: RawFd) -> bool {
    let of = |read: fn(RawFd) -> io::Result<u32>| read(fd).unwrap_or(u32::MAX);
    of(socket::unacknowledged) <= MOST_UNACKNOWLEDGED && of(socket::unsent) == 0
}

/// Says which acknowledgements are the sockets': those of what they have written, and are still to write. The last one
/// of what is written would otherwise go to the other end: a socket whose buffer is full waits for it forever.
fn set_boundaries(place: &Place, fds: [RawFd; 2]) {
    for (direction, fd) in fds.into_iter().enumerate() {
        if let Ok(from) = socket::position(fd) {
            let add_sequence = place.direction(direction).add_sequence;
            place.set_boundary(direction, from.receive_next.wrapping_add(add_sequence));
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
    fn look(&mut self, hosts: Hosts) -> Look {
        let directions = [0, 1].map(|direction| self.place.direction(direction));
        let mut bytes = [0, 0];
        for at in [0, 1] {
            let end = translation::delivered(&directions[at], self.counted[at]);
            bytes[at] = end;
            self.counted[at] += end;
        }
        // After both ends have closed, a reset only says that nobody reads any more.
        let closed = directions.iter().all(|direction| direction.seen & saw::FIN != 0);
        let was_reset = directions.iter().position(is_reset).filter(|_| !closed);
        let over = translation::is_over(&directions) || self.place.is_over();
        if !over {
            self.lingers = false;
            let ask = |at: usize| socket::ask(self.place.ends(hosts.mark)[at]);
            return match self.silence.dead(&directions, hosts.keepalive, ask) {
                Some(dead) => lost(bytes, dead),
                None => Look::Goes { bytes, again: LOOK_MS },
            };
        }
        if !std::mem::replace(&mut self.lingers, true) {
            return Look::Goes { bytes, again: LOOK_MS };
        }
        let last = directions[0].last.max(directions[1].last);
        let ago = monotonic_ns().saturating_sub(last) / 1_000_000;
        match was_reset {
            Some(by) => {
                Look::Ended { bytes, first: PARTIES[by], error: Some(libc::ECONNRESET), ago }
            }
            None => {
                let first = usize::from(directions[1].seen & saw::FIRST_FIN != 0);
                Look::Ended { bytes, first: PARTIES[first], error: None, ago }
            }
        }
    }
}

impl WatchedPlace {
    /// The age at which to try again. An attempt takes twenty system calls: the longer it lasts, the fewer there are.
    fn later(&self, age: u64) -> u64 {
        age + ((age - self.since) / 16).max(1)
    }

    /// Whether neither end may send more than the other's window takes. Were it more, the receiver would drop it, and
    /// the sender would wait for longer and longer before it repeats it, even where the receiver only pauses.
    fn fits(&mut self, fds: [RawFd; 2]) -> bool {
        self.attempts += 1;
        if self.excess(fds).is_none_or(|excess| excess > MOST_EXCESS) {
            self.narrow(fds);
            return false;
        }
        // What was offered cannot be taken back. From here on no more is offered, or the sender could go on to it.
        fds.iter().for_each(|fd| socket::limit_window(*fd, 1));
        let fits = self.excess(fds).is_some_and(|excess| excess <= MOST_EXCESS);
        if !fits {
            self.narrow(fds);
        }
        fits
    }

    /// By how much the larger of the two directions goes beyond its receiver's window; `None` if the sockets do not say.
    fn excess(&self, [peer, upstream]: [RawFd; 2]) -> Option<u32> {
        let (at, there) = (socket::position(peer).ok()?, socket::position(upstream).ok()?);
        let excess = |direction: usize, from: &Position, to: &Position| {
            let add_sequence = self.place.direction(direction).add_sequence;
            translation::excess(add_sequence, from, to)
        };
        Some(excess(0, &at, &there).max(excess(1, &there, &at)))
    }

    /// Offers each sender half of its receiver's window for a while, so that it fits even if that becomes smaller.
    fn narrow(&self, fds: [RawFd; 2]) {
        for (from, to) in [(fds[0], fds[1]), (fds[1], fds[0])] {
            let half = match socket::position(to) {
                Ok(to) if self.attempts < NARROW_ATTEMPTS => {
                    to.write_end.wrapping_sub(to.unacknowledged) / 2
                }
                _ => u32::MAX,
            };
            socket::limit_window(from, half.max(LEAST_WINDOW));
        }
    }
}

impl Silence {
    /// Asks the hosts that have been silent for long; the one that is dead, if one is.
    fn dead(
        &mut self,
        directions: &[Direction; 2],
        keepalive: Keepalive,
        ask: impl Fn(usize) -> io::Result<()>,
    ) -> Option<usize> {
        let now = monotonic_ns();
        for (host, direction) in directions.iter().enumerate() {
            let (times, at) = &mut self.asked[host];
            if direction.heard > *at {
                *times = 0;
            }
            let silent_ms = now.saturating_sub(direction.heard.max(self.since)) / 1_000_000;
            if keepalive.is_silent_for_good(silent_ms, *times) {
                return Some(host);
            }
            if *times < keepalive.questions(silent_ms) {
                (*times, *at) = (*times + 1, now);
                // One that cannot be asked is silent, too.
                let _ = ask(host);
            }
        }
        None
    }
}

/// Whether the sender of a direction has reset the connection.
fn is_reset(direction: &Direction) -> bool {
    direction.seen & saw::RST != 0
}

/// The look at a connection one of whose hosts is dead.
fn lost(bytes: [u64; 2], host: usize) -> Look {
    Look::Ended { bytes, first: PARTIES[host], error: Some(libc::ETIMEDOUT), ago: 0 }
}
