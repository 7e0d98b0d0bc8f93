//! Pipes for `splice`: a relay borrows one only while bytes are in it.
//!
//! A stalled reader keeps its pipe, so there is a budget: descriptors are for connections first
//! (docs/decisions/0051-a-budget-of-pipes.md).

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use crate::net::socket::{check, sized};

/// What a pipe holds that was not asked to hold more.
const DEFAULT: usize = 64 << 10;
/// Empty pipes that a thread keeps for later.
const KEPT: usize = 64;

/// What a pipe is asked to hold: as much as every user may have (pipe(7), pipe-max-size). A larger one
/// costs less CPU for each byte (docs/decisions/0010-pipes-of-1-mib.md).
const WANTED: i32 = 1 << 20;

/// A pipe, and how much it holds.
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    /// How many of the thread's pipes are open, this one among them.
    open: Rc<Cell<usize>>,
}

impl Pipe {
    fn new(open: &Rc<Cell<usize>>) -> io::Result<Pipe> {
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
        open.set(open.get() + 1);
        Ok(Pipe { read, write, capacity, open: open.clone() })
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

    /// Moves bytes that are in the pipe out of it, as many as `into` has room for.
    pub fn empty(&self, into: &mut [u8]) -> io::Result<()> {
        let mut taken = 0;
        while taken < into.len() {
            let room = &mut into[taken..];
            // SAFETY: the buffer is valid for its length.
            let read = sized(|| unsafe {
                libc::read(self.outlet(), room.as_mut_ptr().cast(), room.len())
            })?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            taken += read;
        }
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

/// The pipes of one thread: the empty ones, and how many there may be.
pub struct Pipes {
    idle: Vec<Pipe>,
    open: Rc<Cell<usize>>,
    most: usize,
}

impl Pipes {
    /// At most `most` pipes at a time, lent ones among them; 0 lends none.
    pub fn new(most: usize) -> Pipes {
        Pipes { idle: Vec::new(), open: Rc::default(), most }
    }

    /// Changes how many there may be. Those that are lent and too many are closed when they come back.
    pub fn limit(&mut self, most: usize) {
        self.most = most;
        while self.open.get() > most && self.idle.pop().is_some() {}
    }

    /// An empty pipe; none when all are lent, or there is no descriptor for one.
    pub fn take(&mut self) -> Option<Pipe> {
        let new = || if self.open.get() < self.most { Pipe::new(&self.open).ok() } else { None };
        self.idle.pop().or_else(new)
    }

    /// Gives an empty pipe back.
    pub fn put(&mut self, pipe: Pipe) {
        if self.idle.len() < KEPT && self.open.get() <= self.most {
            self.idle.push(pipe);
        }
    }

    /// How many more can be lent, as far as there are descriptors.
    pub fn left(&self) -> usize {
        (self.idle.len() + self.most).saturating_sub(self.open.get())
    }

    /// How many are lent.
    #[cfg(test)]
    pub fn lent(&self) -> usize {
        self.open.get() - self.idle.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_lent_than_there_may_be() {
        let mut pipes = Pipes::new(2);
        let (first, second) = (pipes.take().unwrap(), pipes.take().unwrap());
        assert!(pipes.take().is_none());
        assert_eq!((pipes.left(), pipes.lent()), (0, 2));
        pipes.put(first);
        assert_eq!((pipes.left(), pipes.lent()), (1, 1));
        let third = pipes.take().unwrap();
        // A connection that ends takes its pipe with it, and another may be made.
        drop(second);
        assert!(pipes.take().is_some());
        drop(third);
        assert_eq!(pipes.lent(), 0);
        assert!(Pipes::new(0).take().is_none());
    }

    #[test]
    fn a_thread_keeps_few_empty_ones() {
        let mut pipes = Pipes::new(2 * KEPT);
        let lent: Vec<Pipe> = (0..2 * KEPT).map(|_| pipes.take().unwrap()).collect();
        lent.into_iter().for_each(|pipe| pipes.put(pipe));
        assert_eq!((pipes.open.get(), pipes.lent()), (KEPT, 0));
    }
}
