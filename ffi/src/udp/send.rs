//! Datagrams to the upstream: gathered, then sent as one (udp(7), UDP_SEGMENT).

use std::io;
use std::os::fd::RawFd;

use super::cmsg::{Control, Encoder};
use super::edge::{Payload, Sent};
use super::gso::{self, Run, SEGMENTS};
use crate::net::socket::sized;

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Datagrams of one flow, in order.
pub struct Outgoing {
    iovecs: Vec<libc::iovec>,
    run: Run,
    dscp: u8,
}

/// Where datagrams go.
#[derive(Clone, Copy)]
pub struct Towards {
    pub socket: RawFd,
    pub ipv4: bool,
}

impl Outgoing {
    pub fn new() -> Outgoing {
        Outgoing { iovecs: Vec::with_capacity(SEGMENTS), run: Run::default(), dscp: 0 }
    }

    /// Sends payloads in order, neighbours of one length and DSCP together. Clears `segmenting` when
    /// the device cannot segment.
    pub fn send<'a>(
        &mut self,
        towards: Towards,
        payloads: impl Iterator<Item = Payload<'a>>,
        segmenting: &mut bool,
    ) -> Sent {
        let mut result = Sent::default();
        for Payload { data, dscp } in payloads {
            let joins = *segmenting && dscp == self.dscp && self.run.takes(data.len());
            if joins {
                self.run.push(data.len());
            } else {
                self.flush(towards, segmenting, &mut result);
                (self.run, self.dscp) = (Run::of(data.len()), dscp);
            }
            self.iovecs.push(libc::iovec {
                iov_base: data.as_ptr().cast_mut().cast(),
                iov_len: data.len(),
            });
        }
        self.flush(towards, segmenting, &mut result);
        result
    }

    /// Sends what is gathered: payloads that outlive the call of `send`.
    fn flush(&mut self, towards: Towards, segmenting: &mut bool, result: &mut Sent) {
        match self.run.count {
            0 => return,
            1 => send_one(towards, &self.iovecs[0], self.dscp, result),
            count => {
                let segment = self.run.first as u16;
                let send = || send_message(towards, &self.iovecs, self.dscp, Some(segment));
                match again_after_icmp(result, send) {
                    Ok(_) => {
                        result.sent += count as u64;
                        result.bytes += self.run.bytes() as u64;
                    }
                    Err(error) if gso::is_refused(&error) => {
                        *segmenting &= !gso::is_unsupported(&error);
                        for one in &self.iovecs {
                            send_one(towards, one, self.dscp, result);
                        }
                    }
                    Err(_) => result.lost += count as u64,
                }
            }
        }
        self.iovecs.clear();
        self.run = Run::default();
    }
}

fn send_one(towards: Towards, payload: &libc::iovec, dscp: u8, result: &mut Sent) {
    let sent = again_after_icmp(result, || {
        if dscp != 0 {
            return send_message(towards, std::slice::from_ref(payload), dscp, None);
        }
        // SAFETY: the payload outlives `Outgoing::send`, which calls this.
        sized(|| unsafe { libc::send(towards.socket, payload.iov_base, payload.iov_len, FLAGS) })
    });
    match sent {
        Ok(_) => {
            result.sent += 1;
            result.bytes += payload.iov_len as u64;
        }
        Err(_) => result.lost += 1,
    }
}

fn send_message(
    towards: Towards,
    payloads: &[libc::iovec],
    dscp: u8,
    segment: Option<u16>,
) -> io::Result<usize> {
    let mut control = Control::EMPTY;
    // SAFETY: zeroes are a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = payloads.as_ptr().cast_mut();
    header.msg_iovlen = payloads.len() as _;
    let mut encoder = Encoder::new(&mut header, &mut control);
    if let Some(segment) = segment {
        encoder.segment(segment);
    }
    encoder.dscp(dscp, towards.ipv4);
    // SAFETY: the header points to iovecs and control space that outlive the call.
    sized(|| unsafe { libc::sendmsg(towards.socket, &header, FLAGS) })
}

/// A send may report an ICMP error of an earlier one, and then sends nothing: it is repeated.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    #[test]
    fn payloads_arrive_in_order_whatever_their_lengths() {
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        let flow = UdpSocket::bind("127.0.0.1:0").unwrap();
        flow.connect(upstream.local_addr().unwrap()).unwrap();
        let payloads: Vec<Vec<u8>> =
            [5, 5, 5, 3, 5, 0, 0, 9, 1400, 1400, 2].map(|length| vec![length as u8; length]).into();
        let towards = Towards { socket: flow.as_raw_fd(), ipv4: true };
        let mut segmenting = true;
        let iterator = payloads.iter().map(|data| Payload { data, dscp: 0 });
        let sent = Outgoing::new().send(towards, iterator, &mut segmenting);
        let bytes = payloads.iter().map(Vec::len).sum::<usize>() as u64;
        assert_eq!(sent, Sent { sent: 11, bytes, ..Sent::default() });
        let mut buffer = [0; 2048];
        for payload in &payloads {
            let length = upstream.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], payload);
        }
    }
}
