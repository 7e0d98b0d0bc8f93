//! Socket options and socket state.

use std::io;
use std::mem::{size_of, zeroed, ManuallyDrop};
use std::os::fd::{FromRawFd, RawFd};
use std::time::Duration;

use libc::{c_int, socklen_t};
use socket2::Socket;

use super::call::check;

/// A descriptor of the caller's, for the options that `socket2` has.
pub(super) fn options(fd: RawFd) -> ManuallyDrop<Socket> {
    // SAFETY: the socket is not dropped, so the descriptor stays the caller's, who has it open.
    ManuallyDrop::new(unsafe { Socket::from_raw_fd(fd) })
}

/// Sets a receive buffer, past net.core.rmem_max where the process may (socket(7)).
pub fn set_receive_buffer(fd: RawFd, bytes: c_int) {
    if set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        // Without CAP_NET_ADMIN the limit of the system applies, which is not a reason to fail.
        let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
    }
}

/// The mark of a socket's packets; 0 without one.
pub fn mark(fd: RawFd) -> u32 {
    options(fd).mark().unwrap_or(0)
}

/// Makes close(2) send a reset, so that a reset is relayed as one (socket(7), SO_LINGER).
pub fn reset_on_close(fd: RawFd) {
    // If the option cannot be set, the socket is closed normally.
    let _ = options(fd).set_linger(Some(Duration::ZERO));
}

/// Makes close(2) end a connection as usual again.
pub fn finish_on_close(fd: RawFd) {
    // If the option cannot be set, a stream that was complete ends with a reset.
    let _ = options(fd).set_linger(None);
}

/// The error that a socket holds, or 0 (socket(7), SO_ERROR).
pub fn take_error(fd: RawFd) -> i32 {
    match options(fd).take_error() {
        Ok(error) => error.and_then(|error| error.raw_os_error()).unwrap_or(0),
        Err(_) => libc::EBADF,
    }
}

/// How long nothing has come from the other end of a connection, and how many probes were unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Milliseconds since data or an acknowledgement came.
    pub ms: u32,
    /// Retransmissions, or probes, that nothing has answered.
    pub tries: u8,
}

/// The state of a connection; healthy if the kernel does not say (tcp(7), TCP_INFO).
pub fn unanswered(fd: RawFd) -> Unanswered {
    // SAFETY: zeroes are a valid `tcp_info`.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as socklen_t;
    // SAFETY: `info` has `length` bytes and outlives the call; what an older kernel leaves out stays
    // zero.
    unsafe {
        libc::getsockopt(fd, libc::SOL_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut length)
    };
    Unanswered {
        ms: info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv),
        tries: info.tcpi_retransmits.max(info.tcpi_probes),
    }
}

/// Lets a socket have addresses that are not this host's, and take what TPROXY hands it (ip(7),
/// IP_TRANSPARENT). For IPv6 it covers IPv4 too.
///
/// # Errors
/// EPERM without CAP_NET_RAW and CAP_NET_ADMIN.
pub(super) fn set_transparent(fd: RawFd, ipv4: bool) -> io::Result<()> {
    match ipv4 {
        true => options(fd).set_ip_transparent_v4(true),
        false => options(fd).set_ip_transparent_v6(true),
    }
}

/// Sets an option that is a number and that `socket2` does not have (setsockopt(2)).
pub fn set_int(fd: RawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as socklen_t;
    // SAFETY: the value is valid for its size and outlives the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) })?;
    Ok(())
}

/// Whether a socket may have addresses that are not this host's.
pub(super) fn is_transparent(fd: RawFd, ipv4: bool) -> io::Result<bool> {
    match ipv4 {
        true => options(fd).ip_transparent_v4(),
        false => options(fd).ip_transparent_v6(),
    }
}

/// Reads an option that is a number (getsockopt(2)).
#[cfg(test)]
pub fn get_int(fd: RawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: `value` has `length` bytes and outlives the call.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) })?;
    Ok(value)
}
