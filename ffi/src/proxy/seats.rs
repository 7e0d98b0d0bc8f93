//! A listener's limit of connections for each client (`max-connections-per-client`), over all workers.
//!
//! It counts connections that are relayed or about to be. The client of the others is not known yet; their number is
//! limited by the peers' budgets (`tcp/pending.rs`).

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use hashbrown::HashMap;

use crate::net::network::Network;
use crate::system::sync::lock;

/// Clients that have connections, and how many.
#[derive(Default)]
pub struct Seats(Mutex<HashMap<Network, u32>>);

/// One connection's place, until it is dropped.
pub struct Seat {
    seats: Arc<Seats>,
    client: Network,
}

impl Seats {
    /// A place for a connection of a client, unless it has `most` already.
    pub fn take(seats: &Arc<Seats>, client: IpAddr, most: u32) -> Option<Seat> {
        let client = Network::of(client);
        let mut taken = lock(&seats.0);
        let own = taken.get(&client).copied().unwrap_or(0);
        if own >= most {
            return None;
        }
        taken.insert(client, own + 1);
        Some(Seat { seats: seats.clone(), client })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = lock(&self.seats.0);
        match taken.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_limit_until_a_place_is_free() {
        let seats: Arc<Seats> = Arc::default();
        let take = |client: &str| Seats::take(&seats, client.parse().unwrap(), 2);
        let (one, two) = (take("2001:db8::1").unwrap(), take("2001:db8::2").unwrap());
        assert!(take("2001:db8::3").is_none(), "a host has a whole /64");
        let other = take("192.0.2.1").unwrap();
        drop(one);
        let three = take("2001:db8::3").unwrap();
        assert!(take("2001:db8::1").is_none());
        drop((two, three, other));
        assert!(lock(&seats.0).is_empty());
    }
}
