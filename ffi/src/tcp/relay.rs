//! Two connected sockets and the bytes between them.
//!
//! Small reads are copied through one buffer per thread; a full read indicates bulk, which is spliced. A direction that
//! waits for its reader holds what it could not deliver, and reads nothing more.
//!
//! Urgent data (tcp(7)) keeps its position in the stream, and the mark is forwarded. A read stops before the mark, and a
//! splice never passes it, not even to report the end of the stream. Bytes near a mark are therefore copied, and an end
//! that splice reports is confirmed by a receive.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::pipes::{Pipe, Pipes};
use crate::net::socket;

/// Bytes that one read may bring; a full one shows bulk.
pub const BUFFER: usize = 64 << 10;

/// A splice that moves less than this is small.
const SMALL_SPLICE: usize = 16 << 10;
/// After this many small splices in a row, copying is cheaper again.
const SMALL_SPLICES: u8 = 8;

/// One socket of a pair, and what epoll last said of it (edge-triggered, so it is remembered).
pub struct Side {
    pub fd: Descriptor,
    readable: bool,
    writable: bool,
    /// The peer will send no more: read to the end, a short read does not say "drained".
    hung_up: bool,
    failed: bool,
    /// An urgent byte waits, or is behind what waits: a short read may have stopped before it.
    urgent: bool,
}

/// A socket, until the connection goes on without it; from then on -1, on which every system call fails.
pub struct Descriptor(Option<OwnedFd>);

impl Descriptor {
    /// Has it reset its connection when it is closed; one that is closed already does nothing.
    pub fn reset_on_close(&self) {
        if let Some(socket) = &self.0 {
            socket::reset_on_close(socket.as_raw_fd());
        }
    }

    /// Closes the socket.
    pub fn close(&mut self) {
        self.0 = None;
    }
}

impl AsRawFd for Descriptor {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

/// What a thread lends to every relay in turn.
pub struct Tools {
    pub buffer: Box<[u8]>,
    pub pipes: Pipes,
}

/// What one turn of a pair came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until epoll reports it.
    Waiting,
    /// There is more to move: another turn, after the others had theirs.
    Ready,
    /// Both directions are done. With an error, both sides are to be reset.
    Ended(Option<i32>),
}

/// The two directions of a connection.
#[derive(Default)]
pub struct Relay {
    pub up: Direction,
    pub down: Direction,
    /// The error that broke a direction, while the other still drains.
    broken: Option<i32>,
    /// Whose side failed first.
    failed: Option<Party>,
}

/// The two sides of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    Peer,
    Upstream,
}

/// One direction: from the side that is read to the side that is written.
#[derive(Default)]
pub struct Direction {
    state: State,
    held: Held,
    splicing: bool,
    small_splices: u8,
    /// The other direction is done.
    last: bool,
    /// Bytes delivered since `take_bytes`.
    bytes: u64,
    /// Bytes that `take_bytes` has handed out.
    taken: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Running,
    /// The end was read; what is held goes out first.
    Finishing,
    /// The end was passed on, or the reader is gone.
    Done,
}

/// What was read and could not be delivered yet.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Bytes {
        bytes: Box<[u8]>,
        sent: usize,
    },
    UrgentByte(u8),
    InPipe {
        pipe: Pipe,
        left: usize,
    },
}

/// Which side an error came from.
enum Failure {
    Source(i32),
    Destination(i32),
}

impl Tools {
    /// With at most this many pipes; without a pipe, everything is copied.
    pub fn new(pipes: usize) -> Tools {
        Tools { buffer: vec![0; BUFFER].into_boxed_slice(), pipes: Pipes::new(pipes) }
    }
}

impl Side {
    /// A socket of which nothing is known yet.
    pub fn new(fd: OwnedFd) -> Side {
        let fd = Descriptor(Some(fd));
        Side { fd, readable: false, writable: false, hung_up: false, failed: false, urgent: false }
    }

    /// Takes note of epoll's bits.
    #[inline]
    pub fn note(&mut self, events: u32) {
        let has = |bit: i32| events & bit as u32 != 0;
        let gone = has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR);
        self.urgent |= has(libc::EPOLLPRI);
        self.readable |= has(libc::EPOLLIN | libc::EPOLLPRI) || gone;
        self.writable |= has(libc::EPOLLOUT | libc::EPOLLERR);
        self.hung_up |= gone;
        self.failed |= has(libc::EPOLLERR);
    }

    /// Whether it failed, so that SO_ERROR says why.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether a read may bring something.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether it can be written to; a connecting socket: whether it is established.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Reads once; remembers when there is no more.
    #[inline]
    pub fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let received = socket::receive(self.fd.as_raw_fd(), into);
        match &received {
            Ok(count) => self.readable = *count == into.len() || self.hung_up || self.urgent,
            Err(error) if is_blocked(error) => {
                self.readable = false;
                // The mark is passed; or it is still to come, with another event.
                self.urgent = false;
            }
            Err(_) => {}
        }
        received
    }
}

impl Relay {
    /// A relay whose upstream is still owed what followed the header.
    pub fn owing(payload: Box<[u8]>) -> Relay {
        let mut relay = Relay::default();
        if !payload.is_empty() {
            relay.up.held = Held::Bytes { bytes: payload, sent: 0 };
        }
        relay
    }

    /// The relay will end with this error, once what was sent before it is delivered.
    pub fn break_off(&mut self, error: i32) {
        self.broken = Some(error);
        self.failed = Some(Party::Upstream);
        self.up.state = State::Done;
    }

    /// One side is given up: the relay will end with an error that no call has met.
    pub fn give_up(&mut self, party: Party) {
        self.failed.get_or_insert(party);
    }

    /// Whether something was read that is not delivered, or may wait to be read.
    pub fn owes(&self, peer: &Side, upstream: &Side) -> bool {
        self.up.owes(peer) || self.down.owes(upstream)
    }

    /// Whether everything that was read is written, with both directions open and no urgent byte about: the
    /// next byte that is read from one side is the next one that the other is sent.
    pub fn is_even(&self, peer: &Side, upstream: &Side) -> bool {
        let runs = self.up.state == State::Running && self.down.state == State::Running;
        runs && self.holds_nothing() && !peer.urgent && !upstream.urgent
    }

    /// Whether everything that was read is written.
    pub fn holds_nothing(&self) -> bool {
        self.up.holds_nothing() && self.down.holds_nothing()
    }

    /// The connection has ended without this relay.
    pub fn end_elsewhere(&mut self, first: Party) {
        self.up.last = first == Party::Upstream;
    }

    /// Whose side failed first, if one did.
    pub fn failed(&self) -> Option<Party> {
        self.failed
    }

    /// Who finished first, once both have.
    pub fn finished_first(&self) -> Party {
        // Who was done already when the other took its last turn.
        if self.up.last {
            Party::Upstream
        } else {
            Party::Peer
        }
    }

    /// Sends what the upstream is owed without waiting to hear that the connection is established: over
    /// loopback it does. Whether it stands, or the error that the attempt has taken from the socket.
    pub fn send_early_payload(
        &mut self,
        upstream: &mut Side,
        tools: &mut Tools,
    ) -> Result<bool, i32> {
        if self.up.holds_nothing() {
            return Ok(false);
        }
        upstream.writable = true;
        match self.up.deliver_held(upstream, tools) {
            Ok(_) => Ok(self.up.bytes > 0),
            Err(Failure::Source(error) | Failure::Destination(error)) => Err(error),
        }
    }

    /// One bounded turn in both directions.
    pub fn turn(&mut self, peer: &mut Side, upstream: &mut Side, tools: &mut Tools) -> Turn {
        // The direction that ends second needs no FIN of its own: closing both sides sends it.
        self.up.last = self.down.state == State::Done;
        let up = self.up.turn(peer, upstream, tools);
        let up = match self.settle(up, Party::Peer, upstream) {
            Ok(more) => more,
            Err(error) => return Turn::Ended(Some(error)),
        };
        self.down.last = self.up.state == State::Done;
        let down = self.down.turn(upstream, peer, tools);
        let down = match self.settle(down, Party::Upstream, peer) {
            Ok(more) => more,
            Err(error) => return Turn::Ended(Some(error)),
        };
        if self.up.state == State::Done && self.down.state == State::Done {
            return Turn::Ended(self.broken);
        }
        if up || down {
            Turn::Ready
        } else {
            Turn::Waiting
        }
    }

    /// A reader that is gone may have left a last answer: the other direction drains before both
    /// are reset. A writer that is gone leaves nothing to wait for.
    fn settle(
        &mut self,
        turn: Result<bool, Failure>,
        source: Party,
        destination: &mut Side,
    ) -> Result<bool, i32> {
        match turn {
            Ok(more) => Ok(more),
            Err(Failure::Source(error)) => {
                self.failed.get_or_insert(source);
                Err(error)
            }
            Err(Failure::Destination(error)) => {
                self.failed.get_or_insert(source.other());
                self.broken = Some(error);
                destination.readable = true;
                destination.hung_up = true;
                Ok(true)
            }
        }
    }
}

impl Party {
    fn other(self) -> Party {
        match self {
            Party::Peer => Party::Upstream,
            Party::Upstream => Party::Peer,
        }
    }
}

impl Direction {
    /// Moves what one read brings; says whether there may be more.
    fn turn(&mut self, from: &mut Side, to: &mut Side, tools: &mut Tools) -> Result<bool, Failure> {
        if self.state == State::Done {
            return Ok(false);
        }
        if !self.deliver_held(to, tools)? {
            // A source that was reset has thrown away what it had; so may we what we hold of it.
            return if from.failed { Err(Failure::Source(take_error(from))) } else { Ok(false) };
        }
        if self.state == State::Running {
            if !from.readable {
                return Ok(false);
            }
            let moved = if self.splicing && !from.urgent {
                self.splice(from, to, tools)?
            } else {
                self.copy(from, to, tools)?
            };
            match moved {
                Moved::Some => return Ok(from.readable && self.holds_nothing()),
                Moved::Nothing => return Ok(false),
                Moved::End => self.state = State::Finishing,
            }
        }
        self.state = State::Done;
        if self.last {
            return Ok(false);
        }
        match socket::finish_sending(to.fd.as_raw_fd()) {
            // ENOTCONN: it was reset meanwhile, which the other direction will meet.
            Err(error) if error.raw_os_error() != Some(libc::ENOTCONN) => {
                Err(Failure::Destination(code(&error)))
            }
            _ => Ok(false),
        }
    }

    #[inline]
    fn copy(
        &mut self,
        from: &mut Side,
        to: &mut Side,
        tools: &mut Tools,
    ) -> Result<Moved, Failure> {
        // The urgent byte goes by itself, so that it can be sent as one.
        let urgent = from.urgent && socket::is_at_mark(from.fd.as_raw_fd());
        let room = if urgent { 1 } else { tools.buffer.len() };
        let received = match from.receive(&mut tools.buffer[..room]) {
            Ok(0) => return Ok(Moved::End),
            Ok(received) => received,
            Err(error) if is_blocked(&error) => return Ok(Moved::Nothing),
            Err(error) => return Err(Failure::Source(code(&error))),
        };
        let bytes = &tools.buffer[..received];
        if urgent {
            self.send_urgent(bytes[0], to)?;
            return Ok(Moved::Some);
        }
        let sent = self.send(bytes, to)?;
        if sent < received {
            self.held = Held::Bytes { bytes: bytes[sent..].into(), sent: 0 };
        }
        // The last pipe is for readers that keep up.
        let needed = if sent < received { 2 } else { 1 };
        self.splicing = received == tools.buffer.len() && tools.pipes.left() >= needed;
        Ok(Moved::Some)
    }

    fn splice(
        &mut self,
        from: &mut Side,
        to: &mut Side,
        tools: &mut Tools,
    ) -> Result<Moved, Failure> {
        let Some(pipe) = tools.pipes.take() else {
            // No descriptors for a pipe: copying needs none.
            self.splicing = false;
            return self.copy(from, to, tools);
        };
        // The last pipe is not left with a reader that stalls (`deliver_held`): it brings no more than
        // a copy would.
        let most = if tools.pipes.left() == 0 { BUFFER } else { pipe.capacity() };
        let received = socket::splice(from.fd.as_raw_fd(), pipe.inlet(), most);
        let received = match received {
            Ok(received) if received > 0 => received,
            nothing => {
                tools.pipes.put(pipe);
                return match nothing {
                    // The end, or an urgent mark behind which more waits.
                    Ok(_) => {
                        self.splicing = false;
                        self.copy(from, to, tools)
                    }
                    Err(error) if is_blocked(&error) => {
                        from.readable = false;
                        Ok(Moved::Nothing)
                    }
                    Err(error) => Err(Failure::Source(code(&error))),
                };
            }
        };
        self.small_splices = if received < SMALL_SPLICE { self.small_splices + 1 } else { 0 };
        if self.small_splices == SMALL_SPLICES {
            self.splicing = false;
            self.small_splices = 0;
        }
        self.held = Held::InPipe { pipe, left: received };
        to.writable = true;
        self.deliver_held(to, tools)?;
        Ok(Moved::Some)
    }

    /// Sends what is held; whether all of it went.
    #[inline]
    fn deliver_held(&mut self, to: &mut Side, tools: &mut Tools) -> Result<bool, Failure> {
        if self.holds_nothing() {
            return Ok(true);
        }
        if !to.writable {
            return Ok(false);
        }
        match std::mem::take(&mut self.held) {
            Held::Nothing => Ok(true),
            Held::Bytes { bytes, mut sent } => {
                sent += self.send(&bytes[sent..], to)?;
                if sent < bytes.len() {
                    self.held = Held::Bytes { bytes, sent };
                    return Ok(false);
                }
                Ok(true)
            }
            Held::UrgentByte(byte) => self.send_urgent(byte, to),
            Held::InPipe { pipe, mut left } => {
                // A splice may stop short of a full socket, at the edge of a buffer.
                while left > 0 {
                    match socket::splice(pipe.outlet(), to.fd.as_raw_fd(), left) {
                        Ok(sent) => {
                            left -= sent;
                            self.bytes += sent as u64;
                        }
                        Err(error) if is_blocked(&error) => {
                            to.writable = false;
                            self.keep(pipe, left, tools)?;
                            return Ok(false);
                        }
                        Err(error) => return Err(self.lose_reader(&error)),
                    }
                }
                tools.pipes.put(pipe);
                Ok(true)
            }
        }
    }

    /// Keeps what the reader has not taken yet: in the pipe, unless that is the last one and others
    /// wait for it.
    fn keep(&mut self, pipe: Pipe, left: usize, tools: &mut Tools) -> Result<(), Failure> {
        if tools.pipes.left() > 0 || left > BUFFER {
            self.held = Held::InPipe { pipe, left };
            return Ok(());
        }
        let bytes = &mut tools.buffer[..left];
        pipe.empty(bytes).map_err(|error| Failure::Source(code(&error)))?;
        self.held = Held::Bytes { bytes: (*bytes).into(), sent: 0 };
        self.splicing = false;
        tools.pipes.put(pipe);
        Ok(())
    }

    /// Sends; how much went. Less than all means that the socket is full.
    #[inline]
    fn send(&mut self, bytes: &[u8], to: &mut Side) -> Result<usize, Failure> {
        let sent = match socket::send(to.fd.as_raw_fd(), bytes) {
            Ok(sent) => sent,
            Err(error) if is_blocked(&error) => 0,
            Err(error) => return Err(self.lose_reader(&error)),
        };
        self.bytes += sent as u64;
        if sent < bytes.len() {
            to.writable = false;
        }
        Ok(sent)
    }

    /// Sends an urgent byte, or holds it; whether it went.
    fn send_urgent(&mut self, byte: u8, to: &mut Side) -> Result<bool, Failure> {
        match socket::send_urgent(to.fd.as_raw_fd(), &[byte]) {
            Ok(sent) if sent > 0 => {
                self.bytes += 1;
                Ok(true)
            }
            Err(error) if !is_blocked(&error) => Err(self.lose_reader(&error)),
            _ => {
                to.writable = false;
                self.held = Held::UrgentByte(byte);
                Ok(false)
            }
        }
    }

    fn lose_reader(&mut self, error: &io::Error) -> Failure {
        self.state = State::Done;
        Failure::Destination(code(error))
    }

    /// Bytes delivered since the last call.
    #[inline]
    pub fn take_bytes(&mut self) -> u64 {
        let bytes = std::mem::take(&mut self.bytes);
        self.taken += bytes;
        bytes
    }

    /// Bytes that `take_bytes` has handed out, all in all.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether its end was passed on.
    pub fn has_ended(&self) -> bool {
        self.state == State::Done
    }

    /// Counts bytes that were delivered without this relay.
    pub fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    fn owes(&self, from: &Side) -> bool {
        self.state != State::Done
            && (!self.holds_nothing() || self.state == State::Running && from.readable)
    }

    fn holds_nothing(&self) -> bool {
        matches!(self.held, Held::Nothing)
    }
}

enum Moved {
    Some,
    Nothing,
    End,
}

fn is_blocked(error: &io::Error) -> bool {
    // Linux has one number for EAGAIN and EWOULDBLOCK.
    error.raw_os_error() == Some(libc::EAGAIN)
}

fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn take_error(side: &Side) -> i32 {
    match socket::take_error(side.fd.as_raw_fd()) {
        0 => libc::ECONNRESET,
        error => error,
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
