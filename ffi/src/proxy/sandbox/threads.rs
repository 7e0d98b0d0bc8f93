//! The state of every thread of the process, and dropping or raising capabilities on all of them.
//!
//! Capabilities and "no new privileges" belong to a thread, and a thread can change only its own (capset(2)). Every
//! thread is therefore sent a signal whose handler makes the change, as the C library does for setuid(2) (nptl(7)).
//! Afterwards /proc shows whether all threads have done so. A thread that starts in the meantime inherits the state of
//! its creator, and is found in the next pass.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::capabilities;
use crate::system::sync::lock;

/// Threads that are asleep in the kernel answer in microseconds.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A thread's part of what proc_pid_status(5) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub permitted: u64,
    pub effective: u64,
    /// What an execve(2) would hand on: the inheritable and the ambient set.
    pub heritable: u64,
    pub no_new_privileges: bool,
    /// A filter of system calls is in force.
    pub filtered: bool,
}

/// Of the calling thread.
pub fn own_status() -> io::Result<Status> {
    // SAFETY: no pointers are passed.
    status_of(unsafe { libc::gettid() })
}

/// Whether no thread has a capability but those in `keep`.
pub fn all_within(keep: u64) -> bool {
    all(|status| is_within(status, keep)).unwrap_or(false)
}

/// Whether no thread can get new privileges.
pub fn none_gains() -> io::Result<bool> {
    all(|status| status.no_new_privileges)
}

/// Whether a filter is in force on every thread.
pub fn all_filtered() -> io::Result<bool> {
    all(|status| status.filtered)
}

/// Lowers the capabilities of every thread to those in `keep`, and sets "no new privileges" on it.
pub fn lower_all(keep: u64) -> io::Result<()> {
    on_all(Action::Lower { keep }, |status| is_low(status, keep))
}

/// Puts in effect, on every thread, what of `capabilities::USEFUL` is permitted.
pub fn raise_all() -> io::Result<()> {
    on_all(Action::Raise, is_raised)
}

/// What a thread does to itself.
#[derive(Clone, Copy)]
enum Action {
    Lower { keep: u64 },
    Raise,
}

impl Action {
    /// In a signal handler: allocates nothing and takes no lock.
    fn act(self) -> io::Result<()> {
        match self {
            Action::Lower { keep } => capabilities::lower_this_thread(keep),
            Action::Raise => capabilities::raise_this_thread(),
        }
    }
}

/// Has every thread act on itself, until all are `done`.
fn on_all(action: Action, done: impl Fn(&Status) -> bool) -> io::Result<()> {
    // One at a time: the handler has one place to look at.
    static RUNNING: Mutex<()> = Mutex::new(());
    let _running = lock(&RUNNING);
    let (raise, keep) = match action {
        Action::Lower { keep } => (false, keep),
        Action::Raise => (true, 0),
    };
    KEEP.store(keep, Ordering::SeqCst);
    RAISES.store(raise, Ordering::SeqCst);
    ERRNO.store(0, Ordering::SeqCst);
    let own = action.act();
    let handler = Handler::install()?;
    let mut asked = HashSet::new();
    let deadline = Instant::now() + TIMEOUT;
    let result = loop {
        let mut waiting = 0;
        for thread in threads()? {
            match status_of(thread) {
                Ok(status) if !done(&status) => {}
                // It is done, or it has ended.
                _ => continue,
            }
            waiting += 1;
            if asked.insert(thread) {
                // SAFETY: no pointers are passed; the handler is in place.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, handler.signal) };
            }
        }
        if waiting == 0 {
            break own;
        }
        if let errno @ 1.. = ERRNO.load(Ordering::SeqCst) {
            break Err(io::Error::from_raw_os_error(errno));
        }
        // A thread that cannot act on itself stays as it is.
        if own.is_err() || Instant::now() > deadline {
            break own.and(Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    drop(handler);
    result
}

/// The action, for the handler.
static RAISES: AtomicBool = AtomicBool::new(false);
static KEEP: AtomicU64 = AtomicU64::new(0);
/// What kept a thread from acting, or 0.
static ERRNO: AtomicI32 = AtomicI32::new(0);

extern "C" fn act(_signal: libc::c_int) {
    // SAFETY: the thread's own errno, which the code that was interrupted may be about to read.
    let saved = unsafe { *libc::__errno_location() };
    let action = if RAISES.load(Ordering::SeqCst) {
        Action::Raise
    } else {
        Action::Lower { keep: KEEP.load(Ordering::SeqCst) }
    };
    if let Err(error) = action.act() {
        ERRNO.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::SeqCst);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = saved };
}

/// The signal that runs `act`, until it is dropped.
struct Handler {
    signal: libc::c_int,
    before: libc::sigaction,
}

impl Handler {
    /// Takes the highest real-time signal that nobody else handles.
    fn install() -> io::Result<Handler> {
        for signal in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
            let before = action_of(signal, None)?;
            if before.sa_sigaction != libc::SIG_DFL {
                continue;
            }
            // SAFETY: zeroes are a valid action.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = act as *const () as usize;
            // SA_RESTART: what the signal interrupts continues as if nothing had been.
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            action_of(signal, Some(&action))?;
            return Ok(Handler { signal, before });
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: zeroes are a valid action.
        let mut ignore: libc::sigaction = unsafe { std::mem::zeroed() };
        ignore.sa_sigaction = libc::SIG_IGN;
        // Ignoring it discards what is still pending on a thread that blocks it (sigaction(2)); with the
        // default action that would end the process once the thread lets it through.
        let _ = action_of(self.signal, Some(&ignore));
        let _ = action_of(self.signal, Some(&self.before));
    }
}

/// Sets a signal's action, if there is one to set; the one before.
fn action_of(signal: libc::c_int, new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    // SAFETY: zeroes are a valid action.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    let new = new.map_or(std::ptr::null(), |action| action as *const _);
    // SAFETY: both are valid for the length of the call, or null.
    if unsafe { libc::sigaction(signal, new, &mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(before)
}

fn is_low(status: &Status, keep: u64) -> bool {
    is_within(status, keep) && status.heritable == 0 && status.no_new_privileges
}

fn is_raised(status: &Status) -> bool {
    status.permitted & capabilities::USEFUL & !status.effective == 0
}

fn is_within(status: &Status, keep: u64) -> bool {
    (status.permitted | status.effective) & !keep == 0
}

fn all(holds: impl Fn(&Status) -> bool) -> io::Result<bool> {
    let threads = threads()?;
    // One that has ended meanwhile has nothing.
    Ok(threads.into_iter().filter_map(|thread| status_of(thread).ok()).all(|status| holds(&status)))
}

fn threads() -> io::Result<Vec<libc::pid_t>> {
    let entries = std::fs::read_dir("/proc/self/task")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn status_of(thread: libc::pid_t) -> io::Result<Status> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/status"))?;
    parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn parse(status: &str) -> Option<Status> {
    let value = |name: &str| {
        let of =
            |line: &'_ str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
        status.lines().find_map(of)
    };
    let bits = |name| u64::from_str_radix(&value(name)?, 16).ok();
    Some(Status {
        permitted: bits("CapPrm")?,
        effective: bits("CapEff")?,
        heritable: bits("CapInh")? | bits("CapAmb")?,
        no_new_privileges: value("NoNewPrivs")? == "1",
        // A kernel without filters has no such line.
        filtered: value("Seccomp").is_some_and(|mode| mode == "2"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_by_its_names() {
        let text = "Name:\tCapPrm: x\nCapPrm:\t0000000000002000\nCapEff:\t0000000000003400\n\
                    CapInh:\t0000000000000001\nCapAmb:\t0000000000000002\n\
                    NoNewPrivs:\t1\nSeccomp:\t2\n";
        let status = Status {
            permitted: 0x2000,
            effective: 0x3400,
            heritable: 3,
            no_new_privileges: true,
            filtered: true,
        };
        assert_eq!(parse(text), Some(status));
        assert_eq!(parse(""), None);
        assert_eq!(parse(&text.replace("Seccomp:\t2\n", "")).map(|s| s.filtered), Some(false));
    }

    #[test]
    fn every_thread_of_this_process_is_listed() {
        // SAFETY: no pointers are passed.
        let own = unsafe { libc::gettid() };
        assert!(threads().unwrap().contains(&own));
    }
}
