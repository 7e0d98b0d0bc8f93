//! A name that this process has in its network namespace while it lives: an abstract unix socket, which other
//! processes find in /proc/net/unix.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Mutex;

use crate::abi::errors::{Error, Result};
use crate::system::sync::lock;

static HELD: Mutex<Option<UnixDatagram>> = Mutex::new(None);

/// Takes a name, instead of the one that was taken before. Nothing is ever read from the socket.
pub fn hold(name: &[u8]) -> Result<i32> {
    let address = SocketAddr::from_abstract_name(name)
        .map_err(|error| Error::system("Cannot take a name", &error))?;
    let socket = UnixDatagram::bind_addr(&address)
        .map_err(|error| Error::system("Cannot take a name", &error))?;
    *lock(&HELD) = Some(socket);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_listed_as_long_as_it_is_held() {
        let listed = |name: &str| {
            let table = std::fs::read_to_string("/proc/self/net/unix").unwrap();
            table.lines().any(|line| line.ends_with(&format!(" @{name}")))
        };
        let [one, other] =
            ["one", "other"].map(|part| format!("test/{}/{part}", std::process::id()));
        hold(one.as_bytes()).unwrap();
        assert!(listed(&one));
        hold(other.as_bytes()).unwrap();
        assert!(listed(&other) && !listed(&one));
    }
}
