//! TCP: a connection from its accept to its last byte.
//!
//! `connections.rs` accepts, frames the header and connects; `relay.rs` moves the bytes between the two
//! sides, through the pipes of `pipes.rs`.

pub mod connections;
pub mod keepalive;
mod offloading;
mod pending;
mod pipes;
mod ports;
mod relay;
mod watch;
