//! Memory that a worker shares with its decoder: the verdict, followed by the header.

use crate::abi::layout::{Verdict, HEADER_OFFSET, MAX_HEADER, SCRATCH_SIZE};

/// The region, for the process's life.
pub struct Scratch {
    start: *mut u8,
}

// SAFETY: the memory is written only by the thread that serves the worker, inside `serve` and in the
// callback that `serve` calls; `Worker::serving` admits one such thread.
unsafe impl Send for Scratch {}
// SAFETY: as above.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// Allocated once a worker and never freed: TypeScript keeps a view of it.
    pub fn new() -> Scratch {
        let region = vec![0u64; SCRATCH_SIZE.div_ceil(8)].into_boxed_slice();
        Scratch { start: Box::leak(region).as_mut_ptr().cast() }
    }

    /// The region's first byte, aligned to 8.
    pub fn address(&self) -> *const u8 {
        self.start
    }

    /// Where a header goes: room for the longest, and one byte more.
    ///
    /// # Safety
    /// Only the serving thread may call it, and may hold one such slice at a time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn header(&self) -> &mut [u8] {
        // SAFETY: the region is SCRATCH_SIZE bytes, initialised and never freed; the caller promises
        // that no other slice of it lives.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(HEADER_OFFSET), MAX_HEADER + 1) }
    }

    /// What the decoder answered.
    ///
    /// # Safety
    /// Only the serving thread may call it.
    pub unsafe fn verdict(&self) -> Verdict {
        // SAFETY: the region starts with a `Verdict`, aligned, and any bit pattern is one.
        unsafe { self.start.cast::<Verdict>().read() }
    }
}
