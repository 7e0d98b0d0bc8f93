//! This process's use of resources: proc(5), getrusage(2), getrlimit(2).

use std::io;

use crate::abi::errors::{Error, Result};
use crate::abi::layout::UsageRecord;

/// What it uses now. Works inside the sandbox.
pub fn usage() -> Result<UsageRecord> {
    let refused =
        |what: &str, error: io::Error| Error::system(format!("Cannot read {what}"), &error);
    let pages = std::fs::read_to_string("/proc/self/statm")
        .map_err(|error| refused("/proc/self/statm", error))?;
    let files = std::fs::read_dir("/proc/self/fd")
        .map_err(|error| refused("/proc/self/fd", error))?
        .count() as u64;
    let (virtual_pages, resident_pages) = sizes(&pages)
        .ok_or_else(|| Error::invalid("Cannot read /proc/self/statm: not two numbers"))?;
    Ok(UsageRecord {
        virtual_bytes: virtual_pages * page_size(),
        resident_bytes: resident_pages * page_size(),
        // One of them is that of the listing.
        open_files: files.saturating_sub(1),
        file_limit: file_limit(),
        cpu_us: cpu_us().map_err(|error| refused("the CPU time", error))?,
    })
}

/// The first two fields of `/proc/self/statm`: all pages, and those in memory.
fn sizes(statm: &str) -> Option<(u64, u64)> {
    let mut fields = statm.split_ascii_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

fn page_size() -> u64 {
    // SAFETY: no pointer is involved.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The limit in force; no limit is the largest number.
fn file_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the length of the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}

/// User and system time of all threads, those that have ended among them, in microseconds.
fn cpu_us() -> io::Result<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is valid for writing; zeros are a valid `rusage`.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        usage.assume_init()
    };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Ok(us(usage.ru_utime) + us(usage.ru_stime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_what_it_opens_and_computes() {
        let before = usage().unwrap();
        assert!(before.resident_bytes > 0 && before.virtual_bytes >= before.resident_bytes);
        assert!(before.open_files >= 3 && before.open_files < before.file_limit, "{before:?}");
        // More than other tests of this process open or close meanwhile.
        let files: Vec<_> = (0..200).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let kept = vec![1u8; 64 << 20];
        while usage().unwrap().cpu_us == before.cpu_us {
            std::hint::black_box(&kept);
        }
        let after = usage().unwrap();
        assert!(after.open_files >= before.open_files + 100, "{before:?} {after:?}");
        assert!(after.cpu_us > before.cpu_us);
        drop((files, kept));
    }

    #[test]
    fn sizes_are_two_numbers() {
        assert_eq!(sizes("123 45 6 7 0 8 0\n"), Some((123, 45)));
        assert_eq!(sizes("123\n"), None);
        assert_eq!(sizes("x y\n"), None);
    }
}
