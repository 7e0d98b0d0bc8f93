//! Access to the file system and the process, so that `--allow-ffi` is sufficient.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::abi::errors::{Error, Result};
use crate::system::sync::lock;

const LARGEST: u64 = 64 << 20;

/// Reads a file; returns its size. A buffer that is too small gets nothing.
pub fn read(path: &[u8], content: &mut [u8]) -> Result<i32> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let refused =
        |error: io::Error| Error::system(format!("Cannot read {}", path.display()), &error);
    let mut read = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut read)).map_err(refused)?;
    if read.len() as u64 == LARGEST {
        return Err(Error::invalid(format!("Cannot read {}: larger than 64 MiB", path.display())));
    }
    if let Some(room) = content.get_mut(..read.len()) {
        room.copy_from_slice(&read);
    }
    Ok(read.len() as i32)
}

/// Kernel parameters that were set, kept open: what is set back at the end cannot be opened for writing
/// any more once the process is in its sandbox.
static PARAMETERS: Mutex<Vec<(PathBuf, File)>> = Mutex::new(Vec::new());

/// The descriptors of kernel parameters that are kept open for writing.
pub fn kept() -> Vec<RawFd> {
    lock(&PARAMETERS).iter().map(|(_, file)| file.as_raw_fd()).collect()
}

/// Writes a kernel parameter (proc(5), /proc/sys): of the network namespace that the thread is in when
/// the parameter is first set, for those below `net/`.
pub fn set_sysctl(name: &[u8], value: u32) -> Result<i32> {
    let path = Path::new("/proc/sys").join(std::ffi::OsStr::from_bytes(name));
    let refused =
        |error: io::Error| Error::system(format!("Cannot set {}", path.display()), &error);
    let mut parameters = lock(&PARAMETERS);
    let at = match parameters.iter().position(|(known, _)| *known == path) {
        Some(at) => at,
        None => {
            let file = OpenOptions::new().write(true).open(&path).map_err(refused)?;
            parameters.push((path.clone(), file));
            parameters.len() - 1
        }
    };
    // Each write is a number of its own (sysctl_writes_strict in proc_sys_kernel(5)).
    parameters[at].1.write_all_at(value.to_string().as_bytes(), 0).map_err(refused)?;
    Ok(0)
}

/// The process that has a socket open, by the socket's inode (proc(5), /proc/pid/fd); `None` when this
/// process may not see it.
pub fn socket_owner(inode: u32) -> Option<u32> {
    let socket = format!("socket:[{inode}]");
    let has_it = |process: &Path| {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| target.as_os_str() == socket.as_str())
    };
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        has_it(&entry.path()).then_some(process)
    })
}

/// Raises `RLIMIT_NOFILE` to the hard limit (getrlimit(2)); returns what is in force.
pub fn raise_limit() -> u32 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the length of both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 0;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
            limit = raised;
        }
    }
    u32::try_from(limit.rlim_cur).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_its_processs() {
        use std::os::fd::AsRawFd;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = link.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit());
        assert_eq!(socket_owner(inode.parse().unwrap()), Some(std::process::id()));
        // The inode of no socket: the kernel counts from 1.
        assert_eq!(socket_owner(0), None);
    }

    #[test]
    fn a_short_buffer_learns_the_size_and_gets_nothing() {
        let path = std::env::temp_dir().join(format!("mmproxy-read-{}", std::process::id()));
        std::fs::write(&path, "192.0.2.0/24\n").unwrap();
        let name = path.as_os_str().as_bytes();
        let mut short = [7; 4];
        assert_eq!(read(name, &mut short).unwrap(), 13);
        assert_eq!(short, [7; 4]);
        let mut enough = [0; 13];
        assert_eq!(read(name, &mut enough).unwrap(), 13);
        assert_eq!(&enough, b"192.0.2.0/24\n");
        std::fs::remove_file(&path).unwrap();
        let gone = read(name, &mut enough).unwrap_err();
        assert!(gone.text().starts_with("Cannot read "), "{}", gone.text());
    }
}
