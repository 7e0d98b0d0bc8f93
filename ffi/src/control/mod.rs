//! The control socket: commands of the operator, from the same host and user.
//!
//! `server.rs` takes one line a connection and hands it to the program, which answers with one line;
//! `client.rs` is the other end. What the lines say is TypeScript's.

pub mod client;
pub mod server;

/// Bytes of a request at most, with its line feed.
pub const MOST_REQUEST: usize = 4096;
