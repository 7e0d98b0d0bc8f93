//! The service manager's file descriptor store, which keeps sockets open while no program runs
//! (sd_pid_notify_with_fds(3), FDSTORE), and what it passes to a program that starts (sd_listen_fds(3)).

use std::env;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, SockRef, Socket};

use super::notify;
use crate::abi::errors::Result;

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// Descriptors that are passed at most.
const MOST: RawFd = 1 << 16;

/// A descriptor that the service manager has passed.
pub struct Passed {
    /// Its name in the store; empty if it has none by which it can be removed.
    pub name: String,
    /// Nothing if it is not a socket of IPv4 or IPv6: then it stays as it is.
    pub socket: Option<Socket>,
}

/// What the service manager has passed to this process. Later calls get nothing.
pub fn passed() -> Vec<Passed> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    if TAKEN.swap(true, Ordering::Relaxed) || number("LISTEN_PID") != Some(process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").map_or(0, |count| count.min(MOST as u32) as RawFd);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let all = (FIRST..FIRST + count).map(|descriptor| {
        let name = names.next().filter(|name| is_name(name)).unwrap_or_default().to_owned();
        Passed { name, socket: take(descriptor) }
    });
    all.collect()
}

/// Whether a descriptor can have this name (FDNAME).
fn is_name(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':')
}

/// The socket of IPv4 or IPv6 that a descriptor is. What else it may be is not touched: where the environment
/// is wrong, Deno has it. Deno has no such socket before the program listens.
fn take(descriptor: RawFd) -> Option<Socket> {
    // SAFETY: no pointers are passed. The call fails where the descriptor is not open.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and nobody closes it meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let domain = SockRef::from(&borrowed).domain().ok()?;
    // SAFETY: it was passed to this process, and `passed` takes it once.
    let own = || Socket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    [Domain::IPV4, Domain::IPV6].contains(&domain).then(own)
}

/// Puts a socket into the store, if there is one, whatever the state of the socket (FDPOLL=0). The same
/// socket a second time changes nothing.
pub fn add(name: &str, socket: &impl AsRawFd) -> Result<()> {
    let state = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
    notify::send_with(state.as_bytes(), &[socket.as_raw_fd()]).map(drop)
}

/// Has the store close what has this name.
pub fn remove(name: &str) -> Result<()> {
    notify::send(format!("FDSTOREREMOVE=1\nFDNAME={name}").as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn only_sockets_of_the_internet_are_taken() {
        let unix = UnixDatagram::unbound().unwrap();
        assert!(take(unix.as_raw_fd()).is_none());
        assert!(take(RawFd::MAX).is_none());
        unix.set_nonblocking(true).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let taken = take(udp.into_raw_fd()).unwrap();
        assert_eq!(taken.local_addr().unwrap().as_socket(), Some(address));
    }

    #[test]
    fn a_name_has_neither_colons_nor_line_feeds() {
        assert!(is_name("tcp-0-0-443-__1"));
        assert!(!is_name("a:b") && !is_name("a\nFDSTOREREMOVE=1") && !is_name(&"a".repeat(256)));
    }
}
