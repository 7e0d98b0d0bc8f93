//! Sends a request to a running program over its control socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::abi::errors::{Error, Result};

/// Sends a request, a line without its end, and waits for the answer; its length in bytes.
///
/// # Errors
/// If nobody answers in time, or with more than fits.
pub fn ask(path: &str, request: &[u8], answer: &mut [u8], timeout: Duration) -> Result<usize> {
    let deadline = Instant::now() + timeout;
    let failed =
        |doing: &str, error: &std::io::Error| Error::system(format!("{doing} {path}"), error);
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => Error::invalid(format!(
            "Nothing answers at the control socket {path}: start the program with --control {path}"
        )),
        _ => failed("Cannot connect to the control socket", &error),
    })?;
    let sent = stream.set_write_timeout(Some(timeout)).and_then(|()| {
        stream.write_all(request)?;
        stream.write_all(b"\n")
    });
    // What was written may be answered even where the other end has closed already.
    let mut length = 0;
    loop {
        let Some(room) = answer.get_mut(length..).filter(|room| !room.is_empty()) else {
            return Err(Error::invalid(format!("The answer at {path} is too long")));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::invalid(format!("No answer at the control socket {path} in time")));
        }
        let received = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(room));
        match received {
            Ok(0) => break,
            Ok(received) => length += received,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed("Cannot read from the control socket", &error)),
        }
    }
    match answer[..length].split_last() {
        Some((b'\n', line)) => Ok(line.len()),
        _ => {
            sent.map_err(|error| failed("Cannot write to the control socket", &error))?;
            Err(Error::invalid(format!(
                "The control socket {path} closed without an answer: it answers its own user and root alone"
            )))
        }
    }
}
