//! Sockets. Knows nothing of a proxy.

pub mod network;
pub mod socket;
pub mod subnet;
