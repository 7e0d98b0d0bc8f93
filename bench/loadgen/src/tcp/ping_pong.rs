//! Exchange after exchange on connections that stay open.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::histogram::Histogram;
use crate::options::Common;
use crate::run::{Counts, Course, Phase, LOOK};
use crate::sys::{self, Epoll, Interest};
use crate::tcp::{exchange_once, measures, open, Exchange, Step};

pub struct PingPong {
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    /// Connections with an exchange under way.
    busy: usize,
}

struct Connection {
    socket: OwnedFd,
    number: u64,
    started: u64,
    exchange: Exchange,
}

impl PingPong {
    /// Opens the connections, with one exchange before the next is opened, and sends the first
    /// measured message on each.
    pub fn open(common: &Common, connections: usize, counts: &Counts) -> io::Result<PingPong> {
        let mut load = PingPong { epoll: Epoll::new()?, connections: Vec::new(), busy: 0 };
        for index in 0..connections {
            let number = common.first_client + index as u64;
            let socket = open(common, number)?;
            exchange_once(&socket, number)?;
            load.epoll.add(socket.as_raw_fd(), Interest::Read, index as u64)?;
            let exchange = Exchange::default();
            load.connections.push(Some(Connection { socket, number, started: 0, exchange }));
            counts.opened.add(1);
            load.start(index, counts);
        }
        Ok(load)
    }

    /// Runs until the course drains and every reply is back. Returns the times of the exchanges
    /// that ended while it measured. A connection that breaks, and one without a reply at the end,
    /// is a failure.
    pub fn run(mut self, course: &Course, counts: &Counts) -> io::Result<Histogram> {
        let mut times = Histogram::new();
        while self.busy > 0 && course.phase() < Phase::End {
            let count = self.epoll.wait(LOOK.as_nanos() as u64)?;
            for event in 0..count {
                let index = self.epoll.ready(event).token as usize;
                let Some(connection) = &mut self.connections[index] else { continue };
                match connection.exchange.advance(&connection.socket) {
                    Ok(Step::Done) => {
                        counts.received.add(1);
                        if measures(course) {
                            times.record(sys::now() - connection.started);
                        }
                        self.busy -= 1;
                        if course.phase() < Phase::Drain {
                            self.start(index, counts);
                        }
                    }
                    // So small a message is taken whole, so the socket need not be watched for
                    // room.
                    Ok(Step::Sending | Step::Receiving) => {}
                    Err(_) => {
                        counts.failed.add(1);
                        self.connections[index] = None;
                        self.busy -= 1;
                    }
                }
            }
        }
        counts.failed.add(self.busy as u64);
        Ok(times)
    }

    fn start(&mut self, index: usize, counts: &Counts) {
        let Some(connection) = &mut self.connections[index] else { return };
        connection.exchange.start(connection.number, |_| {});
        connection.started = sys::now();
        match connection.exchange.advance(&connection.socket) {
            Ok(Step::Receiving) => self.busy += 1,
            _ => {
                counts.failed.add(1);
                self.connections[index] = None;
            }
        }
    }
}
