//! Watches files for changes (inotify(7)): written in place, replaced as editors do it, or redirected by one of their
//! symbolic links, as Kubernetes changes a ConfigMap.
//!
//! It watches every directory through which a file's name leads by its links, and then checks whether one of the files
//! has changed. It therefore does not matter which of a change's steps is seen.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::abi::errors::{Error, Result};
use crate::net::socket::check;
use crate::system::sync::lock;

/// A change is reported when nothing more has happened for this long,
const QUIET: Duration = Duration::from_millis(100);
/// or when changes continue for this long.
const LONGEST: Duration = Duration::from_secs(2);
/// So often it is looked without a sign: file systems of other hosts send none.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Links that one name may lead through (path_resolution(7)).
const MOST_LINKS: usize = 40;

static WATCH: Mutex<Option<Arc<Watch>>> = Mutex::new(None);

struct Watch {
    inotify: OwnedFd,
    files: Mutex<Vec<File>>,
}

struct File {
    path: PathBuf,
    seen: Option<Seen>,
}

/// What tells one content of a file from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Watches these files, whether they are there or not, and no others; `paths` are separated by zero bytes.
/// Returns 1 where one was not watched before: what was read of it until now may be old, otherwise 0.
pub fn set(paths: &[u8]) -> Result<i32> {
    let paths = paths.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    let paths: Vec<PathBuf> =
        paths.map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path))).collect();
    let mut current = lock(&WATCH);
    let watch = match &*current {
        Some(watch) => watch.clone(),
        None => {
            let watch =
                Watch::open().map_err(|error| Error::system("Cannot watch files", &error))?;
            current.insert(Arc::new(watch)).clone()
        }
    };
    Ok(i32::from(watch.set(paths)))
}

/// Waits up to `timeout` until a watched file has changed: 1, or 0 when none has.
pub fn wait(timeout: Duration) -> Result<i32> {
    let none = || Error::invalid("no file is watched");
    let watch = lock(&WATCH).clone().ok_or_else(none)?;
    let changed =
        watch.wait(timeout).map_err(|error| Error::system("Cannot watch files", &error))?;
    Ok(i32::from(changed))
}

impl Watch {
    fn open() -> io::Result<Watch> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        let inotify = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Watch { inotify, files: Mutex::default() })
    }

    fn set(&self, paths: Vec<PathBuf>) -> bool {
        let mut files = lock(&self.files);
        let mut is_new = false;
        let mut known = std::mem::take(&mut *files);
        for path in paths {
            self.watch_ways(&path);
            match known.iter().position(|file| file.path == path) {
                Some(at) => files.push(known.swap_remove(at)),
                None => {
                    is_new = true;
                    files.push(File { seen: look(&path), path });
                }
            }
        }
        is_new
    }

    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.has_signs(left.min(LOOK_EVERY))? {
                let latest = Instant::now() + LONGEST;
                while Instant::now() < latest && self.has_signs(QUIET)? {}
            }
            if self.has_changed() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    /// Waits for signs that something has happened, and takes them.
    fn has_signs(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let fd = self.inotify.as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one entry and outlives the call.
        match check(unsafe { libc::poll(&mut poll, 1, timeout) }) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        }
        let mut room = [0u8; 4096];
        // SAFETY: `room` is valid for writing its length.
        while unsafe { libc::read(fd, room.as_mut_ptr().cast(), room.len()) } > 0 {}
        Ok(true)
    }

    /// Whether a file is another one than when it was last looked at.
    fn has_changed(&self) -> bool {
        let mut changed = false;
        for file in lock(&self.files).iter_mut() {
            // Its links may lead another way now.
            self.watch_ways(&file.path);
            let seen = look(&file.path);
            // A file that is gone is about to be written again, or it is a mistake that a reload would
            // only repeat.
            if seen.is_some() && seen != file.seen {
                changed = true;
                file.seen = seen;
            }
        }
        changed
    }

    /// Watches each directory in which an entry decides what the path leads to, as far as they are there.
    fn watch_ways(&self, path: &Path) {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let Some(directory) = path.parent() else { return };
            let here = Path::new(".");
            let directory = if directory.as_os_str().is_empty() { here } else { directory };
            self.watch(directory);
            if let Some((link, rest)) = first_link(&path) {
                let Ok(target) = fs::read_link(&link) else { return };
                let Some(parent) = link.parent() else { return };
                self.watch(if parent.as_os_str().is_empty() { here } else { parent });
                path = parent.join(target).join(rest);
                continue;
            }
            return;
        }
    }

    /// A directory that cannot be watched is looked at from time to time.
    fn watch(&self, directory: &Path) {
        let Ok(name) = std::ffi::CString::new(directory.as_os_str().as_bytes()) else { return };
        let signs = libc::IN_CLOSE_WRITE
            | libc::IN_CREATE
            | libc::IN_MOVED_TO
            | libc::IN_MOVED_FROM
            | libc::IN_DELETE
            | libc::IN_DELETE_SELF
            | libc::IN_MOVE_SELF
            | libc::IN_MODIFY
            | libc::IN_ONLYDIR;
        // SAFETY: `name` is valid for the length of the call. One that is watched already stays so.
        unsafe { libc::inotify_add_watch(self.inotify.as_raw_fd(), name.as_ptr(), signs) };
    }
}

/// The first part of a path that is a symbolic link, and what comes after it.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut link = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        link.push(part);
        if fs::symlink_metadata(&link).is_ok_and(|found| found.file_type().is_symlink()) {
            return Some((link, parts.as_path().to_owned()));
        }
    }
    None
}

fn look(path: &Path) -> Option<Seen> {
    let found = fs::metadata(path).ok()?;
    Some(Seen {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const LONG: Duration = Duration::from_secs(5);
    const SHORT: Duration = Duration::from_millis(300);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("mmproxy-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn watching(path: &Path) -> Watch {
        let watch = Watch::open().unwrap();
        assert!(watch.set(vec![path.to_owned()]));
        assert!(!watch.set(vec![path.to_owned()]), "known");
        assert!(!watch.wait(SHORT).unwrap(), "nothing has happened yet");
        watch
    }

    #[test]
    fn a_file_is_written_in_place_or_replaced() {
        let folder = Folder::new("watch-written");
        fs::write(folder.at("file"), "one").unwrap();
        let watch = watching(&folder.at("file"));
        fs::write(folder.at("file"), "other").unwrap();
        assert!(watch.wait(LONG).unwrap());
        fs::write(folder.at("beside"), "a third").unwrap();
        assert!(!watch.wait(SHORT).unwrap(), "another file");
        fs::rename(folder.at("beside"), folder.at("file")).unwrap();
        assert!(watch.wait(LONG).unwrap());
        // As vim does it: away, and written again.
        fs::rename(folder.at("file"), folder.at("file~")).unwrap();
        assert!(!watch.wait(SHORT).unwrap(), "it is gone");
        fs::write(folder.at("file"), "a fourth").unwrap();
        assert!(watch.wait(LONG).unwrap());
    }

    #[test]
    fn a_config_map_changes_by_the_link_of_its_folder() {
        let folder = Folder::new("watch-config-map");
        for (version, content) in [("..1", "one"), ("..2", "other"), ("..3", "a third")] {
            fs::create_dir(folder.at(version)).unwrap();
            fs::write(folder.at(version).join("file"), content).unwrap();
        }
        symlink("..1", folder.at("..data")).unwrap();
        symlink("..data/file", folder.at("file")).unwrap();
        let elsewhere = Folder::new("watch-config-map-user");
        symlink(folder.at("file"), elsewhere.at("file")).unwrap();
        // Also by a link from elsewhere.
        for path in [folder.at("file"), elsewhere.at("file")] {
            let watch = watching(&path);
            for version in ["..2", "..3", "..1"] {
                symlink(version, folder.at("..data_tmp")).unwrap();
                fs::rename(folder.at("..data_tmp"), folder.at("..data")).unwrap();
                assert!(watch.wait(LONG).unwrap(), "{version}");
            }
        }
    }

    #[test]
    fn a_change_is_told_once_it_is_over() {
        let folder = Folder::new("watch-quiet");
        fs::write(folder.at("file"), "").unwrap();
        let watch = watching(&folder.at("file"));
        let path = folder.at("file");
        let writer = std::thread::spawn(move || {
            for round in 1..=10 {
                fs::write(&path, "x".repeat(round)).unwrap();
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        assert!(watch.wait(LONG).unwrap());
        assert!(writer.is_finished() || fs::read(folder.at("file")).unwrap().len() == 10);
        writer.join().unwrap();
        assert!(!watch.wait(SHORT).unwrap(), "once");
    }

    #[test]
    fn a_file_and_its_folder_may_come_later() {
        let folder = Folder::new("watch-later");
        let watch = watching(&folder.at("file"));
        fs::write(folder.at("file"), "one").unwrap();
        assert!(watch.wait(LONG).unwrap());
    }
}
