//! A listener: one entry of the configuration, as all workers see it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::port::Port;
use super::settings::Settings;
use crate::abi::errors::{Error, Result};
use crate::abi::layout::SubnetRecord;
use crate::observe::stats::Stats;
use crate::trust::subnets::Subnets;

/// A listener as it stands in the table. It never changes: a change puts another one in its place, and
/// connections keep the one that they were accepted by.
#[derive(Clone)]
pub struct Listener {
    pub id: u32,
    pub settings: Settings,
    /// The subnets whose peers may send headers, once they were set; see `Settings::restricted`.
    pub subnets: Option<Arc<Subnets>>,
    pub ports: Vec<Arc<Port>>,
    /// What lasts over its changes.
    pub lasting: Arc<Lasting>,
}

/// What belongs to a listener from its opening to the end of its last connection.
pub struct Lasting {
    pub id: u32,
    /// By worker.
    pub stats: Box<[Arc<Stats>]>,
    /// IPv4, IPv6: the log has the first client that was refused for want of an upstream.
    told_families: [AtomicBool; 2],
    /// The log has that most connections time out without a byte.
    told_silence: AtomicBool,
    /// When its last connections end, once it was closed.
    pub ends_at: OnceLock<Instant>,
}

impl Listener {
    /// A new listener without subnets.
    pub fn new(id: u32, settings: Settings, ports: Vec<Arc<Port>>, workers: usize) -> Listener {
        let lasting = Lasting {
            id,
            stats: (0..workers).map(|_| Arc::default()).collect(),
            told_families: Default::default(),
            told_silence: AtomicBool::new(false),
            ends_at: OnceLock::new(),
        };
        Listener { id, settings, subnets: None, ports, lasting: Arc::new(lasting) }
    }

    /// Whether a peer may send headers. One without an address may not, where there are subnets.
    #[inline]
    pub fn allows(&self, peer: Option<SocketAddr>) -> bool {
        match (&self.subnets, peer) {
            (None, _) => !self.settings.restricted,
            (Some(subnets), Some(peer)) => subnets.contain(peer.ip()),
            (Some(_), None) => false,
        }
    }
}

impl Lasting {
    /// Whether a client of this family is the first that is refused for want of an upstream.
    pub fn is_first_without_upstream(&self, client: SocketAddr) -> bool {
        !self.told_families[usize::from(client.is_ipv6())].swap(true, Ordering::Relaxed)
    }

    /// Whether this is the first call.
    pub fn is_first_silence(&self) -> bool {
        !self.told_silence.swap(true, Ordering::Relaxed)
    }
}

/// Subnets from their records. An empty set is refused: it would look like "allow all".
///
/// # Errors
/// `INVALID`.
pub fn subnets_of(records: &[SubnetRecord]) -> Result<Arc<Subnets>> {
    if records.is_empty() {
        return Err(Error::invalid("a set of subnets without a subnet allows nobody"));
    }
    let subnets = Subnets::new(records)
        .ok_or_else(|| Error::invalid("a subnet's prefix is longer than its address"))?;
    Ok(Arc::new(subnets))
}
