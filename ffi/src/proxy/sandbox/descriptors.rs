//! Replaces descriptors of files that were opened for writing before the sandbox by read-only ones.
//!
//! Deno keeps its caches open while it runs, one of them with compiled code that its next start runs: an intruder
//! who could write there would be back after a restart, with all permissions of the start.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::net::socket::check;
use crate::system::files;

/// A file that is open for writing.
pub struct Writable {
    descriptor: RawFd,
    path: PathBuf,
}

/// Replaces each by one that can only be read from; how many there were.
///
/// What stays: standard output and error, where the log goes; kernel parameters that are to be set back at
/// the end; and a file that is mapped for writing as well, which a descriptor less would not change. That
/// is the index of a write-ahead log of SQLite: it has no content of the database, a start makes it again,
/// and without the lock on it a reader waits for minutes.
pub fn seal() -> io::Result<usize> {
    let writable = writable()?;
    for file in &writable {
        seal_one(file)?;
    }
    Ok(writable.len())
}

/// Regular files that this process may write to, but for those that stay so.
pub fn writable() -> io::Result<Vec<Writable>> {
    let standard: Vec<_> = (0..=2).filter_map(|fd| identity(fd).ok()).collect();
    let kept = files::kept();
    let maps = Maps::read()?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(descriptor) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        // SAFETY: no pointers are passed. One that was closed meanwhile has no flags.
        let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
        if descriptor <= 2 || flags < 0 || flags & libc::O_ACCMODE == libc::O_RDONLY {
            continue;
        }
        let Ok(identity @ (mode, _, _)) = identity(descriptor) else { continue };
        if mode & libc::S_IFMT != libc::S_IFREG
            || standard.contains(&identity)
            || kept.contains(&descriptor)
        {
            continue;
        }
        let Ok(path) = fs::read_link(format!("/proc/self/fd/{descriptor}")) else { continue };
        // Memory under a descriptor (memfd_create(2)), no file.
        let memory = path.as_os_str().as_bytes().starts_with(b"/memfd:");
        if memory || maps.of(&path).any(|mapping| mapping.writable) {
            continue;
        }
        found.push(Writable { descriptor, path });
    }
    Ok(found)
}

fn seal_one(file: &Writable) -> io::Result<()> {
    let name = CString::new(format!("/proc/self/fd/{}", file.descriptor))?;
    // SAFETY: the name is valid for the length of the call.
    let reading = check(unsafe { libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
    // A mapping of it may be made writable as long as it stems from a descriptor that is (mprotect(2)).
    let remapped = Maps::read().and_then(|maps| {
        maps.of(&file.path).try_for_each(|Mapping { start, length, offset, .. }| {
            // SAFETY: the range is a read-only, shared mapping of this very file, and gets the same pages
            // at the same place again, at once: who reads there sees no difference.
            let at = unsafe {
                let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_FIXED);
                libc::mmap(start as *mut libc::c_void, length, protection, flags, reading, offset)
            };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    });
    // SAFETY: no pointers are passed; both descriptors are open, and `reading` is this function's own.
    let replaced = remapped.and_then(|()| unsafe {
        check(libc::dup3(reading, file.descriptor, libc::O_CLOEXEC)).map(|_| ())
    });
    // SAFETY: as above.
    unsafe { libc::close(reading) };
    replaced
}

/// This process's memory, as /proc has it.
struct Maps(Vec<u8>);

/// A shared mapping of a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
    offset: i64,
    writable: bool,
}

impl Maps {
    fn read() -> io::Result<Maps> {
        fs::read("/proc/self/maps").map(Maps)
    }

    /// Those of this file.
    fn of<'a>(&'a self, file: &'a Path) -> impl Iterator<Item = Mapping> + 'a {
        self.0.split(|&byte| byte == b'\n').filter_map(|line| mapping(line, file))
    }
}

/// A line of proc_pid_maps(5): `start-end perms offset dev inode   path`.
fn mapping(line: &[u8], of: &Path) -> Option<Mapping> {
    let path_at = line.iter().position(|&byte| byte == b'/')?;
    let (numbers, path) = line.split_at(path_at);
    if path != of.as_os_str().as_bytes() {
        return None;
    }
    let mut fields = std::str::from_utf8(numbers).ok()?.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = i64::from_str_radix(fields.next()?, 16).ok()?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    let writable = permissions.contains('w');
    permissions.ends_with('s').then_some(Mapping { start, length, offset, writable })
}

type Identity = (libc::mode_t, libc::dev_t, libc::ino_t);

fn identity(descriptor: RawFd) -> io::Result<Identity> {
    // SAFETY: zeroes are a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is valid for the length of the call.
    check(unsafe { libc::fstat(descriptor, &mut stat) })?;
    Ok((stat.st_mode, stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_sealed_file_can_be_read_and_neither_written_nor_mapped_for_it() {
        let path = std::env::temp_dir().join(format!("mmproxy-seal-{}", std::process::id()));
        fs::write(&path, vec![b'a'; 4096]).unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: a new mapping of a file that is open.
        let map = unsafe {
            let shared = libc::MAP_SHARED;
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, shared, file.as_raw_fd(), 0)
        };
        assert_ne!(map, libc::MAP_FAILED);
        let found = writable().unwrap();
        let ours = found.iter().find(|found| found.descriptor == file.as_raw_fd()).unwrap();
        assert_eq!(ours.path, path);
        seal_one(ours).unwrap();

        let refused = file.write_all(b"b").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4095).unwrap();
        assert_eq!(&byte, b"a");
        // SAFETY: the mapping is of 4096 bytes, and readable.
        unsafe {
            assert_eq!(*map.cast::<u8>(), b'a');
            assert_eq!(libc::mprotect(map, 4096, libc::PROT_READ | libc::PROT_WRITE), -1);
            libc::munmap(map, 4096);
        }
        assert!(writable().unwrap().iter().all(|found| found.path != path));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_line_of_the_maps_is_read() {
        let line = b"7f00-8f00 r--s 00002000 08:01 42   /a b/c";
        let read = Mapping { start: 0x7f00, length: 0x1000, offset: 0x2000, writable: false };
        assert_eq!(mapping(line, Path::new("/a b/c")), Some(read));
        assert_eq!(mapping(line, Path::new("/a b")), None);
        let index = mapping(b"7f00-8f00 rw-s 0 08:01 42 /a", Path::new("/a"));
        assert!(index.is_some_and(|index| index.writable));
        assert_eq!(mapping(b"7f00-8f00 rw-p 0 08:01 42 /a", Path::new("/a")), None);
        assert_eq!(mapping(b"7f00-8f00 rw-p 0 00:00 0", Path::new("/a")), None);
    }
}
