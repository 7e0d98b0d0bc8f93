//! Pipes for `splice`: a relay borrows one only while bytes are inside it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::socket::check;

/// Pipes that a thread keeps for later.
const KEPT: usize = 64;

/// A pipe of the kernel's default size, 64 KiB: larger ones make receive queues overflow
/// (docs/performance.md).
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// What a pipe can hold, in bytes.
    pub const CAPACITY: usize = 64 << 10;

    fn new() -> io::Result<Pipe> {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written to `ends`.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        // SAFETY: the kernel just gave us these descriptors, and nobody else has them.
        unsafe {
            Ok(Pipe { read: OwnedFd::from_raw_fd(ends[0]), write: OwnedFd::from_raw_fd(ends[1]) })
        }
    }

    /// The end to take bytes from.
    pub fn outlet(&self) -> RawFd {
        self.read.as_raw_fd()
    }

    /// The end to put bytes into.
    pub fn inlet(&self) -> RawFd {
        self.write.as_raw_fd()
    }
}

/// The empty pipes of one thread.
#[derive(Default)]
pub struct Pipes {
    idle: Vec<Pipe>,
}

impl Pipes {
    /// An empty pipe.
    pub fn take(&mut self) -> io::Result<Pipe> {
        self.idle.pop().map_or_else(Pipe::new, Ok)
    }

    /// Gives an empty pipe back.
    pub fn put(&mut self, pipe: Pipe) {
        if self.idle.len() < KEPT {
            self.idle.push(pipe);
        }
    }
}
