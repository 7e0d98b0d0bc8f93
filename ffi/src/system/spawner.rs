//! The spawner: a small process that starts this program again on request.
//!
//! The sandbox does not allow the program to run another one, and a child would inherit the sandbox. The spawner is
//! therefore forked before the sandbox is entered. It has the command line, the environment and the directory of that
//! time in its own memory. It accepts two commands from the program, over a socket that no other process has: start
//! the same command line, and end what was started. It ends with the program.
//!
//! After the fork nothing allocates, locks or panics (signal-safety(7)): other threads of the program may have been in
//! the middle of that.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use libc::{c_char, c_int, pid_t};

use crate::abi::errors::{Error, Result};
use crate::net::descriptors;
use crate::net::socket::check;
use crate::system::journal;
use crate::system::memory::Mapping;
use crate::system::sync::lock;

/// Names the descriptor of the standard error to be used once the start is over: until then it goes to whoever
/// asked for the start.
const STDERR_VARIABLE: &str = "TAKE_OVER_STDERR";
/// Its number, and that of the spawner's socket.
const SPARE: RawFd = 3;
/// The option that names the program to take over from.
const OPTION: &str = "--take-over";

const START: u8 = b'S';
const END: u8 = b'E';
/// A process that cannot be run ends with this code, as a shell's does.
const CANNOT_RUN: c_int = 127;
const MIB: usize = 1 << 20;

/// The program's end.
struct Spawner {
    socket: OwnedFd,
    /// What the program that was started says on its standard error.
    words: Option<OwnedFd>,
}

static SPAWNER: Mutex<Option<Spawner>> = Mutex::new(None);

/// A command line as execve(2) takes it.
struct Prepared {
    /// To be tried in this order.
    programs: Vec<CString>,
    _arguments: Vec<CString>,
    argv: Vec<*const c_char>,
    _variables: Vec<CString>,
    envp: Vec<*const c_char>,
}

/// Forks the spawner. What it starts takes over from the program at this control socket.
///
/// # Errors
/// Those of the system.
pub fn open(control: &str) -> Result<()> {
    let spawner = Spawner::fork(control).map_err(|error| {
        Error::system("Cannot start the process that upgrades start from", &error)
    })?;
    *lock(&SPAWNER) = Some(spawner);
    Ok(())
}

/// Starts this program's command line again; the number of the process.
///
/// # Errors
/// If there is no spawner, or it fails.
pub fn start() -> Result<u32> {
    with_spawner(|spawner| {
        let (reader, writer) = pipe()?;
        descriptors::send(spawner.socket.as_raw_fd(), &[START], &[writer.as_raw_fd()])?;
        drop(writer);
        let process = spawner.answer()?;
        if process < 0 {
            return Err(io::Error::from_raw_os_error(-process));
        }
        spawner.words = Some(reader);
        Ok(process as u32)
    })
}

/// What the program that was started has said meanwhile, within a time; `None` where it says no more: it has
/// ended, or it has started and writes to the log itself.
///
/// # Errors
/// If none was started.
pub fn words(into: &mut [u8], timeout: Duration) -> Result<Option<usize>> {
    // A copy: nobody else has to wait meanwhile.
    let words = with_spawner(|spawner| match &spawner.words {
        Some(words) => words.try_clone(),
        None => Err(io::ErrorKind::NotFound.into()),
    })?;
    let mut poll = libc::pollfd { fd: words.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for the length of the call.
    if unsafe { libc::poll(&mut poll, 1, timeout.as_millis() as c_int) } <= 0 {
        return Ok(Some(0));
    }
    match fs::File::from(words).read(into) {
        Ok(0) | Err(_) => Ok(None),
        Ok(count) => Ok(Some(count)),
    }
}

/// Ends the program that was started, if it still runs; its status (wait(2)).
///
/// # Errors
/// If none was started.
pub fn end() -> Result<i32> {
    with_spawner(|spawner| {
        spawner.words = None;
        descriptors::send(spawner.socket.as_raw_fd(), &[END], &[])?;
        spawner.answer()
    })
}

/// From now on standard error is where the program that this one takes over from has its own.
pub fn use_own_stderr() {
    let Some(own) = own_stderr() else { return };
    let until_now = journal::stream(libc::STDERR_FILENO);
    // Deno has copies of its standard error: whoever waits for the end of what was there has to see it.
    let copies: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|copy| journal::stream(*copy) == until_now)
        .collect();
    for copy in copies {
        let flags = if copy == libc::STDERR_FILENO { 0 } else { libc::O_CLOEXEC };
        // SAFETY: no pointers are passed. Both descriptors are open, and the copies are replaced at once.
        unsafe { libc::dup3(own, copy, flags) };
    }
    // The number may be another file's from now on.
    SPENT.store(true, Ordering::Relaxed);
    // SAFETY: no pointers are passed. The descriptor is this program's since its start.
    unsafe { libc::close(own) };
}

/// The descriptor of `STDERR_VARIABLE` is closed.
static SPENT: AtomicBool = AtomicBool::new(false);

/// The standard error to be used once the start is over, where it is another one now.
pub fn own_stderr() -> Option<RawFd> {
    let is_spent = SPENT.load(Ordering::Relaxed);
    let named = std::env::var_os(STDERR_VARIABLE)? == SPARE.to_string().as_str();
    // SAFETY: no pointers are passed.
    let is_open = unsafe { libc::fcntl(SPARE, libc::F_GETFD) } >= 0;
    (named && is_open && !is_spent).then_some(SPARE)
}

fn with_spawner<T>(act: impl FnOnce(&mut Spawner) -> io::Result<T>) -> Result<T> {
    let mut spawner = lock(&SPAWNER);
    let spawner = spawner.as_mut().ok_or_else(|| Error::invalid("there is no control socket"))?;
    act(spawner).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            Error::invalid("the process that upgrades start from has ended: restart the program")
        }
        _ => Error::system("cannot start the new program", &error),
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: there is room for both ends, which nobody else has afterwards.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

impl Spawner {
    fn fork(control: &str) -> io::Result<Spawner> {
        let prepared = Prepared::new(control)?;
        let spare = spare_memory(&prepared);
        let mut ends = [0; 2];
        // SAFETY: there is room for both ends.
        check(unsafe {
            let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
            libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr())
        })?;
        // SAFETY: the kernel just gave us these descriptors, and nobody else has them.
        let [here, there] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let stderr = own_stderr().unwrap_or(libc::STDERR_FILENO);
        // SAFETY: the child runs `serve` alone, which is async-signal-safe.
        match check(unsafe { libc::fork() })? {
            // SAFETY: this is the child of a fork.
            0 => unsafe { serve(there.as_raw_fd(), stderr, &prepared, &spare) },
            _ => Ok(Spawner { socket: here, words: None }),
        }
    }

    fn answer(&self) -> io::Result<i32> {
        let (mut answer, mut none) = ([0; 4], Vec::new());
        match descriptors::receive(self.socket.as_raw_fd(), &mut answer, &mut none)? {
            4 => Ok(i32::from_ne_bytes(answer)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The spawner's life.
///
/// # Safety
/// Only in the child of a fork. It does nothing that is not async-signal-safe.
unsafe fn serve(socket: RawFd, stderr: RawFd, prepared: &Prepared, spare: &[(usize, usize)]) -> ! {
    // SAFETY: no call is passed more than valid pointers to this stack and to `prepared`; the memory that is
    // given up is not used here (`spare_memory`).
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"mmproxy spawner".as_ptr());
        // A terminal's Ctrl-C is for the program, and so is a service manager's SIGTERM: this one ends with it.
        let ignored = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
        for signal in ignored.into_iter().chain([libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE]) {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        if stderr != libc::STDERR_FILENO {
            libc::dup2(stderr, libc::STDERR_FILENO);
        }
        if socket != SPARE {
            libc::dup2(socket, SPARE);
        }
        close_from(SPARE + 1);
        for (start, length) in spare {
            libc::madvise(*start as *mut libc::c_void, *length, libc::MADV_DONTNEED);
        }
        let mut started: pid_t = 0;
        loop {
            let mut command = [0u8];
            let mut passed: RawFd = -1;
            if !receive_command(&mut command, &mut passed) {
                libc::_exit(0);
            }
            let answer: i32 = match command[0] {
                START => {
                    reap(&mut started, false);
                    started = run(passed, prepared);
                    started
                }
                END => reap(&mut started, true),
                _ => -libc::EINVAL,
            };
            if passed >= 0 {
                libc::close(passed);
            }
            let bytes = answer.to_ne_bytes();
            libc::send(SPARE, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL);
        }
    }
}

/// Waits for a command, and the descriptor that comes with it; whether there is one.
unsafe fn receive_command(command: &mut [u8; 1], passed: &mut RawFd) -> bool {
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut iovec = libc::iovec { iov_base: command.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: zeroes are a valid `msghdr`; all that it points to outlives the calls, and the kernel has written
    // the control space as the message says.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut iovec;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        loop {
            let count = libc::recvmsg(SPARE, &mut message, 0);
            if count == 1 {
                break;
            }
            if count == 0 || *libc::__errno_location() != libc::EINTR {
                return false;
            }
        }
        let header = libc::CMSG_FIRSTHDR(&message);
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            *passed = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
        }
    }
    true
}

/// Runs the command line with this standard error; the process, or the error below zero.
unsafe fn run(words: RawFd, prepared: &Prepared) -> pid_t {
    if words < 0 {
        return -libc::EINVAL;
    }
    // SAFETY: as for `serve`; the lists end with null pointers, and their strings live as long as this process.
    unsafe {
        // Not fork(3), which looks after the allocator's memory: it was given up. All arguments but the signal
        // are zero, whatever their order is here (clone(2)).
        let process = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as pid_t;
        if process < 0 {
            return -*libc::__errno_location();
        }
        if process > 0 {
            return process;
        }
        libc::dup2(libc::STDERR_FILENO, SPARE);
        libc::dup2(words, libc::STDERR_FILENO);
        close_from(SPARE + 1);
        let default = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE];
        for signal in default {
            libc::signal(signal, libc::SIG_DFL);
        }
        // SIGUSR1 and SIGUSR2 stay ignored until the program has handlers: Deno would open its debugger, and
        // end.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        for program in &prepared.programs {
            libc::execve(program.as_ptr(), prepared.argv.as_ptr(), prepared.envp.as_ptr());
        }
        let said =
            b"mmproxy: Cannot run this program again: is it still where it was started from?\n";
        libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len());
        libc::_exit(CANNOT_RUN)
    }
}

/// Takes the status of what was started, and ends it before that or looks only; its status, or 0.
unsafe fn reap(started: &mut pid_t, ends: bool) -> i32 {
    if *started <= 0 {
        return 0;
    }
    let mut status: c_int = 0;
    // SAFETY: the status is valid for the length of the call. The process is a child that nobody has waited
    // for, so that its number is no other's.
    unsafe {
        if libc::waitpid(*started, &mut status, libc::WNOHANG) == *started {
            *started = 0;
        } else if ends {
            libc::kill(*started, libc::SIGKILL);
            while libc::waitpid(*started, &mut status, 0) < 0
                && *libc::__errno_location() == libc::EINTR
            {}
            *started = 0;
        }
    }
    status
}

/// Closes every descriptor from one on.
unsafe fn close_from(first: RawFd) {
    // SAFETY: no pointers are passed.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) == 0 {
            return;
        }
        // Before Linux 5.9.
        let most = libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20) as RawFd;
        for descriptor in first..most {
            libc::close(descriptor);
        }
    }
}

impl Prepared {
    fn new(control: &str) -> io::Result<Prepared> {
        let mut words = command_line(&fs::read("/proc/self/cmdline")?, control);
        let first = words.first().cloned().ok_or(io::ErrorKind::InvalidData)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = fs::read_link("/proc/self/exe")?;
        let programs = programs(first.as_bytes(), path.as_bytes(), own.as_os_str().as_bytes())?;
        let kept = std::env::vars_os().filter(|(name, _)| is_kept(name));
        let variable = |(name, value): (OsString, OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let mut variables: Vec<CString> =
            kept.map(variable).collect::<std::result::Result<_, _>>()?;
        variables.push(CString::new(format!("{STDERR_VARIABLE}={SPARE}"))?);
        words.shrink_to_fit();
        let list = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|it| it.as_ptr()).chain([ptr::null()]).collect()
        };
        let (argv, envp) = (list(&words), list(&variables));
        Ok(Prepared { programs, _arguments: words, argv, _variables: variables, envp })
    }

    /// Where in memory it is.
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        let lists = [self.argv.as_ptr() as usize, self.envp.as_ptr() as usize];
        let own = [self.programs.as_ptr() as usize, ptr::from_ref(self) as usize];
        let strings = self.argv.iter().chain(&self.envp).map(|it| *it as usize);
        let programs = self.programs.iter().map(|it| it.as_ptr() as usize);
        strings.chain(programs).chain(lists).chain(own)
    }
}

/// What is meant for this process alone: the process number of the service manager's variables, and what it has
/// been passed.
fn is_kept(name: &std::ffi::OsStr) -> bool {
    let own = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", STDERR_VARIABLE];
    !own.iter().any(|own| name == *own)
}

/// The words of a command line, with another program to take over from.
fn command_line(cmdline: &[u8], control: &str) -> Vec<CString> {
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    let mut words: Vec<CString> = Vec::new();
    let mut is_value = false;
    for word in cmdline.split(|byte| *byte == 0) {
        let is_option = word == OPTION.as_bytes();
        let is_both = word.strip_prefix(OPTION.as_bytes()).is_some_and(|it| it.starts_with(b"="));
        if !is_option && !is_both && !is_value {
            words.extend(CString::new(word));
        }
        is_value = is_option;
    }
    words.extend([OPTION, control].into_iter().filter_map(|word| CString::new(word).ok()));
    words
}

/// Where the program may be, by the first word of its command line, the search path and its own file: by path,
/// so that it is the one that is installed there by then.
fn programs(first: &[u8], path: &[u8], own: &[u8]) -> io::Result<Vec<CString>> {
    let mut programs = Vec::new();
    if first.contains(&b'/') {
        programs.push(CString::new(first)?);
    } else {
        for folder in path.split(|byte| *byte == b':').filter(|folder| !folder.is_empty()) {
            programs.push(CString::new([folder, b"/", first].concat())?);
        }
    }
    // proc_pid_exe(5).
    programs.push(CString::new(own.strip_suffix(b" (deleted)").unwrap_or(own))?);
    Ok(programs)
}

/// Memory that the spawner does not use: without giving it up, it would keep a copy of whatever the program
/// changes. These are anonymous mappings of a MiB and more, but for those of this thread and of what was
/// prepared.
fn spare_memory(prepared: &Prepared) -> Vec<(usize, usize)> {
    let here = 0u8;
    // SAFETY: no pointers are passed.
    let errno = unsafe { libc::__errno_location() } as usize;
    let mut used: Vec<usize> =
        prepared.places().chain([ptr::from_ref(&here) as usize, errno]).collect();
    // The list itself, wherever it will lie: its pages are read as they are given up.
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    let maps = OsString::from_vec(maps).into_string().unwrap_or_default();
    let mut spare = Vec::with_capacity(maps.lines().count());
    used.push(spare.as_ptr() as usize);
    spare.extend(maps.lines().filter_map(anonymous).filter(|(start, length)| {
        *length >= MIB && !used.iter().any(|at| (*start..start + length).contains(at))
    }));
    spare
}

/// The start and length of a private mapping without a file that can be written to, of a line of
/// proc_pid_maps(5).
fn anonymous(line: &str) -> Option<(usize, usize)> {
    let Mapping { addresses, permissions, inode, file } = Mapping::of(line)?;
    let is_anonymous = inode == 0 && (file.is_empty() || file.starts_with("[anon"));
    (permissions == "rw-p" && is_anonymous).then_some((addresses.start, addresses.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(words: &[CString]) -> Vec<&str> {
        words.iter().map(|word| word.to_str().unwrap()).collect()
    }

    #[test]
    fn the_command_line_is_the_same_but_for_whom_it_takes_over_from() {
        let before =
            b"deno\0run\0main.ts\0--take-over\0/old\0-l\x000.0.0.0:1\0--take-over=/older\0\0";
        let words = command_line(before, "/run/control");
        let expected =
            ["deno", "run", "main.ts", "-l", "0.0.0.0:1", "", "--take-over", "/run/control"];
        assert_eq!(texts(&words), expected);
    }

    #[test]
    fn the_program_is_looked_for_by_path() {
        let own = b"/opt/deno-1/deno (deleted)";
        let named = programs(b"/usr/bin/deno", b"/bin", own).unwrap();
        assert_eq!(texts(&named), ["/usr/bin/deno", "/opt/deno-1/deno"]);
        let searched = programs(b"deno", b"/a::/b", own).unwrap();
        assert_eq!(texts(&searched), ["/a/deno", "/b/deno", "/opt/deno-1/deno"]);
    }

    #[test]
    fn anonymous_memory_is_told_from_files_and_stacks() {
        assert_eq!(anonymous("1000-3000 rw-p 00000000 00:00 0 "), Some((0x1000, 0x2000)));
        assert_eq!(anonymous("1000-3000 rw-p 00000000 00:00 0 [anon:v8]"), Some((0x1000, 0x2000)));
        for other in [
            "1000-3000 rw-p 00000000 00:00 0 [stack]",
            "1000-3000 r--p 00000000 00:00 0 ",
            "1000-3000 rw-s 00000000 00:00 0 ",
            "1000-3000 rw-p 00000000 08:01 7 /lib",
        ] {
            assert_eq!(anonymous(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_for_one_process_alone_is_not_passed_on() {
        assert!(!is_kept("WATCHDOG_PID".as_ref()) && !is_kept("LISTEN_FDS".as_ref()));
        assert!(is_kept("WATCHDOG_USEC".as_ref()) && is_kept("NOTIFY_SOCKET".as_ref()));
    }
}
