//! SIGUSR1, on which Deno opens its debugger on 127.0.0.1:9229.
//!
//! Anyone who reaches that port can run any code in this process. Deno registers the signal half a second after the
//! start (docs/decisions/0061-sigusr1.md); the handler that is set here afterwards stays, and only counts.

use std::mem;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::abi::errors::{Error, Result};

/// Signals since `received` was last asked.
static RECEIVED: AtomicU32 = AtomicU32::new(0);

/// Where Deno's debugger listens.
const DEBUGGER: (u32, u16) = (0x7f00_0001, 9229);

extern "C" fn count(_signal: libc::c_int) {
    // The only thing that it does: safe in a handler (signal-safety(7)).
    RECEIVED.fetch_add(1, Ordering::Relaxed);
}

/// Has SIGUSR1 counted from now on, and nothing else done; 1 when somebody else had a handler for it.
pub fn take_over() -> Result<i32> {
    // SAFETY: an all-zero sigaction is a value (SIG_DFL); both are valid for the length of the calls, and
    // the handler is async-signal-safe.
    unsafe {
        let mut ours: libc::sigaction = mem::zeroed();
        ours.sa_sigaction = count as *const () as libc::sighandler_t;
        ours.sa_flags = libc::SA_RESTART;
        libc::sigfillset(&mut ours.sa_mask);
        let mut before: libc::sigaction = mem::zeroed();
        if libc::sigaction(libc::SIGUSR1, &ours, &mut before) != 0 {
            return Err(Error::system(
                "Cannot take SIGUSR1 over",
                &std::io::Error::last_os_error(),
            ));
        }
        let nobody = [libc::SIG_DFL, libc::SIG_IGN, ours.sa_sigaction];
        Ok(i32::from(!nobody.contains(&before.sa_sigaction)))
    }
}

/// How many SIGUSR1 came since the last call.
pub fn received() -> u32 {
    RECEIVED.swap(0, Ordering::Relaxed)
}

/// Whether this process listens where Deno's debugger does.
pub fn debugger_listens() -> bool {
    let files = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    files
        .filter_map(|file| file.file_name().to_str()?.parse().ok())
        .any(|fd| listening_on(fd) == Some(DEBUGGER))
}

/// The IPv4 address and port on which a descriptor listens, if it does; host byte order.
fn listening_on(fd: RawFd) -> Option<(u32, u16)> {
    let mut listens: libc::c_int = 0;
    let mut size = mem::size_of_val(&listens) as libc::socklen_t;
    // SAFETY: `listens` is valid for writing `size` bytes.
    let outcome = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            ptr::from_mut(&mut listens).cast(),
            &mut size,
        )
    };
    if outcome != 0 || listens == 0 {
        return None;
    }
    let mut name = libc::sockaddr_in {
        sin_family: 0,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    };
    let mut size = mem::size_of_val(&name) as libc::socklen_t;
    // SAFETY: `name` is valid for writing `size` bytes; a longer name is cut.
    let outcome = unsafe { libc::getsockname(fd, ptr::from_mut(&mut name).cast(), &mut size) };
    let ipv4 = outcome == 0 && i32::from(name.sin_family) == libc::AF_INET;
    ipv4.then(|| (u32::from_be(name.sin_addr.s_addr), u16::from_be(name.sin_port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_signal_is_counted_and_another_handler_is_noticed() {
        assert_eq!(take_over().unwrap(), 0);
        received();
        // SAFETY: no pointers are passed; the signal comes before raise(3) returns.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!((received(), received()), (1, 0));
        assert_eq!(take_over().unwrap(), 0, "it is ours already");

        extern "C" fn other(_signal: libc::c_int) {}
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, other as *const () as libc::sighandler_t) };
        assert_eq!(take_over().unwrap(), 1);
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(received(), 1);
    }

    #[test]
    fn a_listening_socket_is_told_from_others() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listening_on(listener.as_raw_fd()), Some((0x7f00_0001, port)));
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(listening_on(stream.as_raw_fd()), None);
        let other = std::net::TcpListener::bind("[::1]:0").unwrap();
        assert_eq!(listening_on(other.as_raw_fd()), None);
        assert_eq!(listening_on(std::fs::File::open("/").unwrap().as_raw_fd()), None);
    }
}
