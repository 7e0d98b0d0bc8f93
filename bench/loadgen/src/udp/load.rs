//! Datagrams of many clients through a few peers, paced or as fast as they go, and their replies.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::histogram::Histogram;
use crate::options::Common;
use crate::proxy::Transport;
use crate::run::{Counts, Course, Phase, LOOK};
use crate::sys::{self, Batch, Epoll, Interest, MAX_SEGMENTS, MAX_SEGMENT_BYTES};
use crate::tcp::measures;
use crate::udp::payload::Payload;
use crate::udp::BATCH;

/// The shortest pause of a paced load: what is due by then goes out together.
const PACE: u64 = 100_000;
/// A paced load that fell behind further than this does not make up for it.
const BACKLOG: u64 = 10_000_000;
/// While draining, this much silence is the end.
const SILENCE: u64 = 200_000_000;

/// What the load looks like.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Replies are awaited.
    pub echo: bool,
    /// Different client addresses, in turn.
    pub clients: usize,
    /// Sockets that all of it is sent from; client `c` uses the peer `c % peers`.
    pub peers: usize,
    /// Bytes of payload.
    pub size: usize,
    /// Datagrams a second; 0 is as fast as it goes.
    pub rate: usize,
    /// Send with `UDP_SEGMENT`.
    pub segments: bool,
}

pub struct Load {
    plan: Plan,
    epoll: Epoll,
    peers: Vec<Peer>,
    /// Before each payload, by client.
    headers: Vec<Vec<u8>>,
    /// The next sequence number, by client.
    sequences: Vec<u64>,
    run: u32,
    outgoing: Batch,
    incoming: Batch,
    times: Histogram,
}

struct Peer {
    socket: OwnedFd,
    /// The client whose turn it is.
    client: usize,
}

impl Load {
    pub fn new(common: &Common, plan: Plan) -> io::Result<Load> {
        let epoll = Epoll::new()?;
        let mut peers = Vec::new();
        for index in 0..plan.peers.min(plan.clients) {
            let socket = sys::udp_socket(common.family())?;
            sys::enlarge_buffers(&socket)?;
            sys::connect(&socket, common.target)?;
            epoll.add(socket.as_raw_fd(), Interest::Read, index as u64)?;
            peers.push(Peer { socket, client: index });
        }
        let headers: Vec<Vec<u8>> = (0..plan.clients as u64)
            .map(|number| {
                let mut header = Vec::new();
                let client = common.first_client + number;
                common.append_header(Transport::Datagram, client, &mut header);
                header
            })
            .collect();
        let length = headers[0].len() + plan.size;
        if plan.segments && headers.iter().any(|header| header.len() + plan.size != length) {
            return Err(io::Error::other("Segments must be of one length, so use header v2"));
        }
        let mut count = BATCH;
        if plan.segments {
            count = count.min(MAX_SEGMENTS).min(MAX_SEGMENT_BYTES / length);
        }
        Ok(Load {
            sequences: vec![0; plan.clients],
            run: sys::now() as u32,
            outgoing: Batch::new(count, length, false),
            incoming: Batch::new(BATCH, plan.size, false),
            times: Histogram::new(),
            plan,
            epoll,
            peers,
            headers,
        })
    }

    /// Sends until the course drains, then waits for replies until there was silence. Returns the
    /// times from sending to the reply, of those that came while it measured.
    pub fn run(mut self, course: &Course, counts: &Counts) -> io::Result<Histogram> {
        let mut turn = 0;
        let mut due = sys::now();
        while course.phase() < Phase::Drain {
            let peer = turn % self.peers.len();
            turn += 1;
            let now = sys::now();
            let full = self.outgoing.capacity();
            if self.plan.rate == 0 {
                self.send(peer, full, now, counts);
                if self.plan.echo {
                    self.take_all(peer, course, counts)?;
                }
                continue;
            }
            due = due.max(now.saturating_sub(BACKLOG));
            let interval = 1e9 / self.plan.rate as f64;
            let wanted = (now.saturating_sub(due) as f64 / interval) as usize;
            if wanted > 0 {
                let sent = wanted.min(full);
                self.send(peer, sent, now, counts);
                due += (sent as f64 * interval) as u64;
            }
            let pause = if wanted > full { 0 } else { PACE.max(interval as u64) };
            self.wait(pause, course, counts)?;
        }
        self.drain(course, counts)?;
        for peer in &self.peers {
            counts.dropped.add(sys::dropped(&peer.socket)?);
        }
        Ok(self.times)
    }

    fn send(&mut self, peer: usize, count: usize, now: u64, counts: &Counts) {
        let step = self.peers.len();
        let Peer { socket, client } = &mut self.peers[peer];
        for index in 0..count {
            let slot = self.outgoing.slot(index);
            let header = &self.headers[*client];
            slot[..header.len()].copy_from_slice(header);
            let payload = Payload {
                run: self.run,
                client: *client as u32,
                sequence: self.sequences[*client],
                sent_at: now,
            };
            payload.write(&mut slot[header.len()..]);
            self.sequences[*client] += 1;
            *client += step;
            if *client >= self.plan.clients {
                *client = peer;
            }
        }
        let failed = if self.plan.segments {
            match self.outgoing.send_segments(socket, count) {
                Ok(()) => 0,
                Err(_) => count,
            }
        } else {
            self.outgoing.send(socket, count)
        };
        counts.sent.add((count - failed) as u64);
        counts.failed.add(failed as u64);
    }

    /// Takes replies as they come, for this many nanoseconds.
    fn wait(&mut self, pause: u64, course: &Course, counts: &Counts) -> io::Result<()> {
        let end = sys::now() + pause;
        loop {
            let left = end.saturating_sub(sys::now());
            for event in 0..self.epoll.wait(left)? {
                let peer = self.epoll.ready(event).token as usize;
                self.take_all(peer, course, counts)?;
            }
            if sys::now() >= end {
                return Ok(());
            }
        }
    }

    fn take_all(&mut self, peer: usize, course: &Course, counts: &Counts) -> io::Result<()> {
        loop {
            let count = match self.incoming.receive(&self.peers[peer].socket, false) {
                Ok(count) => count,
                Err(error) if sys::is_busy(&error) => return Ok(()),
                // Nobody listens: an ICMP refusal of an earlier datagram.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    counts.failed.add(1);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let now = sys::now();
            let measured = measures(course);
            for index in 0..count {
                let payload = Payload::read(self.incoming.datagram(index));
                let Some(payload) = payload.filter(|payload| payload.run == self.run) else {
                    counts.wrong_client.add(1);
                    continue;
                };
                if payload.client as usize % self.peers.len() != peer {
                    counts.wrong_client.add(1);
                }
                if measured {
                    self.times.record(now.saturating_sub(payload.sent_at));
                }
            }
            counts.received.add(count as u64);
            if count < self.incoming.capacity() {
                return Ok(());
            }
        }
    }

    fn drain(&mut self, course: &Course, counts: &Counts) -> io::Result<()> {
        if !self.plan.echo {
            return Ok(());
        }
        let mut last = sys::now();
        while course.phase() < Phase::End
            && counts.received.get() < counts.sent.get()
            && sys::now().saturating_sub(last) < SILENCE
        {
            let before = counts.received.get();
            self.wait(LOOK.as_nanos() as u64, course, counts)?;
            if counts.received.get() > before {
                last = sys::now();
            }
        }
        Ok(())
    }
}
