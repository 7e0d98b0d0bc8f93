//! Whether standard error goes to systemd's journal.

use std::env;
use std::ffi::OsStr;

use super::spawner;

/// 1 when standard error is the journal's stream, else 0 (systemd.exec(5), `$JOURNAL_STREAM`). Of a program
/// that takes over, it is what it will be once the start is over.
pub fn on_stderr() -> i32 {
    let stderr = spawner::own_stderr().unwrap_or(libc::STDERR_FILENO);
    i32::from(is_journal(env::var_os("JOURNAL_STREAM").as_deref(), stream(stderr)))
}

/// The variable is inherited, also by programs whose output goes elsewhere: it has to name this stream.
fn is_journal(variable: Option<&OsStr>, stream: Option<(u64, u64)>) -> bool {
    let Some((device, inode)) = stream else { return false };
    variable.is_some_and(|text| text == OsStr::new(&format!("{device}:{inode}")))
}

/// A descriptor's device and inode.
pub fn stream(fd: libc::c_int) -> Option<(u64, u64)> {
    // SAFETY: all zeroes is a valid `stat`, which is plain numbers.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is valid for the length of the call.
    let result = unsafe { libc::fstat(fd, &mut found) };
    (result == 0).then_some((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_journal_is_the_stream_that_the_variable_names() {
        let file = File::open("/dev/null").unwrap();
        let own = stream(file.as_raw_fd()).unwrap();
        let text = |(device, inode): (u64, u64)| format!("{device}:{inode}");
        assert!(is_journal(Some(OsStr::new(&text(own))), Some(own)));
        assert!(!is_journal(Some(OsStr::new(&text((own.0, own.1 + 1)))), Some(own)));
        assert!(!is_journal(Some(OsStr::new("")), Some(own)));
        assert!(!is_journal(None, Some(own)));
        assert!(!is_journal(Some(OsStr::new(&text(own))), None));
        assert_eq!(stream(-1), None);
    }
}
