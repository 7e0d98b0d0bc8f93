//! Where the BPF program and its maps outlive their process: a directory for each run in the BPF file system.
//!
//! `/sys/fs/bpf/mmproxy` has one directory for each program, named `<layout>-<network namespace>-<number>`, with both
//! maps and the link to each interface. The program holds a lock on its directory while it lives; a directory whose lock
//! can be had belongs to nobody.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::TcAttachType;

use super::links::Link;
use super::record::LAYOUT;
use crate::net::socket;

/// Where the BPF file system is mounted.
const ROOT: &str = "/sys/fs/bpf";
/// Our own directory there.
const NAME: &str = "mmproxy";
/// BPF_FS_MAGIC (linux/magic.h).
const BPF_FS: u32 = 0xcafe_4a11;
/// SO_NETNS_COOKIE (asm-generic/socket.h, Linux 5.14).
const NETNS_COOKIE: libc::c_int = 71;
/// What each directory has, beside a link to each interface.
const TUPLES: &str = "tuples";
const ENTRIES: &str = "entries";
const LINK: &str = "link-";
/// Others that start keep the directories for this long at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a directory's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// That of the entries (`record::LAYOUT`).
    pub layout: u32,
    /// Of the network namespace that the program runs in.
    pub namespace: u64,
    number: u32,
}

impl Name {
    /// `None` for a name that is none of ours.
    pub fn parse(name: &str) -> Option<Name> {
        let mut parts = name.split('-');
        let name = Name {
            layout: number(parts.next()?)?,
            namespace: number(parts.next()?)?,
            number: number(parts.next()?)?,
        };
        parts.next().is_none().then_some(name)
    }
}

/// A number in the one way in which `Display` writes it.
fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

impl std::fmt::Display for Name {
    fn fmt(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(to, "{}-{}-{}", self.layout, self.namespace, self.number)
    }
}

/// The directory of all programs of this user.
pub struct Base {
    path: PathBuf,
    /// Locked: nobody else makes or removes a directory meanwhile.
    _lock: File,
}

impl Base {
    /// Opens it, and makes it where it is not there.
    ///
    /// # Errors
    /// Why nothing can be kept there, in words.
    pub fn open() -> Result<Base, String> {
        check()?;
        let path = Path::new(ROOT).join(NAME);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("{}: {error}", path.display()));
            }
            _ => {}
        }
        let lock = open_directory(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // What was opened, and not what has its name by now.
        let metadata = lock.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
        check_owner(&path, &metadata)?;
        let until = Instant::now() + PATIENCE;
        while !try_lock(&lock) {
            if Instant::now() > until {
                return Err(format!("{} is locked by another program", path.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Base { path, _lock: lock })
    }

    /// Every program's directory, with what its name says.
    pub fn directories(&self) -> io::Result<Vec<(Name, Directory)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().and_then(Name::parse) else { continue };
            if let Ok(directory) = Directory::open(entry.path()) {
                found.push((name, directory));
            }
        }
        Ok(found)
    }

    /// Makes a directory for this program, which has the lock on it.
    ///
    /// # Errors
    /// Those of mkdir(2) and flock(2).
    pub fn create(&self) -> io::Result<Directory> {
        let namespace = namespace()?;
        for number in 0.. {
            let path = self.path.join(Name { layout: LAYOUT, namespace, number }.to_string());
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let directory = Directory::open(path)?;
            if !directory.try_lock() {
                directory.remove()?;
                return Err(io::Error::from_raw_os_error(libc::EWOULDBLOCK));
            }
            return Ok(directory);
        }
        Err(io::ErrorKind::StorageFull.into())
    }
}

/// One program's directory.
pub struct Directory {
    path: PathBuf,
    /// The lock, once there is one.
    file: File,
}

impl Directory {
    fn open(path: PathBuf) -> io::Result<Directory> {
        Ok(Directory { file: open_directory(&path)?, path })
    }

    /// Whether the directory belongs to nobody, and from here on to this process.
    pub fn try_lock(&self) -> bool {
        try_lock(&self.file)
    }

    pub fn tuples(&self) -> PathBuf {
        self.path.join(TUPLES)
    }

    pub fn entries(&self) -> PathBuf {
        self.path.join(ENTRIES)
    }

    /// The file of the link to an interface. Its number: a name may have a dot, which the file system does not take.
    pub fn link(&self, interface: u32, hook: TcAttachType) -> PathBuf {
        let end = if hook == TcAttachType::Egress { "-out" } else { "" };
        self.path.join(format!("{LINK}{interface}{end}"))
    }

    /// The links that it has.
    pub fn links(&self) -> io::Result<Vec<Link>> {
        let is_link = |path: &Path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(LINK))
        };
        let mut links = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if is_link(&path) {
                links.push(Link::open(&path)?);
            }
        }
        Ok(links)
    }

    /// Detaches the program of this directory, and removes it. Not in the sandbox.
    ///
    /// # Errors
    /// Those of unlink(2) and rmdir(2).
    pub fn remove(&self) -> io::Result<()> {
        for link in self.links().unwrap_or_default() {
            // Without a file the kernel detaches it, unless someone else has it open.
            let _ = link.detach();
        }
        for entry in fs::read_dir(&self.path)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(&self.path)
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a directory can be kept for a program that starts now. Changes nothing.
///
/// # Errors
/// Why not, in words.
pub fn check() -> Result<(), String> {
    use aya::util::KernelVersion;
    // Before, the program is a filter without a link that could be pinned.
    if KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0)) {
        return Err("it needs Linux 6.6".to_owned());
    }
    let root = Path::new(ROOT);
    if !is_bpf_file_system(root) {
        return Err(format!("{ROOT} is not a BPF file system"));
    }
    let path = root.join(NAME);
    match fs::symlink_metadata(&path) {
        Ok(metadata) => check_owner(&path, &metadata)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("{}: {error}", path.display())),
    }
    let writable = if path.exists() { &path } else { root };
    may_write(writable).map_err(|error| format!("{}: {error}", writable.display()))
}

/// Anyone may make a directory in some BPF file systems: only one of our own, which nobody else may write to, is used.
fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), String> {
    // SAFETY: it has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    if !metadata.is_dir() {
        return Err(format!("{} is not a directory", path.display()));
    }
    if !is_private(metadata.mode(), metadata.uid(), user) {
        return Err(format!("{} is not this user's alone", path.display()));
    }
    Ok(())
}

fn is_private(mode: u32, owner: u32, user: u32) -> bool {
    owner == user && mode & 0o022 == 0
}

fn is_bpf_file_system(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: zeroes are a valid `statfs`.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte; `found` is valid for writing.
    let done = unsafe { libc::statfs(path.as_ptr(), &raw mut found) } == 0;
    // The type has another width on other systems.
    done && found.f_type as u32 == BPF_FS
}

fn may_write(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte.
    let result = unsafe {
        libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS)
    };
    socket::check(result).map(drop)
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

fn try_lock(file: &File) -> bool {
    // SAFETY: no pointers are passed.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// What identifies this network namespace until the host starts anew.
pub fn namespace() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has `length` bytes and outlives the call.
    let result = unsafe {
        let (fd, to) = (socket.as_raw_fd(), (&raw mut cookie).cast());
        libc::getsockopt(fd, libc::SOL_SOCKET, NETNS_COOKIE, to, &raw mut length)
    };
    socket::check(result)?;
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_was_made_of() {
        let name = Name { layout: 1, namespace: u64::MAX, number: 7 };
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        // A later version's, whose entries nobody here can read.
        assert_eq!(Name::parse("4294967295-1-0").map(|name| name.layout), Some(u32::MAX));
    }

    #[test]
    fn a_name_that_is_not_ours_is_left_alone() {
        for name in [
            "",
            "1",
            "1-2",
            "1-2-3-4",
            "1-2-",
            "-1-2",
            "1-2-x",
            "01-2-3",
            "+1-2-3",
            "1-2-3.tmp",
            "4294967296-1-0",
        ] {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_directory_that_others_own_or_write_to_is_not_used() {
        assert!(is_private(0o40_700, 5, 5) && is_private(0o40_755, 0, 0));
        for (mode, owner) in
            [(0o40_700, 6), (0o40_720, 5), (0o40_702, 5), (0o41_777, 5), (0o40_700, 0)]
        {
            assert!(!is_private(mode, owner, 5), "{mode:o} of {owner}");
        }
    }

    #[test]
    fn what_is_locked_is_not_had_twice() {
        let path = std::env::temp_dir().join(format!("mmproxy-pins-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let (one, other) = (open_directory(&path).unwrap(), open_directory(&path).unwrap());
        assert!(try_lock(&one));
        assert!(!try_lock(&other));
        drop(one);
        assert!(try_lock(&other));
        fs::remove_dir(&path).unwrap();
        assert!(!is_bpf_file_system(&std::env::temp_dir()));
        assert_eq!(namespace().unwrap(), namespace().unwrap());
    }
}
