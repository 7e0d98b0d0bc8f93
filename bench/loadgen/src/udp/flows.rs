//! New flows: each datagram comes from a client and a peer that have not been seen, and awaits its
//! reply.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use pico_args::Arguments;

use crate::histogram::Histogram;
use crate::options::{bounded, Common, Result};
use crate::proxy::Transport;
use crate::report::Report;
use crate::run::{conduct, Count, Counts, Course, Phase, Side, LOOK};
use crate::sys::{self, Epoll, Interest};
use crate::tcp::{end, finish, join};
use crate::udp::payload::Payload;
use crate::udp::{start_server, Service, MOST_CLIENTS};

/// Bytes of payload.
const SIZE: usize = 64;
/// A flow without a reply by then has failed.
const LIMIT: u64 = 500_000_000;
/// Peers are spread over this many addresses of the load's own, each with ports from here on.
const SOURCES: u64 = 64;
const FIRST_PORT: u64 = 10_000;

/// `udp-flows`.
pub fn flows(mut arguments: Arguments) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    let at_once = bounded(&mut arguments, "--at-once", 32, 1..=1024)?;
    let count = bounded(&mut arguments, "--count", 8000, 1..=MOST_CLIENTS)?;
    finish(arguments)?;

    let course = Arc::new(Course::default());
    let server =
        start_server(&course, &common, Service { echo: true, naps: false, clients: count })?;
    let load = Side::start(&course, move |course, counts| {
        Flows::new(common, at_once, count as u64)?.run(course, counts)
    });
    let counts = Arc::clone(&load.counts);
    conduct(&course, common.timing, || load.is_finished(), || {});
    let (times, seconds) = join(load)?;
    let served = Arc::clone(&server.counts);
    join(server)?;

    let mut report = Report::default();
    report.number("per_second", times.count() as f64 / seconds);
    report.percentiles(&times);
    report.count("operations", counts.received.get());
    report.count("failed", counts.failed.get() + served.failed.get());
    report.count("wrong_client", counts.wrong_client.get() + served.wrong_client.get());
    report.count("other_port", served.other_port.get());
    end(report, seconds);
    Ok(())
}

struct Flows {
    common: Common,
    epoll: Epoll,
    slots: Vec<Option<Flow>>,
    idle: Vec<usize>,
    /// Flows still to be started are `next..count`.
    next: u64,
    count: u64,
    run: u32,
    times: Histogram,
}

struct Flow {
    socket: OwnedFd,
    number: u64,
    started: u64,
}

impl Flows {
    fn new(common: Common, at_once: usize, count: u64) -> io::Result<Flows> {
        Ok(Flows {
            common,
            epoll: Epoll::new()?,
            slots: (0..at_once).map(|_| None).collect(),
            idle: (0..at_once).collect(),
            next: 0,
            count,
            run: sys::now() as u32,
            times: Histogram::new(),
        })
    }

    /// Runs until every flow has its reply or has failed. Returns the times of those that have it,
    /// and how many seconds all took together.
    fn run(mut self, course: &Course, counts: &Counts) -> io::Result<(Histogram, f64)> {
        let started = sys::now();
        loop {
            let more = self.next < self.count && course.phase() < Phase::Drain;
            if !more && self.idle.len() == self.slots.len() || course.phase() == Phase::End {
                counts.failed.add((self.slots.len() - self.idle.len()) as u64);
                return Ok((self.times, (sys::now() - started) as f64 / 1e9));
            }
            while more && self.next < self.count {
                let Some(slot) = self.idle.pop() else { break };
                match self.start() {
                    Ok(flow) => {
                        self.epoll.add(flow.socket.as_raw_fd(), Interest::Read, slot as u64)?;
                        self.slots[slot] = Some(flow);
                    }
                    Err(_) => self.release(slot, &counts.failed),
                }
            }
            let ready = self.epoll.wait(LOOK.as_nanos() as u64)?;
            for event in 0..ready {
                let slot = self.epoll.ready(event).token as usize;
                self.take(slot, counts);
            }
            if ready == 0 {
                self.drop_old(counts);
            }
        }
    }

    fn start(&mut self) -> io::Result<Flow> {
        let number = self.next;
        self.next += 1;
        let socket = sys::udp_socket(self.common.family())?;
        let source = self.common.family().source((number % SOURCES) as u8);
        let port = (FIRST_PORT + number / SOURCES) as u16;
        sys::bind_freely(&socket, SocketAddr::new(source, port))?;
        let client = self.common.first_client + number;
        sys::connect(&socket, self.common.target_of(client))?;
        let mut bytes = Vec::with_capacity(128);
        self.common.append_header(Transport::Datagram, client, &mut bytes);
        let start = bytes.len();
        bytes.resize(start + SIZE, 0);
        let started = sys::now();
        let payload =
            Payload { run: self.run, client: number as u32, sequence: 0, sent_at: started };
        payload.write(&mut bytes[start..]);
        sys::send(&socket, &bytes)?;
        Ok(Flow { socket, number, started })
    }

    fn take(&mut self, slot: usize, counts: &Counts) {
        let Some(flow) = &self.slots[slot] else { return };
        let mut reply = [0; SIZE];
        let Ok(length) = sys::receive(&flow.socket, &mut reply) else {
            return self.release(slot, &counts.failed);
        };
        let named = Payload::read(&reply[..length]).map(|payload| u64::from(payload.client));
        if named != Some(flow.number) {
            counts.wrong_client.add(1);
        }
        self.times.record(sys::now() - flow.started);
        self.release(slot, &counts.received);
    }

    fn drop_old(&mut self, counts: &Counts) {
        let now = sys::now();
        for slot in 0..self.slots.len() {
            let flow = self.slots[slot].as_ref();
            if flow.is_some_and(|flow| now.saturating_sub(flow.started) > LIMIT) {
                self.release(slot, &counts.failed);
            }
        }
    }

    fn release(&mut self, slot: usize, outcome: &Count) {
        outcome.add(1);
        self.slots[slot] = None;
        self.idle.push(slot);
    }
}
