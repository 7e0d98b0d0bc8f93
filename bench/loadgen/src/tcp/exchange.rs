//! One message of 64 bytes there and back: what it holds, and how far it has come.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::proxy::Family;
use crate::sys;

/// The length of a message.
pub const MESSAGE: usize = 64;

/// What the first eight bytes hold, so that a server knows a client's first message.
const MARK: [u8; 8] = *b"loadgen\n";

/// An exchange under way: bytes to send, then `MESSAGE` bytes to receive.
#[derive(Default)]
pub struct Exchange {
    bytes: Vec<u8>,
    sent: usize,
    received: usize,
}

/// How far an exchange came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait until the socket takes more.
    Sending,
    /// Wait until the reply is there.
    Receiving,
    Done,
}

impl Exchange {
    /// Starts again: `prepare` appends what goes before the message, which names the client.
    pub fn start(&mut self, number: u64, prepare: impl FnOnce(&mut Vec<u8>)) {
        self.sent = 0;
        self.received = 0;
        self.bytes.clear();
        prepare(&mut self.bytes);
        let end = self.bytes.len() + MESSAGE;
        self.bytes.extend_from_slice(&MARK);
        self.bytes.extend_from_slice(&number.to_le_bytes());
        self.bytes.resize(end, b'.');
    }

    /// Goes as far as it can without waiting. The end of the stream, a reply that is too long and
    /// one that differs from the message are errors.
    pub fn advance(&mut self, socket: &OwnedFd) -> io::Result<Step> {
        if self.sent < self.bytes.len() {
            match sys::send(socket, &self.bytes[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if sys::is_busy(&error) => return Ok(Step::Sending),
                Err(error) => return Err(error),
            }
            // A reply this early would be a surprise: do not ask for it.
            let sent_all = self.sent == self.bytes.len();
            return Ok(if sent_all { Step::Receiving } else { Step::Sending });
        }
        let mut reply = [0; MESSAGE + 1];
        match sys::receive(socket, &mut reply) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                let message = &self.bytes[self.bytes.len() - MESSAGE..];
                let expected = message.get(self.received..self.received + bytes);
                if expected != Some(&reply[..bytes]) {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.received += bytes;
                Ok(if self.received == MESSAGE { Step::Done } else { Step::Receiving })
            }
            Err(error) if sys::is_busy(&error) => Ok(Step::Receiving),
            Err(error) => Err(error),
        }
    }
}

/// The client that a message names; `None` for bytes that are none of ours.
pub fn named_client(message: &[u8], family: Family) -> Option<SocketAddr> {
    let rest = message.strip_prefix(&MARK)?;
    Some(family.client(u64::from_le_bytes(rest.first_chunk().copied()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_client_behind_whatever_goes_before() {
        let mut exchange = Exchange::default();
        exchange.start(77, |bytes| bytes.extend_from_slice(b"header"));
        assert_eq!(exchange.bytes.len(), 6 + MESSAGE);
        assert_eq!(named_client(&exchange.bytes[6..], Family::V4), Some(Family::V4.client(77)));
        assert_eq!(named_client(&exchange.bytes, Family::V4), None);
        assert_eq!(named_client(b"loadgen\nshort", Family::V4), None);
    }
}
