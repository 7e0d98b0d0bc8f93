//! The map of entries, as memory that the BPF program and this one share.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{addr_of_mut, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::record::{Direction, Entry};

/// The entries. Each is one connection's, whose worker alone writes to it here.
pub struct Entries {
    first: NonNull<Entry>,
    count: usize,
}

// SAFETY: the memory is shared with the kernel anyway; every access below is volatile or atomic.
unsafe impl Send for Entries {}
// SAFETY: as above.
unsafe impl Sync for Entries {}

impl Entries {
    /// Maps `count` entries of a map (BPF_F_MMAPABLE, Linux 5.5).
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(map: &impl AsFd, count: usize) -> io::Result<Entries> {
        let length = count * size_of::<Entry>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel puts it.
        let address = unsafe {
            let fd = map.as_fd().as_raw_fd();
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Entries { first, count })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    fn at(&self, index: u32) -> *mut Entry {
        assert!((index as usize) < self.count, "an entry that there is");
        // SAFETY: inside of the mapping, by the line above.
        unsafe { self.first.as_ptr().add(index as usize) }
    }

    /// Writes an entry that no packet finds yet.
    pub fn write(&self, index: u32, entry: &Entry) {
        // SAFETY: `at` is inside of the mapping and aligned: the kernel aligns values to 8 bytes.
        unsafe { self.at(index).write_volatile(*entry) }
    }

    /// An entry as it is; its fields may be of different moments.
    pub fn entry(&self, index: u32) -> Entry {
        // SAFETY: as above; every bit pattern is an `Entry`.
        unsafe { self.at(index).read_volatile() }
    }

    /// A direction as it is; its fields may be of different moments.
    pub fn direction(&self, index: u32, direction: usize) -> Direction {
        // SAFETY: as above; every bit pattern is a `Direction`.
        unsafe { addr_of_mut!((*self.at(index)).directions[direction & 1]).read_volatile() }
    }

    fn word(&self, field: impl Fn(*mut Entry) -> *mut u32, index: u32) -> &AtomicU32 {
        // SAFETY: inside of the mapping, which lives as long as `self`; the kernel writes whole words.
        unsafe { AtomicU32::from_ptr(field(self.at(index))) }
    }

    /// How far an entry is.
    pub fn state(&self, index: u32) -> &AtomicU32 {
        // SAFETY: only the field's address is taken.
        self.word(|entry| unsafe { addr_of_mut!((*entry).state) }, index)
    }

    /// Whether the proxy's sockets still wait for acknowledgements.
    pub fn draining(&self, index: u32) -> &AtomicU32 {
        // SAFETY: only the field's address is taken.
        self.word(|entry| unsafe { addr_of_mut!((*entry).draining) }, index)
    }

    /// Where what the proxy's socket has written ends.
    pub fn boundary(&self, index: u32, direction: usize) -> &AtomicU32 {
        let of = |entry: *mut Entry| {
            // SAFETY: only the field's address is taken.
            unsafe { addr_of_mut!((*entry).directions[direction & 1].boundary) }
        };
        self.word(of, index)
    }

    /// What was seen of a direction, and the number behind its FIN.
    pub fn seen(&self, index: u32, direction: usize) -> &AtomicU32 {
        // SAFETY: only the field's address is taken.
        let of =
            |entry: *mut Entry| unsafe { addr_of_mut!((*entry).directions[direction & 1].seen) };
        self.word(of, index)
    }

    pub fn fin(&self, index: u32, direction: usize) -> &AtomicU32 {
        // SAFETY: only the field's address is taken.
        let of =
            |entry: *mut Entry| unsafe { addr_of_mut!((*entry).directions[direction & 1].fin) };
        self.word(of, index)
    }

    /// The largest window of a direction's receiver.
    pub fn reach(&self, index: u32, direction: usize) -> &AtomicU32 {
        let of = |entry: *mut Entry| {
            // SAFETY: only the field's address is taken.
            unsafe { addr_of_mut!((*entry).directions[direction & 1].reach) }
        };
        self.word(of, index)
    }

    /// Sets how packets of a direction leave, of an entry that is still watched.
    pub fn leave_by(&self, index: u32, direction: usize, out: u32, interface: u32) {
        let direction = direction & 1;
        // SAFETY: only the fields' addresses are taken.
        let out_of =
            |entry: *mut Entry| unsafe { addr_of_mut!((*entry).directions[direction].out) };
        self.word(out_of, index).store(out, Ordering::Relaxed);
        let interface_of = |entry: *mut Entry| {
            // SAFETY: as above.
            unsafe { addr_of_mut!((*entry).directions[direction].out_interface) }
        };
        self.word(interface_of, index).store(interface, Ordering::Relaxed);
    }

    /// Sets the clock that a direction's timestamps go on from, of an entry that is still watched.
    pub fn set_clock(&self, index: u32, direction: usize, milliseconds: u32, at: u64) {
        let direction = direction & 1;
        let base = |entry: *mut Entry| {
            // SAFETY: only the field's address is taken.
            unsafe { addr_of_mut!((*entry).directions[direction].timestamp_base) }
        };
        self.word(base, index).store(milliseconds, Ordering::Relaxed);
        let clock_at = |direction: *mut Direction| {
            // SAFETY: only the field's address is taken.
            unsafe { addr_of_mut!((*direction).clock_at) }
        };
        self.count_of(clock_at, index, direction).store(at, Ordering::Relaxed);
    }

    /// What the receiver of a direction has acknowledged.
    pub fn acknowledged(&self, index: u32, direction: usize) -> &AtomicU64 {
        // SAFETY: only the field's address is taken.
        let of = |direction: *mut Direction| unsafe { addr_of_mut!((*direction).acknowledged) };
        self.count_of(of, index, direction)
    }

    /// What its sender has sent.
    pub fn sent(&self, index: u32, direction: usize) -> &AtomicU64 {
        // SAFETY: only the field's address is taken.
        let of = |direction: *mut Direction| unsafe { addr_of_mut!((*direction).sent) };
        self.count_of(of, index, direction)
    }

    fn count_of(
        &self,
        field: impl Fn(*mut Direction) -> *mut u64,
        index: u32,
        direction: usize,
    ) -> &AtomicU64 {
        // SAFETY: as in `word`; the fields are aligned to 8 bytes.
        unsafe {
            let direction = addr_of_mut!((*self.at(index)).directions[direction & 1]);
            AtomicU64::from_ptr(field(direction))
        }
    }
}

/// Raises a count of 64 bits to a number, which its low half is to be; never backwards. What the count would be if it
/// were that number.
pub fn raise(count: &AtomicU64, number: u32) -> u64 {
    let seen = count.load(Ordering::Relaxed);
    let ahead = number.wrapping_sub(seen as u32) as i32;
    let noted = seen.wrapping_add_signed(i64::from(ahead));
    count.fetch_max(noted, Ordering::Relaxed);
    noted
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<Entry>()) };
    }
}
