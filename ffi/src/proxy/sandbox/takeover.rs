//! Actions that an intruder would try, with their results: for the test of the sandbox, never in a released library.

use std::ffi::CStr;
use std::io;
use std::os::fd::FromRawFd;

use libc::{c_long, syscall};

use super::descriptors;

/// Tries each on the calling thread, and prints a line `takeover: name=errno name=errno …` to standard
/// error, 0 for what was done.
pub fn attempt() {
    let tried: Vec<String> =
        attempts().into_iter().map(|(name, errno)| format!("{name}={errno}")).collect();
    // In one piece: the log's thread writes there as well.
    let line = format!("takeover: {}\n", tried.join(" "));
    let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
}

fn errno(result: c_long) -> i32 {
    if result < 0 {
        return io::Error::last_os_error().raw_os_error().unwrap_or(-1);
    }
    0
}

/// As `errno`, for a call that opens a descriptor.
fn opened(result: c_long) -> i32 {
    if result >= 0 {
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(result as i32) });
    }
    errno(result)
}

fn attempts() -> Vec<(&'static str, i32)> {
    let list: [*const libc::c_char; 1] = [std::ptr::null()];
    let at = libc::AT_FDCWD;
    let path = |path: &'static CStr| path.as_ptr();
    let (program, null) = (path(c"/bin/true"), path(c"/dev/null"));
    let (new, other) = (path(c"/tmp/mmproxy-takeover"), path(c"/tmp/mmproxy-takeover-2"));
    let zeroes = [0u64; 16];
    // SAFETY: names, lists and records are valid for the length of the calls, and what a call would write
    // to is its own. Nothing that is done where it is allowed does harm.
    unsafe {
        vec![
            ("execve", execve(program, list.as_ptr())),
            ("fork", fork()),
            ("write", opened(syscall(libc::SYS_openat, at, null, libc::O_WRONLY))),
            ("read_write", opened(syscall(libc::SYS_openat, at, null, libc::O_RDWR))),
            ("create", opened(syscall(libc::SYS_openat, at, new, libc::O_CREAT, 0o600))),
            ("truncate_open", opened(syscall(libc::SYS_openat, at, null, libc::O_TRUNC))),
            ("openat2", opened(syscall(libc::SYS_openat2, at, null, &[1u64, 0, 0], 24))),
            ("clone3", clone3()),
            ("read", opened(syscall(libc::SYS_openat, at, null, libc::O_RDONLY))),
            ("mkdir", errno(syscall(libc::SYS_mkdirat, at, new, 0o700))),
            ("rename", errno(syscall(libc::SYS_renameat2, at, new, at, other, 0))),
            ("unlink", errno(syscall(libc::SYS_unlinkat, at, new, 0))),
            ("chmod", errno(syscall(libc::SYS_fchmodat, at, null, 0o666))),
            ("truncate", errno(syscall(libc::SYS_truncate, null, 0))),
            ("memfd", opened(syscall(libc::SYS_memfd_create, null, 0))),
            ("packet", opened(syscall(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0))),
            ("raw", opened(syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, 1))),
            ("inet_packet", opened(syscall(libc::SYS_socket, libc::AF_INET, 10, 0x0300))),
            ("unix", opened(syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0))),
            ("audit", opened(syscall(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 9))),
            ("route", opened(syscall(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0))),
            ("kill_parent", errno(syscall(libc::SYS_kill, libc::getppid(), 0))),
            ("kill_group", errno(syscall(libc::SYS_kill, 0, 0))),
            ("kill_self", errno(syscall(libc::SYS_kill, libc::getpid(), 0))),
            // Of no process: where it is allowed, "no such process" and nothing more.
            ("ptrace", errno(syscall(libc::SYS_ptrace, libc::PTRACE_CONT, 0, 0, 0))),
            ("io_uring", opened(syscall(libc::SYS_io_uring_setup, 1, zeroes.as_ptr()))),
            ("unshare", errno(syscall(libc::SYS_unshare, 0))),
            ("setuid", errno(syscall(libc::SYS_setuid, libc::getuid()))),
            ("keystroke", errno(syscall(libc::SYS_ioctl, 0, libc::TIOCSTI, c"x".as_ptr()))),
            ("securebits", errno(syscall(libc::SYS_prctl, libc::PR_SET_SECUREBITS, 0, 0, 0, 0))),
            ("writable_files", descriptors::writable().map_or(-1, |found| found.len() as i32)),
        ]
    }
}

/// In a child, so that this process stays; the child ends with the errno.
unsafe fn execve(program: *const libc::c_char, list: *const *const libc::c_char) -> i32 {
    // SAFETY: the child is a copy of this thread alone, and does nothing but these calls.
    unsafe {
        let child = libc::fork();
        if child < 0 {
            // Not even that: then here.
            return errno(syscall(libc::SYS_execve, program, list, list));
        }
        if child == 0 {
            libc::_exit(errno(syscall(libc::SYS_execve, program, list, list)));
        }
        wait(child)
    }
}

unsafe fn fork() -> i32 {
    // SAFETY: as in `execve`.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        if child > 0 {
            wait(child);
        }
        errno(c_long::from(child))
    }
}

/// A thread group of its own, by the call whose flags a filter cannot see.
unsafe fn clone3() -> i32 {
    // struct clone_args of 64 bytes: no flags, ended by SIGCHLD.
    let arguments = [0u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    // SAFETY: as in `execve`.
    unsafe {
        let child = syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments));
        if child == 0 {
            libc::_exit(0);
        }
        if child > 0 {
            wait(child as libc::pid_t);
        }
        errno(child)
    }
}

unsafe fn wait(child: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is valid for the length of the call.
    unsafe { libc::waitpid(child, &mut status, 0) };
    libc::WEXITSTATUS(status)
}
