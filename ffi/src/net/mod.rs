//! Sockets. Knows nothing of a proxy.

pub mod socket;
