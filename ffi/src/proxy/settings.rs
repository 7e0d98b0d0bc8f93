//! The checked configuration.

use std::net::SocketAddr;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::{level, udp_header, ListenerConfig, ProxyConfig};
use crate::tcp::keepalive::Keepalive;

/// What holds for the whole proxy.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    pub workers: usize,
    pub log_level: u8,
    /// Where the metrics are served over TCP, if they are: no upstream may be there.
    pub metrics: Option<SocketAddr>,
    /// Flows count what they carry, though no access log requests it.
    pub counts_traffic: bool,
}

/// What there may be at once, over all workers and listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    pub flows: usize,
    /// More wait to be accepted.
    pub connections: usize,
    /// Two descriptors each; 0 splices nothing.
    pub pipes: usize,
}

/// What one listener requests. Times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// One of `udp_header`.
    pub udp_header: u32,
    pub mark: u32,
    pub header_timeout: u64,
    pub connect_timeout: u64,
    /// Silence after which a UDP flow ends.
    pub close_after: u64,
    pub keepalive: Keepalive,
    /// Time without a byte after which a TCP connection ends, if it ever does.
    pub idle_timeout: Option<u64>,
    /// Nobody may connect whom the trust table does not name, even before there is one.
    pub restricted: bool,
    /// How long a peer whose header is optional may be silent.
    pub optional_wait: u64,
    /// Relayed connections of one client, over all workers, if there is a limit.
    pub max_connections_per_client: Option<u32>,
    /// Connections, whether their header has come or not, over all workers, if there is a limit.
    pub max_connections: Option<u32>,
    /// UDP flows over all workers, if there is a limit.
    pub max_flows: Option<u32>,
}

impl ProxySettings {
    /// # Errors
    /// `INVALID` without a worker.
    pub fn new(config: &ProxyConfig) -> Result<ProxySettings> {
        if config.workers == 0 {
            return Err(Error::invalid("a proxy needs a worker"));
        }
        Ok(ProxySettings {
            workers: config.workers as usize,
            log_level: u8::try_from(config.log_level).unwrap_or(level::DEBUG),
            metrics: config.metrics.socket_addr(),
            counts_traffic: config.counts_traffic != 0,
        })
    }

    /// Settings for tests, with one worker.
    #[cfg(test)]
    pub fn for_tests() -> ProxySettings {
        ProxySettings { workers: 1, log_level: level::DEBUG, metrics: None, counts_traffic: true }
    }
}

impl Budgets {
    /// The share of one of this many workers: a flow and a connection at least, but perhaps no pipe.
    pub fn of_a_worker(self, workers: usize) -> Budgets {
        Budgets {
            flows: (self.flows / workers).max(1),
            connections: (self.connections / workers).max(1),
            pipes: self.pipes / workers,
        }
    }

    /// From how many addresses there may be replies at once, next to the listening sockets: each takes a
    /// descriptor. Flows are more where clients are many, and fewer if they are few and talk to many ports.
    pub fn reply_sources(self) -> usize {
        (self.flows / 4).max(1)
    }

    #[cfg(test)]
    pub const FOR_TESTS: Budgets = Budgets { flows: 16, connections: 16, pipes: 4 };
}

impl Settings {
    /// # Errors
    /// `INVALID` for a header form that there is not.
    pub fn new(config: &ListenerConfig) -> Result<Settings> {
        if config.udp_header > udp_header::SPP {
            return Err(Error::invalid("the configuration names no header form that there is"));
        }
        Ok(Settings {
            udp_header: config.udp_header,
            mark: config.mark,
            header_timeout: u64::from(config.header_timeout_ms),
            connect_timeout: u64::from(config.connect_timeout_ms),
            close_after: u64::from(config.close_after_ms),
            keepalive: Keepalive::new(config.keepalive_ms / 1000),
            idle_timeout: (config.idle_timeout_ms > 0).then(|| u64::from(config.idle_timeout_ms)),
            restricted: config.restricted != 0,
            optional_wait: u64::from(config.optional_wait_ms),
            max_connections_per_client: limit(config.max_connections_per_client),
            max_connections: limit(config.max_connections),
            max_flows: limit(config.max_flows),
        })
    }

    /// Settings for tests to change.
    #[cfg(test)]
    pub fn for_tests() -> Settings {
        Settings {
            udp_header: udp_header::DATAGRAM,
            mark: 0,
            header_timeout: 10_000,
            connect_timeout: 5_000,
            close_after: 60_000,
            keepalive: Keepalive::new(15),
            idle_timeout: None,
            restricted: false,
            optional_wait: 3_000,
            max_connections_per_client: None,
            max_connections: None,
            max_flows: None,
        }
    }
}

/// A limit of a record, where 0 is none.
fn limit(most: u32) -> Option<u32> {
    (most > 0).then_some(most)
}
