//! Messages to and from the kernel's routing tables (netlink(7), rtnetlink(7)), with libc alone.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::net::socket::{check, sized};

/// A message is its header, a fixed part that depends on the type, then attributes: all in host byte
/// order but for addresses, and each padded to four bytes.
const ALIGNMENT: usize = 4;
const HEADER: usize = size_of::<libc::nlmsghdr>();
const ATTRIBUTE_HEADER: usize = 4;

/// A refusal: the error's number, and the kernel's own words where it has some.
#[derive(Debug)]
pub struct Refused {
    pub error: io::Error,
    pub words: Option<String>,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused { error, words: None }
    }
}

/// A request under construction.
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of a type (`RTM_*`) with flags (`NLM_F_*`) and its fixed part.
    pub fn new(kind: u16, flags: i32, fixed: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Request { bytes }
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Request {
        let length = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    /// The whole message.
    pub fn bytes(&mut self) -> &[u8] {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        &self.bytes
    }
}

/// A message that came: its type and what is behind the header.
#[derive(Debug)]
pub struct Message {
    pub kind: u16,
    pub body: Vec<u8>,
}

/// The attributes in `bytes`, each with its type and value; they end at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The two upper bits say how the value is written.
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A socket to the kernel's routing tables, of the network namespace that the thread is in.
pub struct Routing {
    socket: OwnedFd,
}

impl Routing {
    /// Opens it; needs no capability.
    pub fn open() -> io::Result<Routing> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // Older kernels refuse in numbers alone.
        let _ = set(fd, libc::NETLINK_EXT_ACK);
        // Without a dump's filter the kernel sends more than was asked for, which is left out then.
        let _ = set(fd, libc::NETLINK_GET_STRICT_CHK);
        Ok(Routing { socket })
    }

    /// Sends a request that is answered by an acknowledgement alone.
    pub fn change(&self, request: &mut Request) -> Result<(), Refused> {
        self.exchange(request, |_| ())
    }

    /// Sends a request that is answered by messages; each of them.
    pub fn ask(&self, request: &mut Request) -> Result<Vec<Message>, Refused> {
        let mut came = Vec::new();
        self.exchange(request, |message| came.push(message))?;
        Ok(came)
    }

    /// Sends a request that is answered by messages, and hands each on as it comes: for answers whose
    /// number nothing bounds.
    pub fn exchange(
        &self,
        request: &mut Request,
        mut take: impl FnMut(Message),
    ) -> Result<(), Refused> {
        self.send(request.bytes())?;
        loop {
            let datagram = self.receive()?;
            for (kind, flags, body) in messages(&datagram) {
                match i32::from(kind) {
                    libc::NLMSG_ERROR => return outcome(body, behind_request(flags, body)),
                    libc::NLMSG_DONE => return outcome(body, 4),
                    _ => take(Message { kind, body: body.to_vec() }),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: zeroes are a valid address: the kernel's.
        let mut kernel: libc::sockaddr_nl = unsafe { zeroed() };
        kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // SAFETY: message and address are valid for their lengths.
        sized(|| unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const kernel).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        })?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        receive(self.socket.as_raw_fd(), 0)
    }
}

/// A socket on which the kernel reports changes of its routing and addresses, unasked.
pub struct Changes {
    socket: OwnedFd,
}

impl Changes {
    /// Opens it for these groups, bits of `RTMGRP_*`; needs no capability (netlink(7)).
    pub fn open(groups: libc::c_int) -> io::Result<Changes> {
        let Routing { socket } = Routing::open()?;
        // SAFETY: zeroes are a valid address; the kernel chooses the number (`nl_pid`) itself.
        let mut own: libc::sockaddr_nl = unsafe { zeroed() };
        own.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        own.nl_groups = groups as u32;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the address is valid for its length and outlives the call.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const own).cast(), length) })?;
        Ok(Changes { socket })
    }

    /// Waits for a message that `concerns` the caller, and takes all that wait behind it. What the
    /// kernel could not queue (ENOBUFS) may have been one.
    pub fn wait(&self, concerns: impl Fn(&Message) -> bool) -> io::Result<()> {
        let mut concerned = false;
        loop {
            let flags = if concerned { libc::MSG_DONTWAIT } else { 0 };
            match receive(self.socket.as_raw_fd(), flags) {
                Ok(datagram) => {
                    concerned |= messages(&datagram)
                        .any(|(kind, _, body)| concerns(&Message { kind, body: body.to_vec() }));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => concerned = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(socket: RawFd, flags: libc::c_int) -> io::Result<Vec<u8>> {
    // The kernel fills at most 32 KiB at a time (netlink(7)).
    let mut datagram = vec![0; 32 << 10];
    // SAFETY: the buffer is valid for its length.
    let length = sized(|| unsafe {
        libc::recv(socket, datagram.as_mut_ptr().cast(), datagram.len(), flags)
    })?;
    datagram.truncate(length);
    Ok(datagram)
}

fn set(fd: i32, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is valid for its size and outlives the call.
    check(unsafe {
        libc::setsockopt(fd, libc::SOL_NETLINK, option, (&raw const on).cast(), length)
    })
    .map(|_| ())
}

/// The messages of a datagram: type, flags and what is behind the header.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let kind = u16_at(datagram, 4)?;
        let flags = u16_at(datagram, 6)?;
        let body = datagram.get(HEADER..length)?;
        datagram = datagram.get(aligned(length)..).unwrap_or(&[]);
        Some((kind, flags, body))
    })
}

/// Where the attributes of an `NLMSG_ERROR` lie: behind the number and the request, or its header.
pub(super) fn behind_request(flags: u16, body: &[u8]) -> usize {
    let request = u32_at(body, 4).map_or(0, |length| length as usize);
    let capped = i32::from(flags) & libc::NLM_F_CAPPED != 0;
    4 + if capped { HEADER } else { aligned(request) }
}

/// What `NLMSG_ERROR` or `NLMSG_DONE` says: a negative error number, or 0 or more for success; with
/// `NETLINK_EXT_ACK` there are attributes as well.
pub(super) fn outcome(body: &[u8], attributes_at: usize) -> Result<(), Refused> {
    /// The kernel's sentence (linux/netlink.h).
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let number = u32_at(body, 0).map_or(0, |number| number as i32);
    if number >= 0 {
        return Ok(());
    }
    let words = attributes(body.get(attributes_at..).unwrap_or(&[]))
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, words)| String::from_utf8_lossy(words).trim_end_matches('\0').to_owned());
    Err(Refused { error: io::Error::from_raw_os_error(number.saturating_neg()), words })
}

/// A number of two bytes, if they are there.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..offset + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// A number of four bytes, if they are there.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut request = Request::new(32, 0, &[9; 12]);
        request.attribute(3, b"lo\0").attribute(10, &7u32.to_ne_bytes());
        let bytes = request.bytes();
        assert_eq!(bytes.len(), 16 + 12 + 8 + 8);
        assert_eq!(u32_at(bytes, 0), Some(44));
        let read: Vec<_> = attributes(&bytes[28..]).collect();
        assert_eq!(read, [(3, &b"lo\0"[..]), (10, &7u32.to_ne_bytes())]);
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        for bytes in [&[8, 0, 1, 0, 5][..], &[3, 0, 1, 0], &[0; 4], &[8, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn the_kernels_words_are_found_behind_the_request() {
        let mut body = (-libc::EINVAL).to_ne_bytes().to_vec();
        body.extend_from_slice(Request::new(24, 0, &[0; 12]).bytes());
        body.extend_from_slice(&[8, 0, 1, 0, b'n', b'o', b'!', 0]);
        let at = behind_request(libc::NLM_F_ACK_TLVS as u16, &body);
        let refused = outcome(&body, at).unwrap_err();
        assert_eq!(refused.error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(refused.words.as_deref(), Some("no!"));
    }

    #[test]
    fn the_kernel_answers_a_dump_and_refuses_what_it_does_not_know() {
        let routing = Routing::open().unwrap();
        let fixed = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut all = Request::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &fixed);
        assert!(!routing.ask(&mut all).unwrap().is_empty());
        let refused = routing.ask(&mut Request::new(1000, libc::NLM_F_ACK, &[0; 12])).unwrap_err();
        assert_eq!(refused.error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }
}
