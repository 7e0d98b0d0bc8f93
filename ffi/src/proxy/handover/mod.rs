//! A hand-over: a new program takes the listening sockets and the UDP flows of a running one, over its control
//! socket.
//!
//! `give.rs` is the old program's side, `take.rs` the new one's; `stages.rs` is what the old one's workers do
//! meanwhile, `wire.rs` the form of what goes over the connection. The order is the point:
//!
//! 1. The new program gets descriptors of what listens, starts with them, and says that it is ready. Both have
//!    the same sockets now, with one queue each: nobody is refused. The old one reads.
//! 2. The old program's workers stop reading from these sockets, and from the upstream sockets of their UDP
//!    flows; datagrams wait in the sockets.
//! 3. The flows go to the new program, which counts them and says that it has all.
//! 4. The old program says go. Up to here it goes on with all that it had whenever something fails, and the new
//!    one never reads.
//! 5. The new program reads, and says so. Where it ends before, the old one goes on with all that it had.

pub mod give;
pub mod stages;
pub mod take;
pub mod wire;
