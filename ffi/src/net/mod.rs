//! Sockets. This module knows nothing about proxies.

pub mod descriptors;
pub mod network;
pub mod socket;
pub mod subnet;
