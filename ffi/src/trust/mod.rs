//! Which peers may connect, and whom a header may name: the trust table, this host's addresses, the
//! judgement on a client; and where a header may lead.

pub mod addresses;
pub mod client;
pub mod destinations;
pub mod host;
pub mod subnets;
pub mod table;
