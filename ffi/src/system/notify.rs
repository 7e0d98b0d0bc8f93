//! The service manager's protocol: what systemd is told, and how often it wants to hear of us.
//!
//! The environment and the socket are read here, so that `--allow-ffi` is enough. Without a service
//! manager nothing happens.
//!
//! What the assignments and the environment mean is from `sd_notify`. The socket is not: that crate opens
//! one for each notification, which the sandbox refuses, knows no abstract addresses, and waits without
//! limit for a service manager that does not read.

use std::env;
use std::ffi::OsStr;
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::time::Duration;

use sd_notify::NotifyState;
use socket2::SockAddr;

use crate::abi::errors::{Error, Result};
use crate::net::descriptors;

/// A service manager that does not read must not hold the program up.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Sends the assignments in `state`, one per line, to the service manager; 1 when there is one, else 0
/// (sd_notify(3)).
pub fn send(state: &[u8]) -> Result<i32> {
    send_with(state, &[])
}

/// As `send`, with descriptors that the assignments are about.
pub fn send_with(state: &[u8], descriptors: &[RawFd]) -> Result<i32> {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return Ok(0);
    };
    with_time(state).and_then(|state| send_to(&socket, &state, descriptors)).map_err(|error| {
        Error::system(format!("Cannot notify {}", socket.to_string_lossy()), &error)
    })?;
    Ok(1)
}

/// Milliseconds within which the service manager wants to hear `WATCHDOG=1`, or 0 when it does not
/// (sd_watchdog_enabled(3)).
pub fn watchdog_ms() -> u32 {
    sd_notify::watchdog_enabled().map_or(0, milliseconds)
}

fn milliseconds(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// A reload must come with the time at which it began, by the clock of systemd (sd_notify(3),
/// MONOTONIC_USEC).
fn with_time(state: &[u8]) -> IoResult<Vec<u8>> {
    let mut complete = state.to_vec();
    if state.split(|&byte| byte == b'\n').any(|line| line == b"RELOADING=1") {
        let now = NotifyState::monotonic_usec_now()?;
        complete.extend_from_slice(format!("\n{now}").as_bytes());
    }
    Ok(complete)
}

fn send_to(socket: &OsStr, state: &[u8], descriptors: &[RawFd]) -> IoResult<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat())),
        [b'/', ..] => SockAddr::unix(socket),
        _ => {
            let kind = "neither a path nor an abstract name that begins with @";
            return Err(IoError::new(ErrorKind::Unsupported, kind));
        }
    }?;
    descriptors::send_to(sender()?.as_raw_fd(), Some(&address), state, descriptors)?;
    Ok(())
}

/// Opens what `send` needs, if there is a service manager: in the sandbox no such socket can be
/// opened.
pub fn prepare() {
    if env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty()) {
        // An error comes again when it is needed, and is told then.
        let _ = sender();
    }
}

/// The socket to send from, opened once.
fn sender() -> IoResult<&'static UnixDatagram> {
    static SENDER: OnceLock<UnixDatagram> = OnceLock::new();
    if let Some(sender) = SENDER.get() {
        return Ok(sender);
    }
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(TIMEOUT))?;
    Ok(SENDER.get_or_init(|| sender))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_in_the_file_system_is_told() {
        let path = env::temp_dir().join(format!("mmproxy-notify-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).unwrap();
        send_to(path.as_os_str(), b"READY=1", &[]).unwrap();
        assert_eq!(received(&manager), "READY=1");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            send_to(path.as_os_str(), b"READY=1", &[]).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn an_abstract_socket_is_told() {
        let name = format!("mmproxy-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send_to(OsStr::new(&format!("@{name}")), b"STOPPING=1", &[]).unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn another_kind_of_socket_is_refused() {
        let error = send_to(OsStr::new("vsock:2:1234"), b"READY=1", &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_reload_and_nothing_else_carries_the_time() {
        let now = || match NotifyState::monotonic_usec_now().unwrap() {
            NotifyState::MonotonicUsec(microseconds) => microseconds,
            other => panic!("{other}"),
        };
        let before = now();
        let sent =
            String::from_utf8(with_time(b"RELOADING=1\nSTATUS=new subnets").unwrap()).unwrap();
        let (state, time) = sent.rsplit_once("\nMONOTONIC_USEC=").unwrap();
        assert_eq!(state, "RELOADING=1\nSTATUS=new subnets");
        assert!((before..=now()).contains(&time.parse().unwrap()), "{sent}");
        let ready = b"READY=1\nSTATUS=RELOADING=1";
        assert_eq!(with_time(ready).unwrap(), ready);
    }

    #[test]
    fn an_interval_is_rounded_up_and_bounded() {
        assert_eq!(milliseconds(Duration::from_micros(3_000_000)), 3000);
        assert_eq!(milliseconds(Duration::from_micros(1)), 1);
        assert_eq!(milliseconds(Duration::from_micros(99_999_999_999_999)), u32::MAX);
        assert_eq!(milliseconds(Duration::ZERO), 0);
    }
}
