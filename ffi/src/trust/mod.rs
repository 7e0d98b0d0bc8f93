//! Which peers may send headers, and whom a header may name: the subnets, this host's addresses, and the
//! judgement on a client.

pub mod addresses;
pub mod client;
pub mod host;
pub mod subnets;
