//! Which peers a listener's thread lets in: its own copy of the service's subnets.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::proxy::service::Service;
use crate::trust::subnets::Subnets;

/// The subnets as the thread last saw them; none allows all.
#[derive(Default)]
pub struct Allowed {
    subnets: Option<Arc<Subnets>>,
    version: u32,
}

impl Allowed {
    /// Looks whether the service's subnets have changed; takes the lock only when they have.
    #[inline]
    pub fn refresh(&mut self, service: &Service) -> bool {
        let version = service.subnets_version();
        if version == self.version {
            return false;
        }
        self.version = version;
        self.subnets = service.subnets();
        true
    }

    /// Whether a peer may send headers. One without an address may not, where there are subnets.
    #[inline]
    pub fn allows(&self, peer: Option<SocketAddr>) -> bool {
        match (&self.subnets, peer) {
            (None, _) => true,
            (Some(subnets), Some(peer)) => subnets.contain(peer.ip()),
            (Some(_), None) => false,
        }
    }
}
