//! Every system call on sockets, with the kernel's reasons, by subject.
//!
//! Callers pass values and get `io::Result`; nothing here keeps state or logs.

mod address;
mod bytes;
mod call;
mod dscp;
mod host;
mod listen;
mod options;
mod repair;
mod upstream;

pub use address::RawAddr;
pub use bytes::{finish_sending, is_at_mark, receive, send, send_urgent, splice};
pub use call::{check, sized};
pub use dscp::{peer_dscp, receive_dscp, set_dscp, DSCP};
pub use host::{check_capabilities, has_way_to, host_paces, is_own};
pub use listen::{
    accept, check_free, check_listening, is_waiting, reply_source, tcp_listener, udp_listener,
    Listen,
};
#[cfg(test)]
pub use options::get_int;
pub use options::{
    finish_on_close, mark, reset_on_close, set_int, set_receive_buffer, take_error, unanswered,
    Unanswered,
};
pub use repair::{
    acknowledge, ask, ask_by, clock, keep_silent, largest_segment_of_path, leave, limit_window,
    numbers, position, reset, unacknowledged, unread, unsent, write_next, End, Numbers, Position,
};
pub use upstream::{
    check_upstream, connect_tcp, connect_udp, errno, is_other_source, is_out_of_descriptors,
    local_address, Source, TcpOptions, OTHER_SOURCE,
};
