//! Inherited listening sockets, until a port takes them: from the program that this one replaces, or from an earlier
//! run.

use std::collections::HashMap;
use std::net::SocketAddr;

use socket2::Socket;

use super::port::{overlap, Transport};
use crate::net::socket::Listen;

/// Where and how a socket listens.
pub type Place = (SocketAddr, Transport, Listen);

/// Workers of a program at most: a number that no program has would only take room.
const MOST_WORKERS: usize = 1024;

/// Sockets by place and worker.
#[derive(Default)]
pub struct Pool(HashMap<Place, Vec<Option<Socket>>>);

impl Pool {
    /// Adds a worker's socket; false where it has one there already, or there is no such worker.
    pub fn add(&mut self, place: Place, worker: usize, socket: Socket) -> bool {
        if worker > MOST_WORKERS {
            return false;
        }
        let sockets = self.0.entry(place).or_default();
        if sockets.len() <= worker {
            sockets.resize_with(worker + 1, || None);
        }
        let is_first = sockets[worker].is_none();
        if is_first {
            sockets[worker] = Some(socket);
        }
        is_first
    }

    /// The sockets of a place by worker, once.
    pub fn take(&mut self, place: Place) -> Option<Vec<Option<Socket>>> {
        self.0.remove(&place)
    }

    /// Whether one listens on an address, or on one that includes it.
    pub fn listens(&self, listen: SocketAddr, transport: Transport) -> bool {
        let mut places = self.0.keys().filter(|(_, other, _)| *other == transport);
        places.any(|(place, _, _)| overlap(*place, listen))
    }

    /// Closes what nobody has taken; whose it was.
    pub fn close(&mut self) -> Vec<(Place, Vec<u32>)> {
        let left = self.0.drain().map(|(place, sockets)| {
            let workers = (0..).zip(&sockets).filter(|(_, socket)| socket.is_some());
            (place, workers.map(|(worker, _)| worker).collect())
        });
        left.collect()
    }
}
