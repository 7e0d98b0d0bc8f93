//! The format of a hand-over: frames, and the fields that they consist of.
//!
//! The two programs may have different versions, so the format is defined here and does not follow any record in
//! memory. Numbers are little-endian. A frame is `MAGIC`, its kind, two zero bytes, the length of its payload (u32),
//! and the payload; its descriptors come with its first byte.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::net::descriptors;

/// The first byte of a frame: no line of JSON begins with it.
pub const MAGIC: u8 = 0xd7;
/// Both programs must have the same.
pub const VERSION: u32 = 1;

const HEAD: usize = 8;
/// A frame's payload has at most this many bytes.
const MOST_PAYLOAD: usize = 4 << 20;

/// What a frame says. `>`: from the old program to the new one; `<`: back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `>` Version, clock in milliseconds, workers, then words of the program's own.
    Hello = 1,
    /// `>` Listening sockets.
    Listening = 2,
    /// `>` The control socket.
    Control = 3,
    /// `>` That was all that listens.
    Listed = 4,
    /// `<` The new program has started; which sockets it does not take.
    Ready = 5,
    /// `>` UDP flows.
    Flows = 6,
    /// `>` Sessions of UDP peers.
    Sessions = 7,
    /// `>` This many flows and sessions were sent.
    Moved = 8,
    /// `<` All of them are there.
    Got = 9,
    /// `>` Read from now on.
    Go = 10,
    /// `<` Every worker reads.
    Started = 11,
    /// `>` The old program reads no more, and has told the service manager.
    Done = 12,
    /// Either way: it is off, and why.
    Refused = 13,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::*;
        let all = [
            Hello, Listening, Control, Listed, Ready, Flows, Sessions, Moved, Got, Go, Started,
            Done, Refused,
        ];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A frame as received.
pub struct Frame {
    pub kind: Kind,
    pub payload: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

/// One end of the connection.
pub struct Channel(UnixStream);

impl Channel {
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(stream: UnixStream, timeout: Duration) -> io::Result<Channel> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Channel(stream))
    }

    /// The other end's process (unix(7), SO_PEERCRED); 0 where the kernel does not say.
    pub fn peer_process(&self) -> u32 {
        crate::control::server::peer_of(&self.0).map_or(0, |peer| peer.pid as u32)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Where the other end has closed, or does not read in time.
    pub fn send(&self, kind: Kind, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let mut frame = vec![MAGIC, kind as u8, 0, 0];
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(payload);
        let mut sent = descriptors::send(self.0.as_raw_fd(), &frame, fds)?;
        while sent < frame.len() {
            sent += descriptors::send(self.0.as_raw_fd(), &frame[sent..], &[])?;
        }
        Ok(())
    }

    /// Receives a frame, each part of it within so much time.
    ///
    /// # Errors
    /// `UnexpectedEof` where the other end has closed, `WouldBlock` if nothing came in time,
    /// `InvalidData` where what came is not a frame: the bytes that came are the error's text then.
    pub fn receive(&self, timeout: Duration) -> io::Result<Frame> {
        self.0.set_read_timeout(Some(timeout))?;
        let (mut head, mut fds) = ([0; HEAD], Vec::new());
        let mut read = 0;
        while read < HEAD {
            match descriptors::receive(self.0.as_raw_fd(), &mut head[read..], &mut fds)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
            if head[0] != MAGIC {
                return Err(self.other_words(&head[..read]));
            }
        }
        let [_, kind, _, _, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        let kind = Kind::of(kind).ok_or(ErrorKind::InvalidData)?;
        if length > MOST_PAYLOAD {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        (&self.0).read_exact(&mut payload)?;
        Ok(Frame { kind, payload, descriptors: fds })
    }

    /// Receives a frame of a kind.
    ///
    /// # Errors
    /// As `receive`; a refusal is an error with its text.
    pub fn expect(&self, kind: Kind, timeout: Duration) -> io::Result<Frame> {
        let frame = self.receive(timeout)?;
        match frame.kind {
            got if got == kind => Ok(frame),
            Kind::Refused => {
                Err(io::Error::other(String::from_utf8_lossy(&frame.payload).into_owned()))
            }
            got => Err(io::Error::other(format!("{got:?} came where {kind:?} was expected"))),
        }
    }

    /// What is not a frame: a program that knows no hand-over answers with a line.
    fn other_words(&self, start: &[u8]) -> io::Error {
        let mut words = start.to_vec();
        let _ = (&self.0).take(1024).read_to_end(&mut words);
        let text = String::from_utf8_lossy(&words);
        let text = text.trim_end();
        let refusal = text.strip_prefix("{\"error\":\"").and_then(|it| it.strip_suffix("\"}"));
        io::Error::new(ErrorKind::InvalidData, refusal.unwrap_or(text))
    }
}

/// Words of a payload, written.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes, with their number in front.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    /// Port, scope, family (4, 6, or 0 for none) and the address in 16 bytes.
    pub fn address(&mut self, address: Option<SocketAddr>) {
        let (family, ip) = match address.map(|address| address.ip()) {
            Some(IpAddr::V4(v4)) => (4, v4.to_ipv6_mapped().octets()),
            Some(IpAddr::V6(v6)) => (6, v6.octets()),
            None => (0, [0; 16]),
        };
        let scope = match address {
            Some(SocketAddr::V6(v6)) => v6.scope_id(),
            _ => 0,
        };
        self.u32(address.map_or(0, |address| u32::from(address.port())));
        self.u32(scope);
        self.u8(family);
        self.0.extend_from_slice(&ip);
    }
}

/// Words of a payload, read. Each is `None` if there are fewer bytes, or they make no sense.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// Whether all was read.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// `Some(None)`: none was written.
    #[allow(clippy::option_option)]
    pub fn address(&mut self) -> Option<Option<SocketAddr>> {
        let port = u16::try_from(self.u32()?).ok()?;
        let scope = self.u32()?;
        let family = self.u8()?;
        let octets: [u8; 16] = self.take(16)?.try_into().ok()?;
        let ip = Ipv6Addr::from(octets);
        Some(match family {
            0 => None,
            4 => Some(SocketAddr::new(ip.to_ipv4_mapped()?.into(), port)),
            6 => Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope))),
            _ => return None,
        })
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_secs(5);

    fn channels() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        (Channel::new(one, SOON).unwrap(), Channel::new(other, SOON).unwrap())
    }

    #[test]
    fn frames_arrive_one_by_one_with_their_descriptors() {
        let (here, there) = channels();
        let (file, _other) = UnixStream::pair().unwrap();
        here.send(Kind::Hello, b"one", &[file.as_raw_fd()]).unwrap();
        here.send(Kind::Listening, &[], &[file.as_raw_fd(); 2]).unwrap();
        here.send(Kind::Refused, b"no", &[]).unwrap();
        drop(here);
        let first = there.expect(Kind::Hello, SOON).unwrap();
        assert_eq!((&first.payload[..], first.descriptors.len()), (&b"one"[..], 1));
        let second = there.expect(Kind::Listening, SOON).unwrap();
        assert_eq!((second.payload.len(), second.descriptors.len()), (0, 2));
        assert_eq!(there.expect(Kind::Go, SOON).err().unwrap().to_string(), "no");
        assert_eq!(there.receive(SOON).err().unwrap().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn large_frames_arrive_complete() {
        let (here, there) = channels();
        let payload = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| here.send(Kind::Flows, &payload, &[]).unwrap());
            assert_eq!(there.receive(SOON).unwrap().payload, payload);
        });
    }

    #[test]
    fn what_is_not_a_frame_is_shown() {
        let (one, other) = UnixStream::pair().unwrap();
        (&one).write_all(b"{\"error\":\"there is no command\"}\n").unwrap();
        drop(one);
        let error = Channel::new(other, SOON).unwrap().receive(SOON).err().unwrap();
        assert_eq!(error.to_string(), "there is no command");
    }

    #[test]
    fn words_are_read_as_they_were_written() {
        let addresses = ["192.0.2.1:80", "[2001:db8::1]:443", "[fe80::1%3]:53"];
        let mut writer = Writer::default();
        writer.u8(1);
        writer.u64(u64::MAX);
        addresses.iter().for_each(|text| writer.address(Some(text.parse().unwrap())));
        writer.address(None);
        writer.bytes(b"xyz");
        let mut reader = Reader(&writer.0);
        assert_eq!((reader.u8(), reader.u64()), (Some(1), Some(u64::MAX)));
        for text in addresses {
            assert_eq!(reader.address(), Some(Some(text.parse().unwrap())));
        }
        assert_eq!(reader.address(), Some(None));
        assert_eq!(reader.bytes(), Some(&b"xyz"[..]));
        assert!(reader.is_over());
        assert_eq!((reader.u32(), Reader(&[9, 0, 0, 0, 1]).bytes()), (None, None));
    }
}
