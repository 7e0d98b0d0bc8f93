//! The service behind as a BPF program: nothing but the kernel's own cost of a segment.

use std::net::SocketAddr;

use pico_args::Arguments;

use crate::options::{Common, Result};
use crate::run::{report_ready, wait_for_end_of_input};
use crate::sys;
use crate::tcp::{finish, listen};

/// `bpf-echo`: prints a line `{"ready":1}` and serves until standard input ends (at most
/// `--seconds`).
pub fn bpf_echo(mut arguments: Arguments) -> Result<()> {
    let common = Common::parse(&mut arguments)?;
    finish(arguments)?;
    let SocketAddr::V4(server) = common.server else {
        return Err("Option --server: the BPF echo is for IPv4 alone".to_owned());
    };
    // It answers the handshake's first segment; the rest never reaches it.
    let _listener = listen(common.server)?;
    let _attached = sys::echo_on_loopback(server).map_err(|error| {
        format!(
            "Cannot attach a BPF program to loopback: {error}; it needs Linux 6.6 and the \
             machine's own root, not a user namespace's"
        )
    })?;
    report_ready(1);
    wait_for_end_of_input(common.timing.measure)
}
