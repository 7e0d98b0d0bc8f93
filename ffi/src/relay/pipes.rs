//! Pipes for `splice`: a relay borrows one only while bytes are inside it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::socket::check;

/// What a pipe holds that was not asked to hold more.
const DEFAULT: usize = 64 << 10;
/// Pipes that a thread keeps for later.
const KEPT: usize = 64;

/// What a pipe is asked to hold: as much as every user may have (pipe(7), pipe-max-size). A larger one
/// costs less CPU for each byte (docs/decisions/0010-pipes-of-1-mib.md).
const WANTED: i32 = 1 << 20;

/// A pipe, and how much it holds.
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written to `ends`.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        // SAFETY: the kernel just gave us these descriptors, and nobody else has them.
        let (read, write) =
            unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: no pointers are passed. A user who has many pipes gets no larger ones (pipe(7),
        // pipe-user-pages-soft): then the default does.
        let capacity = unsafe { libc::fcntl(ends[0], libc::F_SETPIPE_SZ, WANTED) };
        let capacity = usize::try_from(capacity).unwrap_or(DEFAULT);
        Ok(Pipe { read, write, capacity })
    }

    /// What it can hold, in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
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
