//! Connections that send and receive as fast as they can, both directions at once: either end of
//! `tcp-bulk`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::proxy::is_client;
use crate::run::{Counts, Course, Phase, LOOK};
use crate::sys::{self, Epoll, Interest};
use crate::tcp::accept_all;

/// Bytes that one `send` is given.
const CHUNK: usize = 128 << 10;
/// Bytes that one discarding `recv` may take: more than a receive queue holds.
const DISCARD: usize = 8 << 20;
/// Bytes that one copying `recv` may take: what a bulk receiver has for a buffer.
const COPY: usize = 256 << 10;
/// The token of the listener; connections have their descriptor's number.
const LISTENER: u64 = u64::MAX;

/// What is done with what arrives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It is thrown away inside the kernel: the cheapest, so that the load is not the limit.
    Discard,
    /// It is copied to a buffer, as a real receiver does.
    Copy,
}

pub struct Pump<'a> {
    course: &'a Course,
    counts: &'a Counts,
    epoll: Epoll,
    /// By descriptor.
    connections: Vec<Option<Connection>>,
    open: u64,
    draining: bool,
    chunk: Vec<u8>,
    receipt: Receipt,
    /// Where bytes are received to; when they are discarded, only its length matters.
    taken: Vec<u8>,
}

struct Connection {
    socket: OwnedFd,
    sending: bool,
    receiving: bool,
}

impl Pump<'_> {
    pub fn new<'a>(
        course: &'a Course,
        counts: &'a Counts,
        receipt: Receipt,
    ) -> io::Result<Pump<'a>> {
        let room = if receipt == Receipt::Copy { COPY } else { DISCARD };
        Ok(Pump {
            course,
            counts,
            epoll: Epoll::new()?,
            connections: Vec::new(),
            open: 0,
            draining: false,
            chunk: vec![0; CHUNK],
            receipt,
            taken: vec![0; room],
        })
    }

    /// Takes a connection over.
    pub fn add(&mut self, socket: OwnedFd) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        let index = fd as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        self.epoll.add(fd, Interest::ReadWrite, fd as u64)?;
        self.connections[index] = Some(Connection { socket, sending: true, receiving: true });
        self.open += 1;
        self.counts.opened.add(1);
        if self.draining {
            self.stop_sending(index);
        }
        Ok(())
    }

    /// Accepts connections and pumps them; with `check`, counts those that do not come from a
    /// client's address. Returns how many were still open at the end.
    pub fn serve(mut self, listener: OwnedFd, check: bool) -> io::Result<u64> {
        self.epoll.add(listener.as_raw_fd(), Interest::Read, LISTENER)?;
        self.pump(Some((listener, check)))
    }

    /// Pumps the connections that were added, until all have been drained. Returns how many were
    /// still open at the end.
    pub fn run(mut self) -> io::Result<u64> {
        self.pump(None)
    }

    fn pump(&mut self, listener: Option<(OwnedFd, bool)>) -> io::Result<u64> {
        loop {
            let phase = self.course.phase();
            if phase >= Phase::Drain && !self.draining {
                self.draining = true;
                for index in 0..self.connections.len() {
                    self.stop_sending(index);
                }
            }
            if phase == Phase::End || self.open == 0 && (self.draining || listener.is_none()) {
                return Ok(self.open);
            }
            let count = self.epoll.wait(LOOK.as_nanos() as u64)?;
            for event in 0..count {
                let ready = self.epoll.ready(event);
                if let (LISTENER, Some((listener, check))) = (ready.token, &listener) {
                    let counts = self.counts;
                    accept_all(listener, &counts.failed, |socket, peer| {
                        if *check && !is_client(peer.ip()) {
                            counts.wrong_client.add(1);
                        }
                        self.add(socket)
                    })?;
                    continue;
                }
                let index = ready.token as usize;
                if ready.readable {
                    self.take(index);
                }
                if ready.writable {
                    self.give(index);
                }
            }
        }
    }

    fn take(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        let taken = match self.receipt {
            Receipt::Discard => sys::discard(&connection.socket, &mut self.taken),
            Receipt::Copy => sys::receive(&connection.socket, &mut self.taken),
        };
        match taken {
            Ok(0) => {
                connection.receiving = false;
                if self.course.phase() < Phase::Drain {
                    // Nobody has been told to stop.
                    self.counts.failed.add(1);
                }
                // A finished stream stays readable: stop watching before it spins.
                if connection.sending {
                    self.stop_sending(index);
                }
                self.close_if_done(index);
            }
            Ok(bytes) => self.counts.received.add(bytes as u64),
            Err(error) if sys::is_busy(&error) => {}
            Err(_) => self.fail(index),
        }
    }

    fn give(&mut self, index: usize) {
        let Some(connection) = &self.connections[index] else { return };
        if !connection.sending {
            return;
        }
        match sys::send(&connection.socket, &self.chunk) {
            Ok(bytes) => self.counts.sent.add(bytes as u64),
            Err(error) if sys::is_busy(&error) => {}
            Err(_) => self.fail(index),
        }
    }

    fn stop_sending(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        if !connection.sending {
            return;
        }
        connection.sending = false;
        let fd = connection.socket.as_raw_fd();
        let stopped = sys::shutdown_send(&connection.socket)
            .and_then(|()| self.epoll.modify(fd, Interest::Read, fd as u64));
        match stopped {
            Ok(()) => self.close_if_done(index),
            Err(_) => self.fail(index),
        }
    }

    fn close_if_done(&mut self, index: usize) {
        let connection = self.connections[index].as_ref();
        if connection.is_some_and(|connection| !connection.sending && !connection.receiving) {
            self.close(index);
        }
    }

    fn fail(&mut self, index: usize) {
        self.counts.failed.add(1);
        self.close(index);
    }

    fn close(&mut self, index: usize) {
        self.connections[index] = None;
        self.open -= 1;
    }
}
