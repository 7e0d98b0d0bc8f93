//! The service behind: takes datagrams, looks whom they come from and in which order, and sends
//! them back or not.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use crate::proxy::Family;
use crate::run::{Counts, Course, Phase, LOOK};
use crate::sys::{self, Batch};
use crate::udp::payload::{self, Payload};

/// Datagrams that one system call receives: many, so that replies to one client find each other.
const BATCH: usize = 128;
/// Room for a datagram that is sent back whole.
const WHOLE: usize = 1536;
/// How long a server that may nap does so: a few hundred datagrams at the highest rates, a small
/// part of what its receive buffer holds.
const NAP: Duration = Duration::from_micros(100);
/// While draining, this much silence is the end.
const SILENCE: u64 = 200_000_000;

pub struct Server {
    pub socket: OwnedFd,
    pub echo: bool,
    pub family: Family,
    /// The number of the client that payloads call 0.
    pub first_client: u64,
    pub clients: usize,
    /// Datagrams must come from the clients that they name.
    pub check: bool,
    /// After a batch that was not full, sleep a moment instead of being woken for each datagram:
    /// cheaper for everyone on the path, at the price of that moment's delay.
    pub naps: bool,
}

#[derive(Clone, Copy)]
struct Client {
    address: SocketAddr,
    run: u32,
    next: u64,
}

impl Server {
    pub fn run(&self, course: &Course, counts: &Counts) -> io::Result<()> {
        let result = self.serve(course, counts);
        counts.dropped.add(sys::dropped(&self.socket)?);
        result
    }

    fn serve(&self, course: &Course, counts: &Counts) -> io::Result<()> {
        sys::set_receive_timeout(&self.socket, LOOK.as_millis() as u32)?;
        let mut clients: Vec<Client> = (0..self.clients as u64)
            .map(|number| self.family.client(self.first_client + number))
            .map(|address| Client { address, run: 0, next: 0 })
            .collect();
        // A sink reads no more of a datagram than it looks at.
        let room = if self.echo { WHOLE } else { payload::LENGTH };
        let mut batch = Batch::new(BATCH, room, true);
        let mut last = sys::now();
        while course.phase() < Phase::End {
            let count = match batch.receive(&self.socket, true) {
                Ok(count) => count,
                Err(error) if sys::is_busy(&error) => {
                    let silent = sys::now().saturating_sub(last) > SILENCE;
                    if silent && course.phase() == Phase::Drain {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            last = sys::now();
            for index in 0..count {
                self.judge(&batch, index, &mut clients, counts);
            }
            counts.received.add(count as u64);
            if self.echo {
                let failed = batch.send_back(&self.socket, count);
                counts.sent.add((count - failed) as u64);
                counts.failed.add(failed as u64);
            }
            if self.naps && count < batch.capacity() {
                sleep(NAP);
            }
        }
        Ok(())
    }

    fn judge(&self, batch: &Batch, index: usize, clients: &mut [Client], counts: &Counts) {
        let payload = Payload::read(batch.datagram(index));
        let named = payload.and_then(|payload| {
            let client = clients.get_mut(payload.client as usize)?;
            Some((payload, client))
        });
        let Some((payload, client)) = named else {
            counts.wrong_client.add(1);
            return;
        };
        if self.check {
            let sender = batch.sender(index);
            if sender.ip() != client.address.ip() {
                counts.wrong_client.add(1);
            } else if sender != client.address {
                counts.other_port.add(1);
            }
        }
        if client.run != payload.run {
            (client.run, client.next) = (payload.run, 0);
        }
        if payload.sequence < client.next {
            counts.out_of_order.add(1);
        } else {
            client.next = payload.sequence + 1;
        }
    }
}
