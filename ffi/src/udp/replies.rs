//! Replies of many flows to the peers: gathered, then sent from the listening socket.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use super::cmsg::{self, Control, Encoder};
use super::edge::{Sent, Volume};
use super::flow::ReplyRoute;
use super::gso::{self, Run};
use super::recv::{buffers, iovec_of, no_messages, receive_many, ROOM, STRIDE};
use super::sampling::Sampling;
use crate::header::frame::SPP_LENGTH;
use crate::net::socket::check;

/// Replies gathered at most.
pub const BATCH: usize = 64;
/// For this many of a flow's replies the kernel reports the DSCP; the others count as the last of them.
const SAMPLE: usize = 2;
/// Peers that are remembered as behind a device that cannot segment.
const MOST_UNSEGMENTED: usize = 64;

/// Replies that wait to be sent.
pub struct Replies {
    buffer: Box<[u8]>,
    lengths: [usize; BATCH],
    used: usize,
    /// Neighbours that leave as one message.
    runs: Vec<ReplyRun>,
    /// What `receive_messages` points to; never read from here.
    #[allow(dead_code)]
    receive_iovecs: Box<[libc::iovec]>,
    receive_messages: Box<[libc::mmsghdr]>,
    receive_controls: Box<[Control]>,
    sampling: Sampling,
    send_iovecs: Vec<libc::iovec>,
    send_messages: Box<[libc::mmsghdr]>,
    controls: Box<[Control]>,
    /// Peers that segmented sends do not reach.
    unsegmented: Vec<IpAddr>,
}

/// Datagrams for one peer: `run.count` of them from `first` on.
#[derive(Clone, Copy)]
struct ReplyRun {
    first: usize,
    run: Run,
    dscp: u8,
    route: ReplyRoute,
}

impl Replies {
    pub fn new() -> Replies {
        let mut buffer = buffers(BATCH);
        let mut receive_iovecs: Box<[libc::iovec]> =
            buffer.chunks_exact_mut(STRIDE).map(|one| iovec_of(&mut one[..ROOM])).collect();
        let mut receive_messages = no_messages(BATCH);
        let mut receive_controls: Box<[Control]> = vec![Control::EMPTY; BATCH].into();
        let places = receive_iovecs.iter_mut().zip(&mut receive_controls);
        for (message, (iovec, control)) in receive_messages.iter_mut().zip(places) {
            message.msg_hdr.msg_iov = iovec;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        }
        Replies {
            buffer,
            lengths: [0; BATCH],
            used: 0,
            runs: Vec::with_capacity(BATCH),
            receive_iovecs,
            receive_messages,
            receive_controls,
            sampling: Sampling::of_first(SAMPLE),
            send_iovecs: Vec::with_capacity(2 * BATCH),
            send_messages: no_messages(BATCH),
            controls: vec![Control::EMPTY; BATCH].into(),
            unsegmented: Vec::new(),
        }
    }

    /// Whether there is no more room: `flush` before the next `receive`.
    pub fn is_full(&self) -> bool {
        self.used == BATCH
    }

    /// Receives what the upstream sent to a flow, as far as there is room.
    ///
    /// # Errors
    /// Those of recvmmsg(2).
    pub fn receive(&mut self, socket: RawFd, route: &ReplyRoute) -> io::Result<Volume> {
        for (place, message) in self.receive_messages[self.used..].iter_mut().enumerate() {
            let room = if self.sampling.asks(place) { cmsg::ROOM } else { 0 };
            message.msg_hdr.msg_controllen = room as _;
        }
        let messages = &mut self.receive_messages[self.used..];
        // SAFETY: every message points to its own buffer and control space, which live as long as
        // `self` and do not move with it.
        let count = unsafe { receive_many(socket, messages) }?;
        let segments = self.segments_reach(route);
        // A balancer has few ports for many clients: replies of several flows take the same route.
        let goes_on = self.runs.last().is_some_and(|run| run.route == *route);
        let (mut bytes, mut dscp, mut any_dscp) = (0, 0, false);
        for slot in self.used..self.used + count {
            let length = self.receive_messages[slot].msg_len as usize;
            self.lengths[slot] = length;
            bytes += length as u64;
            if self.sampling.asks(slot - self.used) {
                dscp = self.dscp_of(slot);
                any_dscp |= dscp != 0;
            }
            let joins = segments && (goes_on || slot > self.used);
            let wrapped = length + route.header.map_or(0, |header| header.len());
            match self.runs.last_mut() {
                Some(last) if joins && last.dscp == dscp && last.run.takes(wrapped) => {
                    last.run.push(wrapped);
                }
                _ => {
                    let run = Run::of(wrapped);
                    self.runs.push(ReplyRun { first: slot, run, dscp, route: *route });
                }
            }
        }
        self.sampling.learn(any_dscp);
        self.used += count;
        Ok(Volume { datagrams: count as u64, bytes })
    }

    /// Drops everything; how many there were.
    pub fn discard(&mut self) -> u64 {
        self.runs.clear();
        std::mem::take(&mut self.used) as u64
    }

    /// Sends everything from a socket.
    pub fn flush(&mut self, socket: RawFd) -> Sent {
        let mut result = Sent::default();
        let mut from = 0;
        while from < self.runs.len() {
            match self.send(socket, from) {
                Ok(sent) => {
                    for run in &self.runs[from..from + sent] {
                        result.sent += run.run.count as u64;
                        let lengths = &self.lengths[run.first..run.first + run.run.count];
                        result.bytes += lengths.iter().sum::<usize>() as u64;
                    }
                    from += sent;
                }
                Err(error) if self.runs[from].run.count > 1 && gso::is_refused(&error) => {
                    if gso::is_unsupported(&error) {
                        self.remember_unsegmented(from);
                    }
                    self.split(from);
                }
                // This one cannot be sent; the next may be for a peer that can be reached.
                Err(_) => {
                    result.lost += self.runs[from].run.count as u64;
                    from += 1;
                }
            }
        }
        self.runs.clear();
        self.used = 0;
        result
    }

    fn dscp_of(&self, slot: usize) -> u8 {
        let header = &self.receive_messages[slot].msg_hdr;
        cmsg::arrival(self.receive_controls[slot].received(header)).dscp
    }

    fn segments_reach(&self, route: &ReplyRoute) -> bool {
        self.unsegmented.is_empty()
            || route
                .path
                .peer
                .socket_addr()
                .is_none_or(|peer| !self.unsegmented.contains(&peer.ip()))
    }

    fn remember_unsegmented(&mut self, at: usize) {
        let Some(peer) = self.runs[at].route.path.peer.socket_addr() else { return };
        if self.unsegmented.len() == MOST_UNSEGMENTED {
            self.unsegmented.clear();
        }
        self.unsegmented.push(peer.ip());
    }

    /// Turns a run into runs of one datagram each.
    fn split(&mut self, at: usize) {
        let run = self.runs[at];
        let wrap = run.route.header.map_or(0, |header| header.len());
        let lengths = self.lengths;
        let singles = (run.first..run.first + run.run.count).map(|first| ReplyRun {
            first,
            run: Run::of(lengths[first] + wrap),
            ..run
        });
        self.runs.splice(at..=at, singles);
    }

    /// Sends the runs from `from` on; how many went.
    fn send(&mut self, socket: RawFd, from: usize) -> io::Result<usize> {
        self.send_iovecs.clear();
        for (slot, run) in self.runs[from..].iter_mut().enumerate() {
            let first_iovec = self.send_iovecs.len();
            for datagram in run.first..run.first + run.run.count {
                if let Some(header) = &mut run.route.header {
                    self.send_iovecs.push(libc::iovec {
                        iov_base: header.as_mut_ptr().cast(),
                        iov_len: SPP_LENGTH,
                    });
                }
                self.send_iovecs.push(libc::iovec {
                    iov_base: self.buffer[datagram * STRIDE..].as_mut_ptr().cast(),
                    iov_len: self.lengths[datagram],
                });
            }
            let path = &mut run.route.path;
            let message = &mut self.send_messages[slot].msg_hdr;
            message.msg_name = path.peer.as_mut_ptr();
            message.msg_namelen = path.peer.bytes().len() as u32;
            message.msg_iovlen = (self.send_iovecs.len() - first_iovec) as _;
            // The vector holds twice a batch from the start, so that it never moves.
            message.msg_iov = &mut self.send_iovecs[first_iovec];
            let mut encoder = Encoder::new(message, &mut self.controls[slot]);
            encoder.local(&path.local);
            if run.run.count > 1 {
                encoder.segment(run.run.first as u16);
            }
            if run.dscp != 0 {
                encoder.dscp(run.dscp, cmsg::is_ipv4(&path.peer));
            }
        }
        let count = self.runs.len() - from;
        // SAFETY: every message points to a name, iovecs, buffers and control space of `self`, none of
        // which moves before the call returns.
        let sent = check(unsafe {
            libc::sendmmsg(
                socket,
                self.send_messages.as_mut_ptr(),
                count as u32,
                // musl declares the flags unsigned.
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        })?;
        Ok(sent as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::path::Path;
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    /// A flow's socket, and the upstream that it is connected to.
    fn flow() -> (UdpSocket, UdpSocket) {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(upstream.local_addr().unwrap()).unwrap();
        upstream.connect(socket.local_addr().unwrap()).unwrap();
        (socket, upstream)
    }

    fn route_to(peer: &UdpSocket) -> ReplyRoute {
        ReplyRoute { path: Path::of(peer.local_addr().unwrap()), header: None }
    }

    fn received(peer: &UdpSocket) -> Vec<u8> {
        let mut buffer = [0; 64];
        let length = peer.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn replies_of_several_flows_to_one_peer_leave_as_one_run() {
        let (peer, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), flow().1);
        let ((first, one), (second, two)) = (flow(), flow());
        one.send(b"aaaa").unwrap();
        one.send(b"bbbb").unwrap();
        two.send(b"cccc").unwrap();
        two.send(b"ddddd").unwrap();
        let mut replies = Replies::new();
        let volume = replies.receive(first.as_raw_fd(), &route_to(&peer)).unwrap();
        assert_eq!(volume, Volume { datagrams: 2, bytes: 8 });
        assert_eq!(replies.receive(second.as_raw_fd(), &route_to(&peer)).unwrap().datagrams, 2);
        let counts: Vec<usize> = replies.runs.iter().map(|run| run.run.count).collect();
        assert_eq!(counts, [3, 1], "a longer one begins a run of its own");

        one.send(b"e").unwrap();
        assert_eq!(replies.receive(first.as_raw_fd(), &route_to(&other)).unwrap().datagrams, 1);
        assert_eq!(replies.runs.len(), 3, "another peer begins a run of its own");

        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(replies.flush(listener.as_raw_fd()).sent, 5);
        let at_peer: Vec<Vec<u8>> = (0..4).map(|_| received(&peer)).collect();
        assert_eq!(at_peer, [&b"aaaa"[..], b"bbbb", b"cccc", b"ddddd"]);
    }

    #[test]
    fn a_peer_that_segments_do_not_reach_gets_single_datagrams_and_others_runs() {
        let (peer, _) = flow();
        let (socket, upstream) = flow();
        let mut replies = Replies::new();
        replies.unsegmented.push(peer.local_addr().unwrap().ip());
        upstream.send(b"aaaa").unwrap();
        upstream.send(b"bbbb").unwrap();
        replies.receive(socket.as_raw_fd(), &route_to(&peer)).unwrap();
        assert_eq!(replies.runs.len(), 2);
        replies.unsegmented.clear();
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(replies.flush(listener.as_raw_fd()).sent, 2);
        upstream.send(b"aaaa").unwrap();
        upstream.send(b"bbbb").unwrap();
        replies.receive(socket.as_raw_fd(), &route_to(&peer)).unwrap();
        assert_eq!(replies.runs.len(), 1);
    }
}
