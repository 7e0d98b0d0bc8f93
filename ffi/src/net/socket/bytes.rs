//! Bytes in and out of a connection.

use std::io;
use std::os::fd::RawFd;

use libc::c_int;

use super::call::{check, sized};

/// Receives bytes; 0 is the end of the stream (recv(2)).
#[inline]
pub fn receive(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    sized(|| unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), 0) })
}

/// Sends bytes, perhaps not all; a closed peer is an error, not a signal (send(2)).
#[inline]
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    send_with(fd, bytes, 0)
}

/// The same, with the last of the bytes marked as urgent (tcp(7)).
pub fn send_urgent(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    send_with(fd, bytes, libc::MSG_OOB)
}

#[inline]
fn send_with(fd: RawFd, bytes: &[u8], flags: c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: the buffer is valid for its length.
    sized(|| unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Whether the next byte is the one that is marked as urgent (sockatmark(3)).
pub fn is_at_mark(fd: RawFd) -> bool {
    // asm-generic/sockios.h; the crate libc does not have it.
    const SIOCATMARK: libc::Ioctl = 0x8905;
    let mut at: c_int = 0;
    // SAFETY: the kernel writes an int to `at`. A socket that cannot say has no mark.
    unsafe { libc::ioctl(fd, SIOCATMARK, &mut at) == 0 && at != 0 }
}

/// Moves up to `length` bytes between a socket and a pipe, within the kernel (splice(2)).
#[inline]
pub fn splice(from: RawFd, to: RawFd, length: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: null offsets are what sockets and pipes need; no other pointers are passed.
    sized(|| unsafe {
        libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags)
    })
}

/// Ends the sending direction of a connection (shutdown(2)).
pub fn finish_sending(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::shutdown(fd, libc::SHUT_WR) })?;
    Ok(())
}
