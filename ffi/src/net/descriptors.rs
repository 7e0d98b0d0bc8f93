//! Passes descriptors from one process to another over a unix socket (unix(7), SCM_RIGHTS).

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use socket2::SockAddr;

use super::socket::sized;

/// The kernel's limit for one message (SCM_MAX_FD).
pub const MOST: usize = 253;

/// Room for the control message of as many descriptors.
const ROOM: usize = 1024 + 64;

#[repr(C, align(8))]
struct Control([u8; ROOM]);

/// Sends bytes, and descriptors together with the first of them. Returns the number of bytes sent.
///
/// # Errors
/// `InvalidInput` for more than `MOST` descriptors, or without a byte; otherwise those of sendmsg(2).
pub fn send(socket: RawFd, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<usize> {
    send_to(socket, None, bytes, descriptors)
}

/// As `send`, to an address if there is one.
pub fn send_to(
    socket: RawFd,
    to: Option<&SockAddr>,
    bytes: &[u8],
    descriptors: &[RawFd],
) -> io::Result<usize> {
    if descriptors.len() > MOST || bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control([0; ROOM]);
    let mut iovec =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: zeroes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &mut iovec;
    message.msg_iovlen = 1;
    if let Some(to) = to {
        message.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_namelen = to.len();
    }
    if !descriptors.is_empty() {
        let length = size_of_val(descriptors);
        // SAFETY: the control space has room for the header and as many descriptors; both outlive the call.
        unsafe {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(length as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length as u32) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (at, descriptor) in descriptors.iter().enumerate() {
                data.add(at).write_unaligned(*descriptor);
            }
        }
    }
    // SAFETY: everything that the message points to outlives the call.
    sized(|| unsafe { libc::sendmsg(socket, &message, libc::MSG_NOSIGNAL) })
}

/// Receives bytes, and the descriptors that came with the first of them. Returns the number of bytes. 0: the other end
/// has closed.
///
/// # Errors
/// `InvalidData` where descriptors were left out, for example because this process may open no more;
/// otherwise those of recvmsg(2).
pub fn receive(socket: RawFd, bytes: &mut [u8], into: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = Control([0; ROOM]);
    let mut iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: zeroes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &mut iovec;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = ROOM as _;
    // SAFETY: everything that the message points to outlives the call.
    let count = sized(|| unsafe { libc::recvmsg(socket, &mut message, libc::MSG_CMSG_CLOEXEC) })?;
    // SAFETY: the kernel has written the control space as the message now says. The descriptors are new, and
    // nobody else has them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for at in 0..length / size_of::<RawFd>() {
                    into.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn as_many_descriptors_as_the_kernel_takes_arrive_and_are_the_same_files() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut one, other) = UnixStream::pair().unwrap();
        assert_eq!(send(here.as_raw_fd(), b"hello", &[other.as_raw_fd(); MOST]).unwrap(), 5);
        assert!(send(here.as_raw_fd(), b"x", &[0; MOST + 1]).is_err());
        assert!(send(here.as_raw_fd(), b"", &[0]).is_err());
        let (mut room, mut arrived) = ([0; 8], Vec::new());
        assert_eq!(receive(there.as_raw_fd(), &mut room, &mut arrived).unwrap(), 5);
        assert_eq!((&room[..5], arrived.len()), (&b"hello"[..], MOST));
        drop(other);
        let mut last = UnixStream::from(arrived.pop().unwrap());
        last.write_all(b"same").unwrap();
        let mut same = [0; 4];
        one.read_exact(&mut same).unwrap();
        assert_eq!(&same, b"same");
    }

    #[test]
    fn bytes_alone_and_the_end_arrive() {
        let (here, there) = UnixStream::pair().unwrap();
        send(here.as_raw_fd(), b"x", &[]).unwrap();
        drop(here);
        let (mut room, mut arrived) = ([0; 8], Vec::new());
        assert_eq!(receive(there.as_raw_fd(), &mut room, &mut arrived).unwrap(), 1);
        assert_eq!(receive(there.as_raw_fd(), &mut room, &mut arrived).unwrap(), 0);
        assert!(arrived.is_empty());
    }
}
