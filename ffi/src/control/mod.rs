//! The control socket: commands of the operator, from the same host and user.
//!
//! `server.rs` reads one line per connection and passes it to the program, which answers with one line;
//! `client.rs` is the other end. TypeScript defines the content of the lines.

pub mod client;
pub mod server;

/// Bytes of a request at most, with its line feed.
pub const MOST_REQUEST: usize = 4096;
