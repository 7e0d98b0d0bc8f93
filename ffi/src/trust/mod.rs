//! Whom a header may name: this host's addresses, and the judgement on a client.

pub mod addresses;
pub mod client;
pub mod host;
