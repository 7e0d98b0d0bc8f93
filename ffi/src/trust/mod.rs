//! Which peers may connect, which clients a header may name, and which destinations it may select: the trust table and
//! this host's addresses.

pub mod addresses;
pub mod client;
pub mod destinations;
pub mod host;
pub mod subnets;
pub mod table;
