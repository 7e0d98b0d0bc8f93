//! Many datagrams in one system call: `recvmmsg`, `sendmmsg` and `UDP_SEGMENT`.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{iovec, mmsghdr};

use super::{check, check_size, RawAddress};

/// The most datagrams that one `UDP_SEGMENT` send may hold (the kernel's UDP_MAX_SEGMENTS before 6.9).
pub const MAX_SEGMENTS: usize = 64;

/// The most bytes of one `UDP_SEGMENT` send, below what a datagram may hold.
pub const MAX_SEGMENT_BYTES: usize = 65_000;

/// Room for a number of datagrams, side by side in one buffer, each with an address.
pub struct Batch {
    bytes: Vec<u8>,
    stride: usize,
    names: Vec<RawAddress>,
    /// Their pointers lead into `bytes`, which is never resized.
    parts: Vec<iovec>,
    /// Their pointers lead into `names` and `parts`, which are never resized.
    messages: Vec<mmsghdr>,
    replies: Replies,
}

/// The datagrams of a batch, put together by whom they go to.
struct Replies {
    /// By group: its first datagram, its last and how many they are.
    groups: Vec<Group>,
    /// By datagram: the next of its group.
    next: Vec<usize>,
    parts: Vec<iovec>,
    messages: Vec<mmsghdr>,
    controls: Vec<Control>,
}

#[derive(Clone, Copy)]
struct Group {
    to: SocketAddr,
    /// Bytes of each.
    length: usize,
    first: usize,
    last: usize,
    count: usize,
}

/// Room for one control message that holds a `u16`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 24]);

const CONTROL_LENGTH: usize = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as usize;
const _: () = assert!(CONTROL_LENGTH <= size_of::<Control>());

impl Batch {
    /// Room for `count` datagrams of up to `stride` bytes. With `addressed` each is received with
    /// its sender and sent back there; without, the socket must be connected.
    pub fn new(count: usize, stride: usize, addressed: bool) -> Batch {
        let mut bytes = vec![0u8; count * stride];
        let mut names = vec![RawAddress::empty(); count];
        // SAFETY: the structure is a plain C one for which zeroes are valid.
        let mut messages: Vec<mmsghdr> = unsafe { vec![zeroed(); count] };
        let mut parts: Vec<iovec> = bytes
            .chunks_exact_mut(stride)
            .map(|slot| iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: stride })
            .collect();
        for ((message, name), part) in messages.iter_mut().zip(&mut names).zip(&mut parts) {
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            if addressed {
                let name: *mut RawAddress = name;
                message.msg_hdr.msg_name = name.cast();
                message.msg_hdr.msg_namelen = RawAddress::ROOM;
            }
        }
        let replies = Replies::new(count);
        Batch { bytes, stride, names, parts, messages, replies }
    }

    /// How many datagrams it has room for.
    pub fn capacity(&self) -> usize {
        self.messages.len()
    }

    /// The room of the `index`th datagram, all of it.
    pub fn slot(&mut self, index: usize) -> &mut [u8] {
        &mut self.bytes[index * self.stride..(index + 1) * self.stride]
    }

    /// The `index`th datagram as received: cut to the room when it was longer.
    pub fn datagram(&self, index: usize) -> &[u8] {
        let length = (self.messages[index].msg_len as usize).min(self.stride);
        &self.bytes[index * self.stride..index * self.stride + length]
    }

    /// Who sent the `index`th datagram.
    pub fn sender(&self, index: usize) -> SocketAddr {
        self.names[index].into()
    }

    /// Receives as many datagrams as there are and as there is room for, waiting for the first as
    /// long as the socket's receive timeout says, or not at all.
    pub fn receive(&mut self, fd: &OwnedFd, wait: bool) -> io::Result<usize> {
        let flags = if wait { libc::MSG_WAITFORONE } else { libc::MSG_DONTWAIT };
        for part in &mut self.parts {
            part.iov_len = self.stride;
        }
        // SAFETY: every pointer of a message leads into a vector of this batch, which outlives the
        // call and is not resized.
        let count = check(unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.messages.len() as u32,
                flags,
                std::ptr::null_mut(),
            )
        })?;
        Ok(count as usize)
    }

    /// Sends the first `count` slots whole; returns how many were not taken by the system.
    pub fn send(&mut self, fd: &OwnedFd, count: usize) -> usize {
        for part in &mut self.parts[..count] {
            part.iov_len = self.stride;
        }
        send_all(fd, &mut self.messages[..count])
    }

    /// Sends the first `count` datagrams back as they were received; those of one sender and one
    /// length go out together (`UDP_SEGMENT`), in their order. Returns how many were not taken by
    /// the system.
    pub fn send_back(&mut self, fd: &OwnedFd, count: usize) -> usize {
        let Replies { groups, next, parts, messages, controls } = &mut self.replies;
        groups.clear();
        for index in 0..count {
            let to = SocketAddr::from(self.names[index]);
            let length = (self.messages[index].msg_len as usize).min(self.stride);
            let most = MAX_SEGMENTS.min(MAX_SEGMENT_BYTES / length.max(1));
            let group = groups
                .iter_mut()
                .find(|group| group.count < most && group.length == length && group.to == to);
            match group {
                Some(group) => {
                    next[group.last] = index;
                    group.last = index;
                    group.count += 1;
                }
                None => groups.push(Group { to, length, first: index, last: index, count: 1 }),
            }
        }
        let mut part = 0;
        for (group, (message, control)) in groups.iter().zip(messages.iter_mut().zip(controls)) {
            let length = group.length;
            let start = part;
            let mut index = group.first;
            for _ in 0..group.count {
                parts[part] = iovec { iov_base: self.parts[index].iov_base, iov_len: length };
                part += 1;
                index = next[index];
            }
            let header = &mut message.msg_hdr;
            header.msg_name = self.messages[group.first].msg_hdr.msg_name;
            header.msg_namelen = self.messages[group.first].msg_hdr.msg_namelen;
            header.msg_iov = &mut parts[start];
            header.msg_iovlen = group.count;
            set_segment(header, control, (group.count > 1).then_some(length as u16));
        }
        let mut failed = 0;
        let groups = &self.replies.groups;
        send_each(fd, &mut self.replies.messages[..groups.len()], |index| {
            failed += groups[index].count;
        });
        failed
    }

    /// Sends the first `count` slots in one call that the kernel cuts into datagrams
    /// (`UDP_SEGMENT`, see udp(7)); there are at most `MAX_SEGMENTS` and `MAX_SEGMENT_BYTES`.
    pub fn send_segments(&mut self, fd: &OwnedFd, count: usize) -> io::Result<()> {
        let mut control = Control([0; 24]);
        let mut part =
            iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: count * self.stride };
        // SAFETY: zeroes are valid for this plain C structure.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        set_segment(&mut message, &mut control, Some(self.stride as u16));
        // SAFETY: every pointer of the message outlives the call.
        check_size(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, 0) })?;
        Ok(())
    }
}

impl Replies {
    fn new(count: usize) -> Replies {
        // SAFETY: zeroes are valid for these plain C structures.
        let (parts, messages) = unsafe { (vec![zeroed(); count], vec![zeroed(); count]) };
        Replies {
            groups: Vec::with_capacity(count),
            next: vec![0; count],
            parts,
            messages,
            controls: vec![Control([0; 24]); count],
        }
    }
}

/// Has a message cut into datagrams of this length, or not.
fn set_segment(message: &mut libc::msghdr, control: &mut Control, length: Option<u16>) {
    let Some(length) = length else {
        message.msg_control = std::ptr::null_mut();
        message.msg_controllen = 0;
        return;
    };
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_LENGTH;
    // SAFETY: the buffer has room for one header and its u16, as asserted above.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = libc::UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(length);
    }
}

/// Sends every message; returns how many were not taken by the system.
fn send_all(fd: &OwnedFd, messages: &mut [mmsghdr]) -> usize {
    let mut failed = 0;
    send_each(fd, messages, |_| failed += 1);
    failed
}

/// Sends every message; names those that were not taken by the system. The caller vouches for the
/// messages' pointers.
fn send_each(fd: &OwnedFd, messages: &mut [mmsghdr], mut failed: impl FnMut(usize)) {
    let mut from = 0;
    while from < messages.len() {
        let rest = &mut messages[from..];
        // SAFETY: every pointer of a message leads into vectors of its batch, which outlive the
        // call and are not resized.
        let sent =
            unsafe { libc::sendmmsg(fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
        match check(sent) {
            Ok(sent) => from += sent as usize,
            // The error is that of the first of the rest: skip it.
            Err(_) => {
                failed(from);
                from += 1;
            }
        }
    }
}
