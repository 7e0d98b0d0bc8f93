//! A listener's UDP port as one worker's logic knows it.

use std::sync::Arc;

use super::directory::Directory;
use super::edge::Kinds;

/// It never changes: flows keep the one that they were opened by.
pub struct Port<K: Kinds> {
    /// No other port of the worker ever has it: with the owner it is a flow's identity.
    pub id: u32,
    /// Its listener. Listeners share the worker's room for flows.
    pub listener: u32,
    /// One of `udp_header`.
    pub mode: u32,
    /// Some peers need not send a header.
    pub mixed: bool,
    /// A client has a flow for each upstream: the header, or the port that was addressed, says which.
    pub many_upstreams: bool,
    /// Milliseconds after which what is idle ends.
    pub close_after: u64,
    /// The port's flows, over all workers.
    pub directory: Arc<Directory<K::Socket>>,
    /// What the outside needs of it.
    pub outside: K::Port,
}
