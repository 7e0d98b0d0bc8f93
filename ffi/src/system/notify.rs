//! The service manager's protocol: what systemd is told, and how often it wants to hear of us.
//!
//! The environment and the socket are read here, so that `--allow-ffi` is enough. Without a service
//! manager nothing happens.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;
use std::time::Duration;

use crate::abi::errors::{Error, Result};

/// A service manager that does not read must not hold the program up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends the assignments in `state`, one a line, to the service manager; 1 when there is one, else 0
/// (sd_notify(3)).
pub fn send(state: &[u8]) -> Result<i32> {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return Ok(0);
    };
    send_to(&socket, &with_time(state)).map_err(|error| {
        Error::system(format!("Cannot notify {}", socket.to_string_lossy()), &error)
    })?;
    Ok(1)
}

/// Milliseconds within which the service manager wants to hear `WATCHDOG=1`, or 0 when it does not
/// (sd_watchdog_enabled(3)).
pub fn watchdog_ms() -> u32 {
    watchdog_of(env::var_os("WATCHDOG_USEC"), env::var_os("WATCHDOG_PID"), std::process::id())
}

fn watchdog_of(interval: Option<OsString>, process: Option<OsString>, own: u32) -> u32 {
    let number = |text: OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
    // Inherited from a parent, it is not meant for this process.
    if process.is_some_and(|process| number(process) != Some(u64::from(own))) {
        return 0;
    }
    let microseconds = interval.and_then(number).unwrap_or(0);
    u32::try_from(microseconds.div_ceil(1000)).unwrap_or(u32::MAX)
}

/// A reload must come with the time at which it began, by the clock of systemd (sd_notify(3),
/// MONOTONIC_USEC).
fn with_time(state: &[u8]) -> Vec<u8> {
    let mut whole = state.to_vec();
    if state.split(|&byte| byte == b'\n').any(|line| line == b"RELOADING=1") {
        whole.extend_from_slice(format!("\nMONOTONIC_USEC={}", monotonic_us()).as_bytes());
    }
    whole
}

fn monotonic_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the length of the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

fn send_to(socket: &OsStr, state: &[u8]) -> IoResult<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => {
            let kind = "neither a path nor an abstract name that begins with @";
            return Err(IoError::new(ErrorKind::Unsupported, kind));
        }
    };
    sender()?.send_to_addr(state, &address)?;
    Ok(())
}

/// Opens what `send` needs, where there is a service manager: in the sandbox no such socket can be
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
    sender.set_write_timeout(Some(PATIENCE))?;
    Ok(SENDER.get_or_init(|| sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_socket_in_the_file_system_is_told() {
        let path = env::temp_dir().join(format!("mmproxy-notify-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).unwrap();
        send_to(path.as_os_str(), b"READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(send_to(path.as_os_str(), b"READY=1").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn an_abstract_socket_is_told() {
        let name = format!("mmproxy-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send_to(OsStr::new(&format!("@{name}")), b"STOPPING=1").unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn another_kind_of_socket_is_refused() {
        let error = send_to(OsStr::new("vsock:2:1234"), b"READY=1").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_reload_and_nothing_else_carries_the_time() {
        let before = monotonic_us();
        let told = String::from_utf8(with_time(b"RELOADING=1\nSTATUS=new subnets")).unwrap();
        let (state, time) = told.rsplit_once("\nMONOTONIC_USEC=").unwrap();
        assert_eq!(state, "RELOADING=1\nSTATUS=new subnets");
        assert!((before..=monotonic_us()).contains(&time.parse().unwrap()), "{told}");
        assert_eq!(with_time(b"READY=1\nSTATUS=RELOADING=1"), b"READY=1\nSTATUS=RELOADING=1");
    }

    #[test]
    fn the_watchdog_is_ours_or_none() {
        let text = |text: &str| Some(OsString::from(text));
        assert_eq!(watchdog_of(text("3000000"), None, 7), 3000);
        assert_eq!(watchdog_of(text("3000000"), text("7"), 7), 3000);
        assert_eq!(watchdog_of(text("3000000"), text("8"), 7), 0);
        assert_eq!(watchdog_of(text("1"), None, 7), 1);
        assert_eq!(watchdog_of(text("soon"), None, 7), 0);
        assert_eq!(watchdog_of(None, None, 7), 0);
        assert_eq!(watchdog_of(text("99999999999999"), None, 7), u32::MAX);
    }
}
