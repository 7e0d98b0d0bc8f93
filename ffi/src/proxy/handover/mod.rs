//! A hand-over: a new program takes the listening sockets and the UDP flows of a running one, over its control
//! socket.
//!
//! `give.rs` is the old program's side, `take.rs` the new one's; `stages.rs` has the steps of the old program's
//! workers, `wire.rs` the format on the connection. The order is essential:
//!
//! 1. The new program receives the descriptors of the listening sockets, starts with them, and reports that it is
//!    ready. Both programs now have the same sockets, with one queue each: no connection is refused. The old one reads.
//! 2. The old program's workers stop reading from these sockets, and from the upstream sockets of their UDP flows;
//!    datagrams wait in the sockets.
//! 3. The flows are sent to the new program, which counts them and reports that it has them all.
//! 4. The old program sends "go". Up to here it continues with everything it had if any step fails, and the new one
//!    never reads.
//! 5. The new program reads, and reports it. If it exits before that, the old one continues with everything it had.

pub mod give;
pub mod stages;
pub mod take;
pub mod wire;
