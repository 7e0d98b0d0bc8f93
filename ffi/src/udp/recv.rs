//! Receives peers' datagrams with recvmmsg(2), into buffers that a worker has from its first UDP port on.

use std::alloc::{alloc_zeroed, Layout};
use std::io;
use std::os::fd::RawFd;

use super::cmsg::{self, Arrival, Control};
use super::edge::{Batch, Received};
use super::path::Path;
use super::sampling::Sampling;
use crate::net::socket::{sized, RawAddr};

/// Most datagrams received at once: the more, the more of them share a client and so a send.
pub const INTAKE: usize = 8192;
/// Most datagrams of one system call: this many long ones have room. A host that overcommits no memory
/// (vm.overcommit_memory=2) accounts for all of that, used or not.
const CALL: usize = 64;
/// The largest UDP datagram, and one byte more: a longer one shows.
pub const ROOM: usize = 65_536;
/// The distance between two buffers. A multiple of 64 KiB would put the head of every datagram into
/// the same set of the processor's caches.
pub const STRIDE: usize = ROOM + 9 * 64;
/// Nearly every datagram of a network of 1,500 bytes a packet fits in here; buffers so close together
/// spare the processor's caches and page tables. An odd number of cache lines, see `STRIDE`.
const SLOT: usize = 25 * 64;
/// For this many datagrams of a batch the kernel always reports the DSCP: for all of them without a flood.
const SAMPLE: usize = 16;

/// A batch of datagrams from peers.
pub struct Inbox {
    /// Where datagrams of up to `SLOT` bytes are.
    slots: Box<[u8]>,
    /// Where longer ones of the batch's last call are. No memory is used until one comes.
    long: Box<[u8]>,
    peers: Box<[RawAddr]>,
    controls: Box<[Control]>,
    /// What `messages` points to; never read from here.
    #[allow(dead_code)]
    iovecs: Box<[libc::iovec]>,
    messages: Box<[libc::mmsghdr]>,
    sampling: Sampling,
    /// By call: every message of it offers control space, not only those of the sample.
    offers_all: Box<[bool]>,
    /// Messages that the batch has filled.
    used: usize,
    /// Where the batch's last call begins.
    last_call: usize,
}

/// Messages without names, buffers or control space.
pub fn no_messages(count: usize) -> Box<[libc::mmsghdr]> {
    // SAFETY: zeroes are a valid mmsghdr: no name, no buffers, no control.
    vec![unsafe { std::mem::zeroed::<libc::mmsghdr>() }; count].into()
}

/// Buffers at a distance of `STRIDE`.
pub fn buffers(count: usize) -> Box<[u8]> {
    vec![0; count * STRIDE].into()
}

/// Bytes that use no memory before they are written; `None` if no memory is available.
fn zeroes(count: usize) -> Option<Box<[u8]>> {
    let layout = Layout::array::<u8>(count).ok().filter(|layout| layout.size() > 0)?;
    // SAFETY: the layout has a size.
    let bytes = unsafe { alloc_zeroed(layout) };
    // SAFETY: the allocator gave `count` bytes, which are zeroes, and a box gives them back with the
    // same layout.
    (!bytes.is_null())
        .then(|| unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes, count)) })
}

/// The iovec of some bytes.
pub fn iovec_of(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

impl Inbox {
    /// With room for batches of up to this many datagrams.
    pub fn new(room: usize) -> Inbox {
        Inbox::with(vec![0; room * SLOT].into())
    }

    /// Makes room for batches of up to this many datagrams. If there is no memory for that, the room
    /// stays as it is. What the last batch brought is gone.
    pub fn grow(&mut self, room: usize) {
        if room <= self.messages.len() {
            return;
        }
        if let Some(slots) = zeroes(room * SLOT) {
            let sampling = std::mem::replace(&mut self.sampling, Sampling::of_first(SAMPLE));
            *self = Inbox { sampling, ..Inbox::with(slots) };
        }
    }

    fn with(mut slots: Box<[u8]>) -> Inbox {
        let room = slots.len() / SLOT;
        let mut long = buffers(room.min(CALL));
        let rests: Vec<libc::iovec> =
            long.chunks_exact_mut(STRIDE).map(|one| iovec_of(&mut one[SLOT..ROOM])).collect();
        // A datagram begins in its slot and continues in a long buffer, behind as much room. The calls of
        // a batch share the long buffers: one that has filled any is the batch's last.
        let mut iovecs: Box<[libc::iovec]> = slots
            .chunks_exact_mut(SLOT)
            .enumerate()
            .flat_map(|(slot, bytes)| [iovec_of(bytes), rests[slot % CALL]])
            .collect();
        let mut inbox = Inbox {
            slots,
            long,
            peers: vec![RawAddr::empty(); room].into(),
            controls: vec![Control::EMPTY; room].into(),
            messages: no_messages(room),
            sampling: Sampling::of_first(SAMPLE),
            offers_all: vec![false; room.div_ceil(CALL)].into(),
            used: 0,
            last_call: 0,
            iovecs: Box::default(),
        };
        for slot in 0..room {
            let header = &mut inbox.messages[slot].msg_hdr;
            header.msg_name = inbox.peers[slot].as_mut_ptr();
            header.msg_iov = &mut iovecs[2 * slot];
            header.msg_iovlen = 2;
            header.msg_control = inbox.controls[slot].0.as_mut_ptr().cast();
            header.msg_namelen = RawAddr::ROOM;
            let room = if slot < SAMPLE { cmsg::ROOM } else { 0 };
            header.msg_controllen = room as _;
        }
        inbox.iovecs = iovecs;
        inbox
    }

    /// Receives what is there, up to `limit` and its room; how many. Fewer when one is long. `local`:
    /// the socket reports the destination address of each datagram, so all must have room for it.
    ///
    /// # Errors
    /// Those of recvmmsg(2), when the batch is empty.
    pub fn receive(&mut self, socket: RawFd, limit: usize, local: bool) -> io::Result<usize> {
        let all = local || self.sampling.asks_all();
        let stale = std::mem::take(&mut self.used);
        for slot in 0..stale {
            self.messages[slot].msg_hdr.msg_namelen = RawAddr::ROOM;
            let offers_all = self.offers_all[slot / CALL];
            self.offer(slot, offers_all);
        }
        let result = self.receive_calls(socket, limit, all);
        let mut sample = 0..self.used.min(SAMPLE);
        self.sampling.learn(sample.any(|slot| self.arrival(slot).dscp != 0));
        result
    }

    /// Gives a message its control space again, of which the kernel has written how much was taken.
    fn offer(&mut self, slot: usize, all: bool) {
        let room = if all || slot < SAMPLE { cmsg::ROOM } else { 0 };
        self.messages[slot].msg_hdr.msg_controllen = room as _;
    }

    /// Has the messages of a call offer control space for all of them, or for the sample alone: sockets
    /// of both kinds take turns.
    fn offer_call(&mut self, call: usize, all: bool) {
        if std::mem::replace(&mut self.offers_all[call], all) == all {
            return;
        }
        let first = call * CALL;
        for slot in first..self.messages.len().min(first + CALL) {
            self.offer(slot, all);
        }
    }

    fn receive_calls(&mut self, socket: RawFd, limit: usize, all: bool) -> io::Result<usize> {
        let limit = limit.min(self.messages.len());
        while self.used < limit {
            let call = self.used..limit.min(self.used + CALL);
            let wanted = call.len();
            self.offer_call(call.start / CALL, all);
            // SAFETY: every message points to its own name, slot and control space, and to a long
            // buffer that no other message of the call has. All live as long as `self` and do not move
            // with it.
            match unsafe { receive_many(socket, &mut self.messages[call.clone()]) } {
                Ok(count) => {
                    self.last_call = call.start;
                    self.used += count;
                    if self.join_long(call.start) || count < wanted {
                        break;
                    }
                }
                Err(error) if self.used == 0 => return Err(error),
                // What came before it counts; epoll comes back for the rest.
                Err(_) => break,
            }
        }
        Ok(self.used)
    }

    /// What the kernel reported about a datagram; nothing without room for it.
    #[inline]
    fn arrival(&self, slot: usize) -> Arrival {
        cmsg::arrival(self.controls[slot].received(&self.messages[slot].msg_hdr))
    }

    /// Copies the beginning of each long datagram of a call to the rest of it; whether there was one.
    fn join_long(&mut self, from: usize) -> bool {
        let mut any = false;
        for (at, message) in self.messages[..self.used].iter().enumerate().skip(from) {
            if message.msg_len as usize > SLOT {
                let slot = &self.slots[at * SLOT..][..SLOT];
                self.long[(at % CALL) * STRIDE..][..SLOT].copy_from_slice(slot);
                any = true;
            }
        }
        any
    }
}

impl Batch for Inbox {
    fn len(&self) -> usize {
        self.used
    }

    #[inline]
    fn get(&self, slot: usize) -> Received<'_> {
        let message = &self.messages[slot];
        let mut peer = self.peers[slot];
        peer.set_length(message.msg_hdr.msg_namelen);
        let Arrival { local, dscp } = self.arrival(slot);
        Received {
            data: self.data(slot),
            path: Path { peer, local },
            dscp,
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }

    #[inline]
    fn data(&self, slot: usize) -> &[u8] {
        let length = self.messages[slot].msg_len as usize;
        let place = match length {
            0..=SLOT => &self.slots[slot * SLOT..],
            _ => &self.long[(slot % CALL) * STRIDE..],
        };
        &place[..length]
    }
}

/// Receives without waiting; how many.
///
/// # Safety
/// Every message points to valid names, buffers and control space.
pub unsafe fn receive_many(fd: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    sized(|| {
        // SAFETY: the caller's promise; no timeout is passed.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                messages.len() as u32,
                // musl declares the flags unsigned.
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        count as isize
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    fn pair() -> (UdpSocket, UdpSocket) {
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.connect(listener.local_addr().unwrap()).unwrap();
        (listener, peer)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| at as u8).collect()
    }

    #[test]
    fn datagrams_of_every_length_come_in_complete() {
        let (listener, peer) = pair();
        let mut inbox = Inbox::new(64);
        // One after the other, so that each slot has its turn with a long and a short one.
        for lengths in [[SLOT, 1, SLOT + 1], [65_507, SLOT - 1, 0]] {
            let sent = lengths.map(bytes);
            for datagram in &sent {
                peer.send(datagram).unwrap();
            }
            assert_eq!(inbox.receive(listener.as_raw_fd(), INTAKE, false).unwrap(), sent.len());
            for (slot, datagram) in sent.iter().enumerate() {
                assert_eq!(inbox.get(slot).data, datagram);
                assert!(!inbox.get(slot).truncated);
            }
        }
    }

    #[test]
    fn a_call_with_a_long_datagram_is_the_last_of_its_batch() {
        let (listener, peer) = pair();
        crate::net::socket::set_receive_buffer(listener.as_raw_fd(), 8 << 20);
        let mut inbox = Inbox::new(2 * CALL);
        let sent: Vec<Vec<u8>> = (0..2 * CALL + 9)
            .map(|at| bytes(if at % CALL == 3 { SLOT + 500 } else { 40 }))
            .collect();
        for datagram in &sent {
            peer.send(datagram).unwrap();
        }
        let mut seen = 0;
        while seen < sent.len() {
            // A short buffer of the system's may hold fewer than were sent.
            let Ok(count) = inbox.receive(listener.as_raw_fd(), 2 * CALL, false) else { break };
            assert!(count <= CALL, "the long one ends the batch");
            for slot in 0..count {
                assert_eq!(inbox.get(slot).data, sent[seen + slot]);
            }
            seen += count;
        }
        assert!(seen > CALL, "two calls at least: {seen}");
    }

    #[test]
    fn an_inbox_grows_and_never_shrinks() {
        let (listener, peer) = pair();
        let mut inbox = Inbox::new(2);
        let receive = |inbox: &mut Inbox| {
            for at in 0..4u8 {
                peer.send(&[at]).unwrap();
            }
            let count = inbox.receive(listener.as_raw_fd(), INTAKE, false).unwrap();
            (0..count).map(|slot| inbox.get(slot).data[0]).collect::<Vec<u8>>()
        };
        assert_eq!(receive(&mut inbox), [0, 1]);
        inbox.grow(6);
        assert_eq!(receive(&mut inbox), [2, 3, 0, 1, 2, 3]);
        inbox.grow(3);
        assert_eq!(receive(&mut inbox), [0, 1, 2, 3]);
        inbox.grow(usize::MAX / SLOT);
        assert_eq!(receive(&mut inbox), [0, 1, 2, 3], "no memory, no room");
    }

    #[test]
    fn a_batch_of_several_calls_keeps_every_datagram() {
        let (listener, peer) = pair();
        crate::net::socket::set_receive_buffer(listener.as_raw_fd(), 8 << 20);
        let mut inbox = Inbox::new(4 * CALL);
        for at in 0..3 * CALL as u32 {
            peer.send(&at.to_be_bytes()).unwrap();
        }
        let count = inbox.receive(listener.as_raw_fd(), 4 * CALL, false).unwrap();
        for slot in 0..count {
            assert_eq!(inbox.get(slot).data, (slot as u32).to_be_bytes());
        }
        assert!(count > CALL, "more than one call: {count}");
    }

    #[test]
    fn a_dscp_at_the_head_of_a_batch_makes_the_next_ones_tell_all() {
        let (listener, peer) = pair();
        socket::receive_dscp(listener.as_raw_fd(), listener.local_addr().unwrap());
        let mut inbox = Inbox::new(64);
        let mut receive = |dscp: u8, local: bool| -> Vec<u8> {
            socket::set_dscp(peer.as_raw_fd(), listener.local_addr().unwrap(), dscp);
            for _ in 0..SAMPLE + 1 {
                peer.send(b"x").unwrap();
            }
            let count = inbox.receive(listener.as_raw_fd(), INTAKE, local).unwrap();
            (0..count).map(|slot| inbox.get(slot).dscp).collect()
        };
        let all = vec![0xb8; SAMPLE + 1];
        let mut sample = all.clone();
        sample[SAMPLE] = 0;
        assert_eq!(receive(0xb8, false), sample);
        assert_eq!(receive(0xb8, false), all);

        let mut fresh = Inbox::new(64);
        for _ in 0..SAMPLE + 1 {
            peer.send(b"x").unwrap();
        }
        fresh.receive(listener.as_raw_fd(), INTAKE, true).unwrap();
        assert_eq!(fresh.get(SAMPLE).dscp, 0xb8, "where the destination is asked for, so is this");
    }
}
