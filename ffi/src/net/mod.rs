//! Sockets. Knows nothing of a proxy.

pub mod descriptors;
pub mod network;
pub mod socket;
pub mod subnet;
