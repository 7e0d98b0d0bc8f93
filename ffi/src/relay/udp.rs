//! UDP flows and the batches that carry their datagrams.
//!
//! Datagrams come in by `recvmmsg` and go out by `sendmmsg`; neighbours of one size and one flow go
//! as one segmented send (udp(7), UDP_SEGMENT). Buffers are allocated once a thread.

use std::collections::HashMap;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::{flows, routes};
use crate::frame::SPP_LENGTH;
use crate::service::lock;
use crate::socket::{check, sized, RawAddr, Source};

/// Most datagrams taken in at once: the more, the more of them share a client and so a send.
pub const INTAKE: usize = 8192;
/// Replies sent at once, and segments in one send (the kernel's UDP_MAX_SEGMENTS).
pub const BATCH: usize = 64;
/// The largest UDP datagram, and one byte more: a longer one shows.
const ROOM: usize = 65_536;
/// The distance between two buffers. A multiple of 64 KiB would put the head of every datagram into
/// the same set of the processor's caches.
const STRIDE: usize = ROOM + 9 * 64;
/// Nearly every datagram of a network of 1,500 bytes a packet fits in here; buffers so close together
/// spare the processor's caches and page tables. An odd number of cache lines, see `STRIDE`.
const SLOT: usize = 25 * 64;
/// The kernel refuses segmented sends of more.
const MOST_BYTES: usize = 65_000;
/// Room for one IPV6_PKTINFO and one UDP_SEGMENT.
const CONTROL: usize = 96;

/// Whose flow it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The client's that a header names.
    Client(SocketAddr),
    /// The peer's own: LOCAL, UNKNOWN, UNSPEC.
    Peer(SocketAddr),
}

impl Owner {
    /// From where the service sees the flow come.
    pub fn source(self) -> Source {
        match self {
            Owner::Client(client) => Source::Client(client),
            Owner::Peer(_) => Source::Own,
        }
    }

    /// The client's address, or the peer's.
    pub fn address(self) -> SocketAddr {
        match self {
            Owner::Client(address) | Owner::Peer(address) => address,
        }
    }
}

/// Where a datagram came from, and which address of ours it was sent to (on a wildcard listener).
#[derive(Clone, Copy, PartialEq)]
pub struct Path {
    pub peer: RawAddr,
    local: Local,
}

/// An address of this host, to reply from. Family 0: the listener's own, which needs no telling.
#[derive(Clone, Copy, Default, PartialEq)]
struct Local {
    family: u8,
    address: [u8; 16],
    /// Only for link-local addresses, which mean nothing without it.
    interface: u32,
}

/// A flow's upstream socket and the way back. Any listener may send on it; its own reads it.
pub struct Flow {
    pub socket: OwnedFd,
    last_used: AtomicU64,
    /// Which route last sent for the client: the way back is that route's.
    route: AtomicU64,
    way_back: Mutex<Option<WayBack>>,
    /// What it has carried, where the access log wants to know.
    pub traffic: Traffic,
}

/// What a flow has carried. Any listener may add; sums are all that is asked of it.
#[derive(Default)]
pub struct Traffic {
    pub datagrams_up: AtomicU64,
    pub bytes_up: AtomicU64,
    pub datagrams_down: AtomicU64,
    pub bytes_down: AtomicU64,
}

/// Where replies go, and what precedes each.
#[derive(Clone, Copy, PartialEq)]
pub struct WayBack {
    path: Path,
    /// A Simple Proxy Protocol header, as it came.
    header: Option<[u8; SPP_LENGTH]>,
}

/// The flows of all listeners, so that a client keeps its flow when its next peer is served by
/// another listener.
#[derive(Default)]
pub struct Directory {
    flows: Mutex<HashMap<Owner, Weak<Flow>>>,
}

impl Flow {
    pub fn new(socket: OwnedFd, now: u64) -> Flow {
        Flow {
            socket,
            last_used: AtomicU64::new(now),
            route: AtomicU64::new(0),
            way_back: Mutex::new(None),
            traffic: Traffic::default(),
        }
    }

    /// Notes that the flow carried something.
    #[inline]
    pub fn touch(&self, now: u64) {
        self.last_used.store(now, Ordering::Relaxed);
    }

    /// Replies go back along this route from now on. `serial` is unique to the route.
    #[inline]
    pub fn come_by(&self, serial: u64, way_back: impl FnOnce() -> WayBack) {
        if self.route.load(Ordering::Relaxed) != serial {
            *lock(&self.way_back) = Some(way_back());
            self.route.store(serial, Ordering::Release);
        }
    }

    /// The serial of the route that last sent.
    #[inline]
    pub fn route(&self) -> u64 {
        self.route.load(Ordering::Acquire)
    }

    /// The way back along it.
    pub fn way_back(&self) -> Option<WayBack> {
        *lock(&self.way_back)
    }
}

impl flows::Flow for Arc<Flow> {
    fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }
}

impl Directory {
    /// The flow of an owner, wherever it is served; or the one that `open` makes.
    pub fn find_or_open<E>(
        &self,
        owner: Owner,
        open: impl FnOnce() -> Result<Arc<Flow>, E>,
    ) -> Result<Found, E> {
        // The lock is held while the socket is opened: two listeners must not open the same flow.
        let mut flows = lock(&self.flows);
        if let Some(flow) = flows.get(&owner).and_then(Weak::upgrade) {
            return Ok(Found::Elsewhere(flow));
        }
        let flow = open()?;
        flows.insert(owner, Arc::downgrade(&flow));
        Ok(Found::Opened(flow))
    }

    /// Forgets a flow that has ended.
    pub fn remove(&self, owner: &Owner, flow: &Arc<Flow>) {
        let mut flows = lock(&self.flows);
        if flows.get(owner).is_some_and(|known| known.as_ptr() == Arc::as_ptr(flow)) {
            flows.remove(owner);
        }
    }
}

/// What `find_or_open` came to.
pub enum Found {
    Elsewhere(Arc<Flow>),
    Opened(Arc<Flow>),
}

impl routes::Path for Path {
    #[inline]
    fn bytes(&self) -> impl AsRef<[u8]> {
        let mut bytes = [0; 52];
        let peer = self.peer.bytes();
        bytes[..peer.len()].copy_from_slice(peer);
        bytes[28..44].copy_from_slice(&self.local.address);
        bytes[44..48].copy_from_slice(&self.local.interface.to_ne_bytes());
        bytes[48] = self.local.family;
        bytes
    }
}

impl WayBack {
    /// The way back along a path; `header` is what the replies are wrapped in, if they are.
    pub fn new(path: Path, header: Option<&[u8]>) -> WayBack {
        WayBack { path, header: header.and_then(|header| header.try_into().ok()) }
    }
}

/// One datagram of a batch.
pub struct Received<'a> {
    pub data: &'a [u8],
    pub path: Path,
    /// Longer than any UDP datagram can be.
    pub truncated: bool,
}

/// A batch of datagrams from peers.
pub struct Inbox {
    /// Where datagrams of up to `SLOT` bytes are.
    slots: Box<[u8]>,
    /// Where longer ones are. No memory is used until one comes.
    buffer: Box<[u8]>,
    peers: Box<[RawAddr]>,
    controls: Box<[Control]>,
    /// What `messages` points to; never read from here.
    #[allow(dead_code)]
    iovecs: Box<[libc::iovec]>,
    messages: Box<[libc::mmsghdr]>,
    /// Messages that the last batch has filled.
    used: usize,
}

/// Control messages want their alignment (cmsg(3)).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

fn no_messages(count: usize) -> Box<[libc::mmsghdr]> {
    // SAFETY: zeroes are a valid mmsghdr: no name, no buffers, no control.
    vec![unsafe { zeroed::<libc::mmsghdr>() }; count].into()
}

/// Buffers at a distance of `STRIDE`, and an iovec for each.
fn buffers(count: usize) -> (Box<[u8]>, Box<[libc::iovec]>) {
    let mut buffer: Box<[u8]> = vec![0; count * STRIDE].into();
    let iovecs = buffer.chunks_exact_mut(STRIDE).map(|one| iovec_of(&mut one[..ROOM])).collect();
    (buffer, iovecs)
}

fn iovec_of(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

impl Inbox {
    /// With room for batches of up to so many datagrams.
    pub fn new(room: usize) -> Inbox {
        let mut buffer: Box<[u8]> = vec![0; room * STRIDE].into();
        let mut slots: Box<[u8]> = vec![0; room * SLOT].into();
        // A datagram begins in its slot and goes on in its buffer, behind as much room.
        let mut iovecs: Box<[libc::iovec]> = slots
            .chunks_exact_mut(SLOT)
            .zip(buffer.chunks_exact_mut(STRIDE))
            .flat_map(|(slot, buffer)| [iovec_of(slot), iovec_of(&mut buffer[SLOT..ROOM])])
            .collect();
        let mut inbox = Inbox {
            slots,
            buffer,
            peers: vec![RawAddr::empty(); room].into(),
            controls: vec![Control([0; CONTROL]); room].into(),
            messages: no_messages(room),
            used: room,
            iovecs: Box::default(),
        };
        for slot in 0..room {
            let header = &mut inbox.messages[slot].msg_hdr;
            header.msg_name = inbox.peers[slot].as_mut_ptr();
            header.msg_iov = &mut iovecs[2 * slot];
            header.msg_iovlen = 2;
            header.msg_control = inbox.controls[slot].0.as_mut_ptr().cast();
        }
        inbox.iovecs = iovecs;
        inbox
    }

    /// Receives what is there, up to `limit` and its room; how many.
    pub fn receive(&mut self, listener: RawFd, limit: usize) -> io::Result<usize> {
        // The kernel has written how much of their room the last ones took; all else stays.
        for message in &mut self.messages[..self.used] {
            message.msg_hdr.msg_namelen = RawAddr::ROOM;
            message.msg_hdr.msg_controllen = CONTROL as _;
        }
        self.used = 0;
        let limit = limit.min(self.messages.len());
        // SAFETY: every message points to its own buffers, all of which live as long as `self` and
        // do not move with it.
        self.used = unsafe { receive_many(listener, &mut self.messages[..limit]) }?;
        for (at, message) in self.messages[..self.used].iter().enumerate() {
            if message.msg_len as usize > SLOT {
                // Its beginning goes to the rest of it.
                let slot = &self.slots[at * SLOT..][..SLOT];
                self.buffer[at * STRIDE..][..SLOT].copy_from_slice(slot);
            }
        }
        Ok(self.used)
    }

    /// A datagram of the last batch.
    pub fn get(&self, slot: usize) -> Received<'_> {
        let message = &self.messages[slot];
        let mut peer = self.peers[slot];
        peer.set_length(message.msg_hdr.msg_namelen);
        let length = message.msg_len as usize;
        let place = match length {
            0..=SLOT => &self.slots[slot * SLOT..],
            _ => &self.buffer[slot * STRIDE..],
        };
        Received {
            data: &place[..length],
            path: Path { peer, local: local_of(&message.msg_hdr) },
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}

/// # Safety
/// Every message points to valid names, buffers and control space.
unsafe fn receive_many(fd: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    sized(|| {
        // SAFETY: the caller's promise; no timeout is passed.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                messages.len() as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        count as isize
    })
}

/// Which address of ours a datagram was sent to, if the kernel says so (ip(7), ipv6(7)).
fn local_of(header: &libc::msghdr) -> Local {
    // SAFETY: the kernel filled the control space that the header points to, up to msg_controllen.
    let Some(control) = (unsafe { libc::CMSG_FIRSTHDR(header).as_ref() }) else {
        return Local::default();
    };
    let mut local = Local::default();
    // SAFETY: a control message of this level and type carries this structure.
    unsafe {
        match (control.cmsg_level, control.cmsg_type) {
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                let info: libc::in_pktinfo =
                    libc::CMSG_DATA(control).cast::<libc::in_pktinfo>().read_unaligned();
                local.family = 4;
                // ipi_spec_dst: for a broadcast it is ours, where ipi_addr is not.
                local.address[..4].copy_from_slice(&info.ipi_spec_dst.s_addr.to_ne_bytes());
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                let info: libc::in6_pktinfo =
                    libc::CMSG_DATA(control).cast::<libc::in6_pktinfo>().read_unaligned();
                local.family = 6;
                local.address = info.ipi6_addr.s6_addr;
                if local.address.starts_with(&[0xfe, 0x80]) {
                    local.interface = info.ipi6_ifindex;
                }
            }
            _ => {}
        }
    }
    local
}

/// Datagrams of one flow on their way to the service, in order: gathered, then sent as one.
pub struct Outgoing {
    iovecs: Vec<libc::iovec>,
    bytes: usize,
    /// Cleared for good when the kernel cannot segment (EIO: the device computes no checksums).
    segmenting: bool,
}

/// What became of datagrams that were sent.
#[derive(Clone, Copy, Default)]
pub struct Sent {
    pub sent: u64,
    pub lost: u64,
    /// Bytes of the datagrams sent.
    pub bytes: u64,
    /// ICMP errors met on the way.
    pub unreachable: u64,
}

impl Outgoing {
    pub fn new() -> Outgoing {
        Outgoing { iovecs: Vec::with_capacity(BATCH), bytes: 0, segmenting: true }
    }

    /// Adds a datagram; sends what is gathered first where it cannot join it.
    ///
    /// The payload must stay where it is until `flush`.
    #[inline]
    pub fn add(&mut self, flow: &Flow, payload: &[u8], result: &mut Sent) {
        if !self.joins(payload.len()) {
            self.flush(flow, result);
        }
        self.bytes += payload.len();
        self.iovecs.push(libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast(),
            iov_len: payload.len(),
        });
    }

    /// Whether a datagram of this length can be the next segment: all but the last are of one
    /// length, and the last is no longer than they.
    fn joins(&self, length: usize) -> bool {
        let Some((first, last)) = self.iovecs.first().zip(self.iovecs.last()) else { return true };
        self.segmenting
            && length > 0
            && length <= first.iov_len
            && last.iov_len == first.iov_len
            && self.iovecs.len() < BATCH
            && self.bytes + length <= MOST_BYTES
    }

    /// Sends what is gathered.
    pub fn flush(&mut self, flow: &Flow, result: &mut Sent) {
        let fd = flow.socket.as_raw_fd();
        match self.iovecs.len() {
            0 => return,
            1 => send_one(fd, &self.iovecs[0], result),
            count => {
                let segment = self.iovecs[0].iov_len as u16;
                match again_after_icmp(result, || send_segmented(fd, &self.iovecs, segment)) {
                    Ok(_) => {
                        result.sent += count as u64;
                        result.bytes += self.bytes as u64;
                    }
                    Err(error) if is_segmentation_refused(&error) => {
                        self.segmenting &= error.raw_os_error() != Some(libc::EIO);
                        self.iovecs.iter().for_each(|one| send_one(fd, one, result));
                    }
                    Err(_) => result.lost += count as u64,
                }
            }
        }
        self.iovecs.clear();
        self.bytes = 0;
    }
}

/// EIO: no checksum offload on the device. EINVAL, EMSGSIZE: a segment exceeds the path's MTU; such
/// a datagram goes out in fragments when it is sent alone (udp(7)).
fn is_segmentation_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

fn send_one(fd: RawFd, payload: &libc::iovec, result: &mut Sent) {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the payload is valid until `flush` has returned (see `add`).
    let send = || sized(|| unsafe { libc::send(fd, payload.iov_base, payload.iov_len, flags) });
    match again_after_icmp(result, send) {
        Ok(_) => {
            result.sent += 1;
            result.bytes += payload.iov_len as u64;
        }
        Err(_) => result.lost += 1,
    }
}

/// A send may report an ICMP error of an earlier one, and sends nothing then: once more.
fn again_after_icmp(
    result: &mut Sent,
    mut send: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    match send() {
        Err(error) if is_icmp(&error) => {
            result.unreachable += 1;
            send()
        }
        sent => sent,
    }
}

/// An error that an ICMP message left on a socket: it ends nothing.
fn is_icmp(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EPROTO)
    )
}

fn send_segmented(fd: RawFd, segments: &[libc::iovec], segment: u16) -> io::Result<usize> {
    let mut control = Control([0; CONTROL]);
    // SAFETY: zeroes are a valid msghdr.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = segments.as_ptr().cast_mut();
    header.msg_iovlen = segments.len() as _;
    let mut controls = Controls::new(&mut header, &mut control);
    controls.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header points to iovecs and control space that outlive the call.
    sized(|| unsafe { libc::sendmsg(fd, &header, flags) })
}

/// Writes control messages one behind another.
struct Controls<'a> {
    header: &'a mut libc::msghdr,
    used: usize,
}

impl<'a> Controls<'a> {
    fn new(header: &'a mut libc::msghdr, space: &'a mut Control) -> Controls<'a> {
        header.msg_control = space.0.as_mut_ptr().cast();
        header.msg_controllen = 0;
        Controls { header, used: 0 }
    }

    fn push<T>(&mut self, level: i32, kind: i32, value: T) {
        let size = size_of::<T>() as u32;
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, length) = unsafe { (libc::CMSG_SPACE(size), libc::CMSG_LEN(size)) };
        assert!(self.used + space as usize <= CONTROL);
        // SAFETY: the space behind `used` is free, large enough (asserted) and aligned: `Control`
        // is aligned to 8 and CMSG_SPACE keeps that.
        unsafe {
            let at = self.header.msg_control.cast::<u8>().add(self.used).cast::<libc::cmsghdr>();
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = length as _;
            libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
        }
        self.used += space as usize;
        self.header.msg_controllen = self.used as _;
    }
}

/// Replies of many flows, gathered and sent by the listener at once.
pub struct Replies {
    buffer: Box<[u8]>,
    lengths: [usize; BATCH],
    used: usize,
    /// Runs of neighbours that go as one message.
    runs: Vec<Run>,
    /// What `receive_messages` points to; never read from here.
    #[allow(dead_code)]
    receive_iovecs: Box<[libc::iovec]>,
    receive_messages: Box<[libc::mmsghdr]>,
    send_iovecs: Vec<libc::iovec>,
    send_messages: Box<[libc::mmsghdr]>,
    controls: Box<[Control]>,
    segmenting: bool,
}

/// Datagrams `first..first + count` of the ring, for one peer.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    count: usize,
    way_back: WayBack,
}

impl Replies {
    pub fn new() -> Replies {
        let (buffer, mut receive_iovecs) = buffers(BATCH);
        let mut receive_messages = no_messages(BATCH);
        for (message, iovec) in receive_messages.iter_mut().zip(&mut receive_iovecs) {
            message.msg_hdr.msg_iov = iovec;
            message.msg_hdr.msg_iovlen = 1;
        }
        Replies {
            buffer,
            lengths: [0; BATCH],
            used: 0,
            runs: Vec::with_capacity(BATCH),
            receive_iovecs,
            receive_messages,
            send_iovecs: Vec::with_capacity(2 * BATCH),
            send_messages: no_messages(BATCH),
            controls: vec![Control([0; CONTROL]); BATCH].into(),
            segmenting: true,
        }
    }

    /// Whether the ring is full: `flush` before the next `receive`.
    pub fn is_full(&self) -> bool {
        self.used == BATCH
    }

    /// Receives what the service sent to a flow, as far as there is room; how many datagrams.
    pub fn receive(&mut self, flow: &Flow, way_back: WayBack) -> io::Result<usize> {
        let messages = &mut self.receive_messages[self.used..];
        // SAFETY: every message points to its own buffer, which lives as long as `self` and does not
        // move with it.
        let count = unsafe { receive_many(flow.socket.as_raw_fd(), messages) }?;
        // A balancer has few ports for many clients: replies of several flows go the same way back.
        let goes_on = self.runs.last().is_some_and(|run| run.way_back == way_back);
        for slot in self.used..self.used + count {
            let length = self.receive_messages[slot].msg_len as usize;
            self.lengths[slot] = length;
            let joined = self.segmenting && (goes_on || slot > self.used);
            match self.runs.last_mut().filter(|run| joined && joins(run, &self.lengths, length)) {
                Some(run) => run.count += 1,
                None => self.runs.push(Run { first: slot, count: 1, way_back }),
            }
        }
        self.used += count;
        Ok(count)
    }

    /// Bytes of the last `count` datagrams received.
    pub fn bytes_of_last(&self, count: usize) -> u64 {
        self.lengths[self.used - count..self.used].iter().sum::<usize>() as u64
    }

    /// Sends everything from the listener's socket.
    pub fn flush(&mut self, listener: RawFd) -> Sent {
        let mut result = Sent::default();
        let mut from = 0;
        while from < self.runs.len() {
            let until = self.runs.len();
            match self.send(listener, from, until) {
                Ok(sent) => {
                    let runs = &self.runs[from..from + sent];
                    for run in runs {
                        result.sent += run.count as u64;
                        let lengths = &self.lengths[run.first..run.first + run.count];
                        result.bytes += lengths.iter().sum::<usize>() as u64;
                    }
                    from += sent;
                }
                Err(error) if self.runs[from].count > 1 && is_segmentation_refused(&error) => {
                    self.segmenting &= error.raw_os_error() != Some(libc::EIO);
                    self.split(from);
                }
                // This one cannot be sent; the next may be for a peer that can be reached.
                Err(_) => {
                    result.lost += self.runs[from].count as u64;
                    from += 1;
                }
            }
        }
        self.runs.clear();
        self.used = 0;
        result
    }

    /// Turns a run into runs of one datagram each.
    fn split(&mut self, at: usize) {
        let run = self.runs[at];
        let singles =
            (run.first..run.first + run.count).map(|first| Run { first, count: 1, ..run });
        self.runs.splice(at..=at, singles);
    }

    fn send(&mut self, listener: RawFd, from: usize, until: usize) -> io::Result<usize> {
        self.send_iovecs.clear();
        for (slot, run) in self.runs[from..until].iter_mut().enumerate() {
            let first_iovec = self.send_iovecs.len();
            for datagram in run.first..run.first + run.count {
                if let Some(header) = &mut run.way_back.header {
                    self.send_iovecs.push(libc::iovec {
                        iov_base: header.as_mut_ptr().cast(),
                        iov_len: SPP_LENGTH,
                    });
                }
                self.send_iovecs.push(libc::iovec {
                    iov_base: self.buffer[datagram * STRIDE..].as_mut_ptr().cast(),
                    iov_len: self.lengths[datagram],
                });
            }
            let message = &mut self.send_messages[slot].msg_hdr;
            message.msg_name = run.way_back.path.peer.as_mut_ptr();
            message.msg_namelen = run.way_back.path.peer.bytes().len() as u32;
            message.msg_iovlen = (self.send_iovecs.len() - first_iovec) as _;
            // The vector holds twice a batch from the start, so that it never moves.
            message.msg_iov = &mut self.send_iovecs[first_iovec];
            let mut controls = Controls::new(message, &mut self.controls[slot]);
            push_local(&mut controls, &run.way_back.path.local);
            if run.count > 1 {
                let wrapped = run.way_back.header.map_or(0, |header| header.len());
                let segment = (self.lengths[run.first] + wrapped) as u16;
                controls.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment);
            }
        }
        // SAFETY: every message points to a name, iovecs, buffers and control space of `self`, none of
        // which moves before the call returns.
        let sent = check(unsafe {
            libc::sendmmsg(
                listener,
                self.send_messages.as_mut_ptr(),
                (until - from) as u32,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        })?;
        Ok(sent as usize)
    }
}

/// Whether the next datagram can be a segment of the run before it.
fn joins(run: &Run, lengths: &[usize; BATCH], length: usize) -> bool {
    let wrapped = run.way_back.header.map_or(0, |header| header.len());
    let (first, last) = (lengths[run.first], lengths[run.first + run.count - 1]);
    length > 0
        && length <= first
        && last == first
        && (run.count + 1) * (first + wrapped) <= MOST_BYTES
}

/// Replies leave from the address that the peer spoke to (ip(7), ipv6(7)).
fn push_local(controls: &mut Controls, local: &Local) {
    match local.family {
        4 => {
            let [a, b, c, d, ..] = local.address;
            let spec = libc::in_addr { s_addr: u32::from_ne_bytes([a, b, c, d]) };
            let any = libc::in_addr { s_addr: 0 };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: spec, ipi_addr: any };
            controls.push(libc::SOL_IP, libc::IP_PKTINFO, info);
        }
        6 => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: local.address },
                ipi6_ifindex: local.interface,
            };
            controls.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, info);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// A flow to a service of its own, and that service.
    fn flow() -> (Flow, UdpSocket) {
        let service = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(service.local_addr().unwrap()).unwrap();
        service.connect(socket.local_addr().unwrap()).unwrap();
        (Flow::new(socket.into(), 0), service)
    }

    fn way_back_to(peer: &UdpSocket) -> WayBack {
        let peer = peer.local_addr().unwrap().into();
        WayBack::new(Path { peer, local: Local::default() }, None)
    }

    fn received(peer: &UdpSocket) -> Vec<u8> {
        let mut buffer = [0; 64];
        let length = peer.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn datagrams_of_every_length_come_in_whole() {
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.connect(listener.local_addr().unwrap()).unwrap();
        let mut inbox = Inbox::new(BATCH);
        // One after the other, so that each slot has its turn with a long and a short one.
        for lengths in [[SLOT, 1, SLOT + 1], [65_507, SLOT - 1, 0]] {
            let sent = lengths.map(|length| (0..length).map(|at| at as u8).collect::<Vec<u8>>());
            for datagram in &sent {
                peer.send(datagram).unwrap();
            }
            assert_eq!(inbox.receive(listener.as_raw_fd(), INTAKE).unwrap(), sent.len());
            for (slot, datagram) in sent.iter().enumerate() {
                assert_eq!(inbox.get(slot).data, datagram);
                assert!(!inbox.get(slot).truncated);
            }
        }
    }

    #[test]
    fn replies_of_several_flows_to_one_peer_leave_as_one_run() {
        let (peer, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), flow().1);
        let ((first, one), (second, two)) = (flow(), flow());
        one.send(b"aaaa").unwrap();
        one.send(b"bbbb").unwrap();
        two.send(b"cccc").unwrap();
        two.send(b"ddddd").unwrap();
        let mut replies = Replies::new();
        assert_eq!(replies.receive(&first, way_back_to(&peer)).unwrap(), 2);
        assert_eq!(replies.receive(&second, way_back_to(&peer)).unwrap(), 2);
        let counts: Vec<usize> = replies.runs.iter().map(|run| run.count).collect();
        assert_eq!(counts, [3, 1], "a longer one begins a run of its own");

        one.send(b"e").unwrap();
        assert_eq!(replies.receive(&first, way_back_to(&other)).unwrap(), 1);
        assert_eq!(replies.runs.len(), 3, "another peer begins a run of its own");

        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(replies.flush(listener.as_raw_fd()).sent, 5);
        let at_peer: Vec<Vec<u8>> = (0..4).map(|_| received(&peer)).collect();
        assert_eq!(at_peer, [&b"aaaa"[..], b"bbbb", b"cccc", b"ddddd"]);
    }
}
