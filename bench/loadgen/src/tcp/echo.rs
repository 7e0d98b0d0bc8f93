//! The server that sends everything back and looks whom its connections come from.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::proxy::Family;
use crate::run::{Counts, Course, Phase, LOOK};
use crate::sys::{self, Epoll, Interest};
use crate::tcp::accept_all;
use crate::tcp::exchange::named_client;

/// The token of the listener; connections have their descriptor's number.
const LISTENER: u64 = u64::MAX;

struct Connection {
    socket: OwnedFd,
    /// Until its first message has been looked at.
    unknown: Option<SocketAddr>,
}

/// Serves until the course ends. Messages must be short enough for a socket's buffer: a reply that
/// it does not take whole is a failure. With `check`, a connection's first message must come from
/// the client that it names.
pub fn serve_echo(
    listener: OwnedFd,
    check: bool,
    course: &Course,
    counts: &Counts,
) -> io::Result<()> {
    let mut epoll = Epoll::new()?;
    epoll.add(listener.as_raw_fd(), Interest::Read, LISTENER)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while course.phase() < Phase::End {
        let count = epoll.wait(LOOK.as_nanos() as u64)?;
        for event in 0..count {
            let token = epoll.ready(event).token;
            if token == LISTENER {
                accept_all(&listener, &counts.failed, |socket, peer| {
                    let fd = socket.as_raw_fd();
                    epoll.add(fd, Interest::Read, fd as u64)?;
                    if connections.len() <= fd as usize {
                        connections.resize_with(fd as usize + 1, || None);
                    }
                    let unknown = check.then_some(peer);
                    connections[fd as usize] = Some(Connection { socket, unknown });
                    counts.opened.add(1);
                    Ok(())
                })?;
                continue;
            }
            let Some(connection) = &mut connections[token as usize] else { continue };
            if !answer(connection, &mut buffer, counts) {
                connections[token as usize] = None;
            }
        }
    }
    Ok(())
}

/// Sends back what came; false when the connection is over.
fn answer(connection: &mut Connection, buffer: &mut [u8], counts: &Counts) -> bool {
    let bytes = match sys::receive(&connection.socket, buffer) {
        Ok(0) => return false,
        Ok(bytes) => bytes,
        Err(error) if sys::is_busy(&error) => return true,
        Err(_) => {
            counts.failed.add(1);
            return false;
        }
    };
    if let Some(peer) = connection.unknown.take() {
        match named_client(&buffer[..bytes], Family::of(peer)) {
            Some(client) if client == peer => {}
            Some(client) if client.ip() == peer.ip() => counts.other_port.add(1),
            _ => counts.wrong_client.add(1),
        }
    }
    counts.received.add(bytes as u64);
    match sys::send(&connection.socket, &buffer[..bytes]) {
        Ok(sent) if sent == bytes => {
            counts.sent.add(bytes as u64);
            true
        }
        _ => {
            counts.failed.add(1);
            false
        }
    }
}
