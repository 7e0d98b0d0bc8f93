//! A listener: one entry of the configuration, as all workers see it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::port::Port;
use super::quota::Quota;
use super::seats::Seats;
use super::settings::Settings;
use crate::abi::errors::{Error, Result};
use crate::abi::layout::{DestinationRecord, TrustRecord};
use crate::observe::stats::Stats;
use crate::trust::destinations::Destinations;
use crate::trust::table::{HeaderRule, NoTable, TrustTable};

/// A listener as it stands in the table. It never changes: a change puts another one instead, and
/// connections keep the one that they were accepted by.
#[derive(Clone)]
pub struct Listener {
    pub id: u32,
    pub settings: Settings,
    /// Which peers may connect, once that was set; see `Settings::restricted`.
    pub trust: Option<Arc<TrustTable>>,
    /// Where headers may lead, at ports whose upstream is the header's destination.
    pub destinations: Arc<Destinations>,
    pub ports: Vec<Arc<Port>>,
    /// What lasts over its changes.
    pub lasting: Arc<Lasting>,
}

/// What belongs to a listener from its opening to the end of its last connection.
pub struct Lasting {
    pub id: u32,
    /// By worker.
    pub stats: Box<[Arc<Stats>]>,
    /// Its connections, from when they are accepted.
    pub connections: Arc<Quota>,
    /// Its UDP flows.
    pub flows: Arc<Quota>,
    /// The connections of each client, if there is a limit of them.
    pub seats: Arc<Seats>,
    /// IPv4, IPv6: the log has the first client that was refused for want of an upstream.
    told_families: [AtomicBool; 2],
    /// The log has that most connections time out without a byte.
    told_silence: AtomicBool,
    /// When its last connections end, once it was closed.
    pub ends_at: OnceLock<Instant>,
}

impl Listener {
    /// A new listener without a trust table.
    pub fn new(id: u32, settings: Settings, ports: Vec<Arc<Port>>, workers: usize) -> Listener {
        let lasting = Lasting {
            id,
            stats: (0..workers).map(|_| Arc::default()).collect(),
            connections: Arc::default(),
            flows: Arc::default(),
            seats: Arc::default(),
            told_families: Default::default(),
            told_silence: AtomicBool::new(false),
            ends_at: OnceLock::new(),
        };
        Listener {
            id,
            settings,
            trust: None,
            destinations: Arc::default(),
            ports,
            lasting: Arc::new(lasting),
        }
    }

    /// What a peer must send first; nothing if it may not connect.
    #[inline]
    pub fn rule_of(&self, peer: SocketAddr) -> Option<HeaderRule> {
        match &self.trust {
            None => (!self.settings.restricted).then_some(HeaderRule::Require),
            Some(trust) => trust.rule_of(peer.ip()),
        }
    }

    /// Whether any peer may come without a header.
    pub fn is_mixed(&self) -> bool {
        self.trust.as_ref().is_some_and(|trust| trust.is_mixed())
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

/// A trust table from its records.
///
/// # Errors
/// `INVALID`.
pub fn trust_of(records: &[TrustRecord]) -> Result<Arc<TrustTable>> {
    TrustTable::new(records).map(Arc::new).map_err(|why| {
        Error::invalid(match why {
            NoTable::Empty => "a trust table without a subnet allows nobody",
            NoTable::Prefix => "a subnet's prefix is longer than its address",
            NoTable::Rule => "the trust table names no rule that there is",
            NoTable::Ambiguous => "the trust table has two rules for one subnet",
        })
    })
}

/// Destinations from their records; without any, no header may lead anywhere.
///
/// # Errors
/// `INVALID`.
pub fn destinations_of(records: &[DestinationRecord]) -> Result<Arc<Destinations>> {
    Destinations::new(records).map(Arc::new).ok_or_else(|| {
        Error::invalid("a destination's prefix is longer than its address, or its ports are none")
    })
}
