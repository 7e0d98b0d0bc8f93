//! The system calls, each with its own check; `unsafe` is in this module and below it alone.

mod address;
mod batch;
mod bpf;

pub use address::RawAddress;
pub use batch::{Batch, MAX_SEGMENTS, MAX_SEGMENT_BYTES};
pub use bpf::echo_on_loopback;

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void, socklen_t};

use crate::proxy::Family;

/// Connections that may wait for `accept`.
const BACKLOG: c_int = 4096;

/// Turns a result below zero into the error behind it.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    // SAFETY: a timespec of zeroes is valid, and the call only writes it.
    let time = unsafe {
        let mut time: libc::timespec = zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// User and system time of this process so far, in seconds.
pub fn cpu_seconds() -> f64 {
    // SAFETY: a rusage of zeroes is valid, and the call only writes it.
    let usage = unsafe {
        let mut usage: libc::rusage = zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Raises the limit of open files to the hard limit.
pub fn raise_file_limit() -> io::Result<()> {
    // SAFETY: the structure is ours, and the calls only read and write it.
    unsafe {
        let mut limit: libc::rlimit = zeroed();
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
    }
    Ok(())
}

/// Prepares a thread that will do network work: its own descriptor table (a shared one costs an
/// atomic operation a system call) and timers without slack. Descriptors opened before stay open in
/// the other table too, so open sockets after this call.
pub fn prepare_thread() -> io::Result<()> {
    // SAFETY: no pointers are passed.
    unsafe {
        check(libc::unshare(libc::CLONE_FILES))?;
        check(libc::prctl(libc::PR_SET_TIMERSLACK, 1))?;
    }
    Ok(())
}

/// A nonblocking TCP socket.
pub fn tcp_socket(family: Family) -> io::Result<OwnedFd> {
    socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK)
}

/// A blocking UDP socket.
pub fn udp_socket(family: Family) -> io::Result<OwnedFd> {
    socket(family, libc::SOCK_DGRAM)
}

/// Makes a socket's buffers as large as the system lets anyone have.
pub fn enlarge_buffers(fd: &OwnedFd) -> io::Result<()> {
    const LARGE: c_int = 16 << 20;
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, LARGE)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, LARGE)
}

fn socket(family: Family, kind: c_int) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    // SAFETY: no pointers are passed; the descriptor is new and ours.
    unsafe {
        let fd = check(libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets an option that is an `int`.
pub fn set_option(fd: &OwnedFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set_raw_option(fd, level, name, &value)
}

/// The longest that a blocking receive on this socket waits.
pub fn set_receive_timeout(fd: &OwnedFd, milliseconds: u32) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: libc::time_t::from(milliseconds / 1000),
        tv_usec: libc::suseconds_t::from(milliseconds % 1000 * 1000),
    };
    set_raw_option(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time)
}

fn set_raw_option<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let value: *const T = value;
    // SAFETY: the value is valid for reading its own size.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.cast::<c_void>(),
            size_of::<T>() as socklen_t,
        )
    })?;
    Ok(())
}

/// How many datagrams found the receive buffer of this socket full (`SO_MEMINFO`).
pub fn dropped(fd: &OwnedFd) -> io::Result<u64> {
    /// `SK_MEMINFO_DROPS` and the number of values, of linux/sock_diag.h.
    const DROPS: usize = 8;
    const VALUES: usize = 9;
    let mut values = [0u32; VALUES];
    let mut length = size_of_val(&values) as socklen_t;
    // SAFETY: the array is valid for writing its own size.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &mut length,
        )
    })?;
    Ok(u64::from(values[DROPS]))
}

/// Binds a socket to an address.
pub fn bind(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let length = RawAddress::length(Family::of(address));
    let raw = RawAddress::from(address);
    let raw: *const RawAddress = &raw;
    // SAFETY: the address is valid for reading its own size.
    check(unsafe { libc::bind(fd.as_raw_fd(), raw.cast(), length) })?;
    Ok(())
}

/// The same for an address that need not be on any interface (`IP_FREEBIND`, see ip(7)).
pub fn bind_freely(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    set_option(fd, libc::SOL_IP, libc::IP_FREEBIND, 1)?;
    bind(fd, address)
}

/// Connects a socket; for a nonblocking one the handshake may still be under way afterwards.
pub fn connect(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let length = RawAddress::length(Family::of(address));
    let raw = RawAddress::from(address);
    let raw: *const RawAddress = &raw;
    // SAFETY: the address is valid for reading its own size.
    let result = check(unsafe { libc::connect(fd.as_raw_fd(), raw.cast(), length) });
    match result {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// A nonblocking TCP socket that listens at an address.
pub fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = tcp_socket(Family::of(address))?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(&socket, address)?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// The next waiting connection, nonblocking, and who it is from.
pub fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
    // SAFETY: address and length are valid for writing, and the length says how large it is; the
    // descriptor is new and ours.
    unsafe {
        let mut address = RawAddress::empty();
        let mut length = RawAddress::ROOM;
        let pointer: *mut RawAddress = &mut address;
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let fd = check(libc::accept4(listener.as_raw_fd(), pointer.cast(), &mut length, flags))?;
        Ok((OwnedFd::from_raw_fd(fd), address.into()))
    }
}

/// Sends what the socket has room for; returns how many bytes.
pub fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the slice is valid for reading its length.
    check_size(unsafe {
        libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL)
    })
}

/// Receives what there is, into the buffer; returns how many bytes, 0 at the end of the stream.
pub fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the slice is valid for writing its length.
    check_size(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
}

/// Receives up to `buffer.len()` bytes of a TCP stream and throws them away uncopied (`MSG_TRUNC`,
/// see tcp(7)); returns how many, 0 at the end of the stream.
pub fn discard(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the slice is valid for writing its length, though nothing is written.
    check_size(unsafe {
        libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC)
    })
}

/// Ends the sending direction of a TCP connection.
pub fn shutdown_send(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

/// Waits until the socket can be read or is at its end; false when the time ran out.
pub fn wait_readable(fd: &OwnedFd, milliseconds: c_int) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, valid for reading and writing.
    Ok(check(unsafe { libc::poll(&mut poll, 1, milliseconds) })? > 0)
}

/// Asks a process to end (`SIGTERM`).
pub fn terminate(process: u32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::kill(process as libc::pid_t, libc::SIGTERM) })?;
    Ok(())
}

/// True for an error that only says "not now".
pub fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A level-triggered epoll and the events of its last wait.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What an epoll reports of one descriptor.
#[derive(Clone, Copy)]
pub struct Ready {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
}

/// What a descriptor is watched for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    ReadWrite,
}

impl Interest {
    fn bits(self) -> u32 {
        match self {
            Interest::Read => libc::EPOLLIN as u32,
            Interest::ReadWrite => (libc::EPOLLIN | libc::EPOLLOUT) as u32,
        }
    }
}

impl Epoll {
    /// An epoll that reports up to 256 descriptors a wait.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no pointers are passed; the descriptor is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Epoll { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    /// Watches a descriptor; `token` comes back with its events.
    pub fn add(&self, fd: RawFd, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, interest, token)
    }

    /// Changes what a descriptor is watched for.
    pub fn modify(&self, fd: RawFd, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest, token)
    }

    fn control(&self, what: c_int, fd: RawFd, interest: Interest, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token };
        // SAFETY: the event is valid for reading.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, fd, &mut event) })?;
        Ok(())
    }

    /// Waits up to `nanoseconds` and returns how many descriptors are ready.
    pub fn wait(&mut self, nanoseconds: u64) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: (nanoseconds / 1_000_000_000) as libc::time_t,
            tv_nsec: (nanoseconds % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: the buffer is valid for writing as many events as are requested, the time for
        // reading.
        let count = check(unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as c_int,
                &timeout,
                std::ptr::null::<c_void>(),
                0,
            ) as c_int
        });
        match count {
            Ok(count) => Ok(count as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The `index`th of the descriptors that the last wait returned.
    pub fn ready(&self, index: usize) -> Ready {
        let event = self.events[index];
        let over = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        Ready {
            token: event.u64,
            readable: event.events & (libc::EPOLLIN as u32 | over) != 0,
            writable: event.events & (libc::EPOLLOUT as u32 | over) != 0,
        }
    }
}
