//! Connect, one exchange, close; again and again.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::histogram::Histogram;
use crate::options::Common;
use crate::proxy::{is_localhost, Transport};
use crate::run::{Counts, Course, Phase, LOOK};
use crate::sys::{self, Epoll, Interest};
use crate::tcp::{measures, Exchange, Step};

/// An attempt that takes longer has failed.
const LIMIT: u64 = 2_000_000_000;
/// How often old attempts are looked for.
const REVIEW: u64 = 100_000_000;
/// The load comes from this many addresses of its own: one alone runs out of ports.
const SOURCES: u64 = 64;

pub struct Rate {
    common: Common,
    epoll: Epoll,
    slots: Vec<Slot>,
    idle: Vec<usize>,
    /// Nanoseconds from one start to the next; 0 is as fast as it goes.
    interval: u64,
    next_number: u64,
    times: Histogram,
}

#[derive(Default)]
struct Slot {
    attempt: Option<Attempt>,
    exchange: Exchange,
}

struct Attempt {
    socket: OwnedFd,
    started: u64,
    /// Its socket is watched for room, too.
    sending: bool,
}

impl Rate {
    /// A load with up to `at_once` connections under way.
    pub fn new(common: &Common, at_once: usize) -> io::Result<Rate> {
        Ok(Rate {
            common: *common,
            epoll: Epoll::new()?,
            slots: (0..at_once).map(|_| Slot::default()).collect(),
            idle: (0..at_once).collect(),
            interval: 0,
            next_number: common.first_client,
            times: Histogram::new(),
        })
    }

    /// The same at a steady number of starts a second, as far as connections come to their end.
    pub fn paced(mut self, per_second: usize) -> Rate {
        self.interval = 1_000_000_000 / per_second as u64;
        self
    }

    /// Runs until the course drains and nothing is under way. Returns the times from `connect` to
    /// the reply's last byte, of the attempts that ended while it measured.
    pub fn run(mut self, course: &Course, counts: &Counts) -> io::Result<Histogram> {
        let mut review = sys::now() + REVIEW;
        let mut due = sys::now();
        loop {
            let phase = course.phase();
            let none_left = self.idle.len() == self.slots.len();
            if phase == Phase::End || phase == Phase::Drain && none_left {
                counts.failed.add((self.slots.len() - self.idle.len()) as u64);
                return Ok(self.times);
            }
            let now = sys::now();
            if phase < Phase::Drain {
                // No more than there are slots: starts that fail at once must not continue forever.
                for _ in 0..self.slots.len() {
                    let slot = if due <= now { self.idle.pop() } else { None };
                    let Some(slot) = slot else { break };
                    due += self.interval;
                    self.start(slot, course, counts);
                }
                if self.idle.is_empty() {
                    // What could not be started in its time is not made up for.
                    due = due.max(now);
                }
            }
            let pause = LOOK.as_nanos() as u64;
            let until_due = due.saturating_sub(now);
            let startable = phase < Phase::Drain && !self.idle.is_empty();
            let count = self.epoll.wait(if startable { until_due.min(pause) } else { pause })?;
            for event in 0..count {
                let slot = self.epoll.ready(event).token as usize;
                self.advance(slot, course, counts);
            }
            if now >= review {
                review = now + REVIEW;
                self.drop_old(now, counts);
            }
        }
    }

    fn start(&mut self, slot: usize, course: &Course, counts: &Counts) {
        let number = self.next_number;
        self.next_number += 1;
        let common = &self.common;
        self.slots[slot].exchange.start(number, |bytes| {
            common.append_header(Transport::Stream, number, bytes);
        });
        let started = sys::now();
        match self.connect(number) {
            Ok(socket) => {
                self.slots[slot].attempt = Some(Attempt { socket, started, sending: false });
                self.first_send(slot, course, counts);
            }
            Err(_) => self.fail(slot, counts),
        }
    }

    fn connect(&self, number: u64) -> io::Result<OwnedFd> {
        let target = self.common.target_of(number);
        let socket = sys::tcp_socket(self.common.family())?;
        if is_localhost(target.ip()) {
            let source = self.common.family().source((number % SOURCES) as u8);
            // The port is chosen at connect, from all that are free towards this target.
            sys::set_option(&socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            sys::bind_freely(&socket, SocketAddr::new(source, 0))?;
        }
        sys::connect(&socket, target)?;
        Ok(socket)
    }

    /// On loopback the handshake is over when `connect` returns: try at once, watch afterwards.
    fn first_send(&mut self, slot: usize, course: &Course, counts: &Counts) {
        let Slot { attempt: Some(attempt), exchange } = &mut self.slots[slot] else { return };
        let interest = match exchange.advance(&attempt.socket) {
            Ok(Step::Sending) => Interest::ReadWrite,
            Ok(Step::Receiving) => Interest::Read,
            Ok(Step::Done) => return self.succeed(slot, course, counts),
            Err(_) => return self.fail(slot, counts),
        };
        attempt.sending = interest == Interest::ReadWrite;
        if self.epoll.add(attempt.socket.as_raw_fd(), interest, slot as u64).is_err() {
            self.fail(slot, counts);
        }
    }

    fn advance(&mut self, slot: usize, course: &Course, counts: &Counts) {
        // An event may outlive its attempt within one wait's worth of events.
        let Slot { attempt: Some(attempt), exchange } = &mut self.slots[slot] else { return };
        match exchange.advance(&attempt.socket) {
            Ok(Step::Sending) => {}
            Ok(Step::Receiving) => {
                if attempt.sending {
                    attempt.sending = false;
                    let fd = attempt.socket.as_raw_fd();
                    if self.epoll.modify(fd, Interest::Read, slot as u64).is_err() {
                        self.fail(slot, counts);
                    }
                }
            }
            Ok(Step::Done) => self.succeed(slot, course, counts),
            Err(_) => self.fail(slot, counts),
        }
    }

    fn succeed(&mut self, slot: usize, course: &Course, counts: &Counts) {
        if let Some(attempt) = self.slots[slot].attempt.take() {
            counts.received.add(1);
            if measures(course) {
                self.times.record(sys::now() - attempt.started);
            }
            self.idle.push(slot);
        }
    }

    fn fail(&mut self, slot: usize, counts: &Counts) {
        counts.failed.add(1);
        self.slots[slot].attempt = None;
        self.idle.push(slot);
    }

    fn drop_old(&mut self, now: u64, counts: &Counts) {
        for slot in 0..self.slots.len() {
            let attempt = self.slots[slot].attempt.as_ref();
            if attempt.is_some_and(|attempt| now.saturating_sub(attempt.started) > LIMIT) {
                self.fail(slot, counts);
            }
        }
    }
}
