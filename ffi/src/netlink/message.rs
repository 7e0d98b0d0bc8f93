//! Requests to the kernel's routing, and its answers (netlink(7), rtnetlink(7)). The messages are those of
//! `netlink-packet-route`, the socket is that of `netlink-sys`.

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, ErrorBuffer, NetlinkBuffer, NetlinkHeader, NlasIterator, NLMSG_ALIGNTO,
    NLM_F_CAPPED, NLM_F_REQUEST,
};
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

/// Bytes of `struct nlmsghdr`, which is before each message.
pub const HEADER: usize = 16;
/// The error's number before an `NLMSG_ERROR`, the result before an `NLMSG_DONE`.
const NUMBER: usize = 4;

/// What the crate reads, or why it cannot.
pub type Decoded<T> = Result<T, DecodeError>;

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

impl From<DecodeError> for Refused {
    fn from(error: DecodeError) -> Refused {
        io::Error::new(io::ErrorKind::InvalidData, error).into()
    }
}

/// A request as it is sent.
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of a type (`RTM_*`) with flags (`NLM_F_*`).
    pub fn new(kind: u16, flags: u16, message: &impl Emitable) -> Request {
        let mut bytes = vec![0; HEADER + message.buffer_len()];
        let mut header = NetlinkHeader::default();
        header.length = bytes.len() as u32;
        header.message_type = kind;
        header.flags = flags | NLM_F_REQUEST;
        header.emit(&mut bytes);
        message.emit(&mut bytes[HEADER..]);
        Request { bytes }
    }

    /// The complete message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A message that came: its type and what is behind the header.
#[derive(Debug)]
pub struct Message {
    pub kind: u16,
    pub body: Vec<u8>,
}

/// A socket to the kernel's routing tables, of the network namespace that the thread is in.
pub struct Routing {
    socket: Socket,
}

impl Routing {
    /// Opens it; needs no capability.
    pub fn open() -> io::Result<Routing> {
        Routing::open_to(NETLINK_ROUTE)
    }

    /// A socket to another part of the kernel, whose requests are answered in the same form.
    pub fn open_to(protocol: isize) -> io::Result<Routing> {
        let socket = Socket::new(protocol)?;
        // Older kernels refuse in numbers alone.
        let _ = socket.set_ext_ack(true);
        // Without a dump's filter the kernel sends more than was requested, which is left out then.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Routing { socket })
    }

    /// Sends a request that is answered by an acknowledgement alone.
    pub fn change(&self, request: &Request) -> Result<(), Refused> {
        self.exchange(request, |_| Ok(()))
    }

    /// Sends a request that is answered by messages; each of them.
    pub fn ask(&self, request: &Request) -> Result<Vec<Message>, Refused> {
        let mut came = Vec::new();
        self.exchange(request, |message| {
            came.push(message);
            Ok(())
        })?;
        Ok(came)
    }

    /// Sends a request that is answered by messages, and hands each on as it comes: for answers whose
    /// number nothing bounds. After an error of `take` the socket is of no more use.
    pub fn exchange(
        &self,
        request: &Request,
        mut take: impl FnMut(Message) -> Decoded<()>,
    ) -> Result<(), Refused> {
        let kernel = SocketAddr::new(0, 0);
        uninterrupted(|| self.socket.send_to(request.bytes(), &kernel, 0))?;
        loop {
            let datagram = receive(&self.socket, 0)?;
            for message in messages(&datagram) {
                let (kind, body) = (message.message_type(), message.payload());
                match i32::from(kind) {
                    libc::NLMSG_ERROR => {
                        return outcome(body, behind_request(message.flags(), body))
                    }
                    libc::NLMSG_DONE => return outcome(body, NUMBER),
                    _ => take(Message { kind, body: body.to_vec() })?,
                }
            }
        }
    }
}

/// A socket on which the kernel reports changes of its routing and addresses, unasked.
pub struct Changes {
    socket: Socket,
}

impl Changes {
    /// Opens it for these groups, bits of `RTMGRP_*`; needs no capability (netlink(7)).
    pub fn open(groups: libc::c_int) -> io::Result<Changes> {
        let Routing { mut socket } = Routing::open()?;
        // The kernel chooses the number itself.
        socket.bind(&SocketAddr::new(0, groups as u32))?;
        Ok(Changes { socket })
    }

    /// Waits for a message that `concerns` the caller, and takes all that wait behind it. What the
    /// kernel could not queue (ENOBUFS) may have been one.
    pub fn wait(&self, concerns: impl Fn(&Message) -> bool) -> io::Result<()> {
        let mut concerned = false;
        loop {
            let flags = if concerned { libc::MSG_DONTWAIT } else { 0 };
            match receive(&self.socket, flags) {
                Ok(datagram) => {
                    concerned |= messages(&datagram).any(|message| {
                        let body = message.payload().to_vec();
                        concerns(&Message { kind: message.message_type(), body })
                    });
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => concerned = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(socket: &Socket, flags: libc::c_int) -> io::Result<Vec<u8>> {
    // The kernel fills at most 32 KiB at a time (netlink(7)).
    let mut datagram = Vec::with_capacity(32 << 10);
    uninterrupted(|| socket.recv(&mut datagram, flags))?;
    Ok(datagram)
}

/// A call, again when a signal interrupted it.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The messages of a datagram; they end at the first malformed one.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(datagram).ok()?;
        datagram = datagram.get(aligned(message.length())..).unwrap_or(&[]);
        Some(message)
    })
}

/// Where the attributes of an `NLMSG_ERROR` lie: behind the number and the request, or its header.
pub(super) fn behind_request(flags: u16, body: &[u8]) -> usize {
    let request = body.get(NUMBER..).and_then(|request| request.first_chunk());
    let length = request.map_or(0, |length| u32::from_ne_bytes(*length));
    NUMBER + if flags & NLM_F_CAPPED != 0 { HEADER } else { aligned(length) }
}

/// What `NLMSG_ERROR` or `NLMSG_DONE` says: a negative error number, or 0 or more for success; with
/// `NETLINK_EXT_ACK` there are attributes as well.
pub(super) fn outcome(body: &[u8], attributes_at: usize) -> Result<(), Refused> {
    /// The kernel's sentence (linux/netlink.h).
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let number = ErrorBuffer::new_checked(body)?.code().map_or(0, i32::from);
    if number >= 0 {
        return Ok(());
    }
    let words = NlasIterator::new(body.get(attributes_at..).unwrap_or(&[]))
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|words| String::from_utf8_lossy(words.value()).trim_end_matches('\0').to_owned());
    Err(Refused { error: io::Error::from_raw_os_error(number.saturating_neg()), words })
}

fn aligned(length: u32) -> usize {
    (length as usize).next_multiple_of(usize::from(NLMSG_ALIGNTO))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP};
    use netlink_packet_route::rule::RuleMessage;
    use netlink_packet_route::AddressFamily;

    use super::*;

    #[test]
    fn malformed_messages_end_the_list() {
        let whole = Request::new(libc::RTM_GETRULE, 0, &RuleMessage::default()).bytes;
        assert_eq!(messages(&[&whole[..], &whole[..]].concat()).count(), 2);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
        }
        assert_eq!(messages(&[0; 32]).count(), 0, "a length of zero");
    }

    #[test]
    fn the_kernels_words_are_found_behind_the_request() {
        let mut body = (-libc::EINVAL).to_ne_bytes().to_vec();
        let request = Request::new(libc::RTM_NEWROUTE, 0, &RuleMessage::default());
        body.extend_from_slice(request.bytes());
        body.extend_from_slice(&[8, 0, 1, 0, b'n', b'o', b'!', 0]);
        let at = behind_request(NLM_F_ACK_TLVS, &body);
        let refused = outcome(&body, at).unwrap_err();
        assert_eq!(refused.error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(refused.words.as_deref(), Some("no!"));
    }

    #[test]
    fn an_outcome_that_is_cut_short_is_an_error() {
        assert!(outcome(&[0; 4], 4).is_ok());
        assert!(outcome(&[0; 3], 4).is_err());
    }

    #[test]
    fn the_kernel_answers_a_dump_and_refuses_what_it_does_not_know() {
        let routing = Routing::open().unwrap();
        let mut rules = RuleMessage::default();
        rules.header.family = AddressFamily::Inet;
        let all = Request::new(libc::RTM_GETRULE, NLM_F_DUMP, &rules);
        assert!(!routing.ask(&all).unwrap().is_empty());
        let refused = routing.ask(&Request::new(1000, NLM_F_ACK, &rules)).unwrap_err();
        assert_eq!(refused.error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }
}
