//! Which datagrams may leave as segments of one send (udp(7), UDP_SEGMENT).

use std::io;

/// Segments in one send: the kernel's UDP_MAX_SEGMENTS before Linux 6.9.
pub const SEGMENTS: usize = 64;
/// The kernel refuses segmented sends of more bytes.
const MOST_BYTES: usize = 65_000;

/// Datagrams that are to leave together.
#[derive(Clone, Copy, Default)]
pub struct Run {
    pub count: usize,
    /// Bytes of all of them.
    bytes: usize,
    /// Bytes of the first: what each segment has, but for the last.
    pub first: usize,
    last: usize,
}

impl Run {
    /// A run of one datagram.
    pub fn of(length: usize) -> Run {
        Run { count: 1, bytes: length, first: length, last: length }
    }

    /// Whether a datagram of this length can be the next segment: all but the last are of one length,
    /// and the last is not longer.
    #[inline]
    pub fn takes(&self, length: usize) -> bool {
        length > 0
            && length <= self.first
            && self.last == self.first
            && self.count < SEGMENTS
            && self.bytes + length <= MOST_BYTES
    }

    /// Adds a datagram that the run takes.
    #[inline]
    pub fn push(&mut self, length: usize) {
        self.count += 1;
        self.bytes += length;
        self.last = length;
    }

    /// Bytes of all datagrams.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Whether the kernel refused the segmentation, not the datagrams: each may go by itself then.
///
/// EIO: the device computes no checksums. EINVAL, EMSGSIZE: a segment exceeds the path's MTU; such a
/// datagram goes out in fragments when it is sent alone (udp(7)).
pub fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

/// Whether no segmented send will ever go this way: the device computes no checksums.
pub fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_last_are_of_one_length() {
        let mut run = Run::of(100);
        assert!(run.takes(100));
        run.push(100);
        assert!(!run.takes(101));
        assert!(!run.takes(0));
        assert!(run.takes(7));
        run.push(7);
        assert!(!run.takes(7), "a shorter one was the last");
        assert_eq!((run.count, run.bytes()), (3, 207));
    }

    #[test]
    fn a_run_is_bounded_in_segments_and_bytes() {
        let mut run = Run::of(1);
        while run.takes(1) {
            run.push(1);
        }
        assert_eq!(run.count, SEGMENTS);
        let mut run = Run::of(30_000);
        run.push(30_000);
        assert!(!run.takes(30_000));
    }
}
