//! Control messages (cmsg(3)): an encoder and an iterator over space that the caller owns.

use std::mem::{align_of, size_of};

use libc::c_int;

use super::path::Local;
use crate::net::socket::{RawAddr, DSCP};

/// Bytes for one IPV6_PKTINFO, one UDP_SEGMENT and one IPV6_TCLASS to send; and to receive for one
/// IPV6_ORIGDSTADDR and one IPV6_TCLASS.
pub const ROOM: usize = 96;

const IPV6_ORIGDSTADDR: c_int = 74;

const HEADER: usize = size_of::<libc::cmsghdr>();
const ALIGNMENT: usize = align_of::<libc::cmsghdr>();

/// Space for control messages, aligned as cmsg(3) asks.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Control(pub [u8; ROOM]);

impl Control {
    pub const EMPTY: Control = Control([0; ROOM]);

    /// What the kernel wrote, as it says in the header of the message.
    #[inline]
    pub fn received(&self, header: &libc::msghdr) -> &[u8] {
        // musl counts in 32 bits.
        #[allow(clippy::unnecessary_cast)]
        let length = header.msg_controllen as usize;
        &self.0[..length.min(ROOM)]
    }
}

/// Writes control messages one behind another, for a `msghdr` that is sent.
pub struct Encoder<'a> {
    header: &'a mut libc::msghdr,
    space: &'a mut Control,
    used: usize,
}

impl<'a> Encoder<'a> {
    /// Points the header to the space, which holds nothing yet.
    pub fn new(header: &'a mut libc::msghdr, space: &'a mut Control) -> Encoder<'a> {
        header.msg_control = space.0.as_mut_ptr().cast();
        header.msg_controllen = 0;
        Encoder { header, space, used: 0 }
    }

    /// Segments of this many bytes (udp(7), UDP_SEGMENT).
    pub fn segment(&mut self, bytes: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
    }

    /// The source address to send from (ip(7), IP_PKTINFO; ipv6(7), IPV6_PKTINFO).
    pub fn local(&mut self, local: &Local) {
        match local.family {
            4 => {
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                // ipi_spec_dst is the source; interface and destination stay 0.
                info[4..8].copy_from_slice(&local.address[..4]);
                self.push(libc::SOL_IP, libc::IP_PKTINFO, &info);
            }
            6 => {
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&local.address);
                info[16..].copy_from_slice(&local.interface.to_ne_bytes());
                self.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
            }
            _ => {}
        }
    }

    /// The DSCP towards an address of this family; 0 is the default and needs no message.
    pub fn dscp(&mut self, dscp: u8, towards_ipv4: bool) {
        if dscp == 0 {
            return;
        }
        let value = c_int::from(dscp).to_ne_bytes();
        if towards_ipv4 {
            self.push(libc::SOL_IP, libc::IP_TOS, &value);
        } else {
            self.push(libc::SOL_IPV6, libc::IPV6_TCLASS, &value);
        }
    }

    fn push(&mut self, level: c_int, kind: c_int, value: &[u8]) {
        let length = HEADER + value.len();
        let end = self.used + length.next_multiple_of(ALIGNMENT);
        // A message that does not fit is a defect of `ROOM`: slicing panics before the kernel sees it.
        let message = &mut self.space.0[self.used..end];
        let (head, data) = message.split_at_mut(HEADER);
        head[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
        head[HEADER - 8..HEADER - 4].copy_from_slice(&level.to_ne_bytes());
        head[HEADER - 4..].copy_from_slice(&kind.to_ne_bytes());
        data[..value.len()].copy_from_slice(value);
        self.used = end;
        self.header.msg_controllen = end as _;
    }
}

/// The control messages in `bytes`: level, type and value of each. Ends at the first malformed one.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (c_int, c_int, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..HEADER)?;
        let length = usize::from_ne_bytes(head[..size_of::<usize>()].try_into().ok()?);
        let level = c_int::from_ne_bytes(head[HEADER - 8..HEADER - 4].try_into().ok()?);
        let kind = c_int::from_ne_bytes(head[HEADER - 4..].try_into().ok()?);
        let value = bytes.get(HEADER..length)?;
        let next = length.checked_next_multiple_of(ALIGNMENT)?;
        bytes = bytes.get(next..).unwrap_or(&[]);
        Some((level, kind, value))
    })
}

// `messages` and `Encoder` read and write the header field by field: length, level, type.
const _: () = assert!(HEADER == size_of::<usize>() + 8);

/// What the kernel reports about a received datagram (ip(7), ipv6(7)).
#[derive(Clone, Copy, Default)]
pub struct Arrival {
    /// Which address it was sent to, if the socket requested it; of a transparent one, the port too.
    pub local: Local,
    /// Its DSCP, in the upper six bits; the lower two (ECN) are 0.
    pub dscp: u8,
}

/// Reads what the kernel reports about a datagram.
#[inline]
pub fn arrival(control: &[u8]) -> Arrival {
    // Nearly always: nothing was asked, or the type of service alone, and it is 0.
    if control.is_empty() || control == ORDINARY {
        return Arrival::default();
    }
    read(control)
}

/// The control space of a datagram over IPv4 without a DSCP, on a socket that requests nothing else.
const ORDINARY: [u8; HEADER + ALIGNMENT] = {
    let mut bytes = [0; HEADER + ALIGNMENT];
    let length = (HEADER + 1).to_ne_bytes();
    let kind = libc::IP_TOS.to_ne_bytes();
    let mut at = 0;
    while at < length.len() {
        bytes[at] = length[at];
        at += 1;
    }
    // The level, SOL_IP, is 0.
    at = 0;
    while at < kind.len() {
        bytes[HEADER - 4 + at] = kind[at];
        at += 1;
    }
    bytes
};

fn read(control: &[u8]) -> Arrival {
    let mut arrival = Arrival::default();
    for (level, kind, value) in messages(control) {
        match (level, kind) {
            (libc::SOL_IP, libc::IP_PKTINFO) if value.len() >= 12 => {
                arrival.local.family = 4;
                // ipi_spec_dst: for a broadcast it is this host's address, where ipi_addr is not.
                arrival.local.address[..4].copy_from_slice(&value[4..8]);
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) if value.len() >= 20 => {
                let local = &mut arrival.local;
                local.family = 6;
                local.address.copy_from_slice(&value[..16]);
                if local.address.starts_with(&[0xfe, 0x80]) {
                    let interface = [value[16], value[17], value[18], value[19]];
                    local.interface = u32::from_ne_bytes(interface);
                }
            }
            (libc::SOL_IP, libc::IP_ORIGDSTADDR)
                if value.len() >= size_of::<libc::sockaddr_in>() =>
            {
                arrival.local = Local::original(&RawAddr::from_bytes(value));
            }
            (libc::SOL_IPV6, IPV6_ORIGDSTADDR)
                if value.len() >= size_of::<libc::sockaddr_in6>() =>
            {
                arrival.local = Local::original(&RawAddr::from_bytes(value));
            }
            // One byte for IPv4, an int for IPv6: the value's least significant byte.
            (libc::SOL_IP, libc::IP_TOS) if !value.is_empty() => arrival.dscp = value[0] & DSCP,
            (libc::SOL_IPV6, libc::IPV6_TCLASS) if value.len() >= 4 => {
                let class = c_int::from_ne_bytes([value[0], value[1], value[2], value[3]]);
                arrival.dscp = class as u8 & DSCP;
            }
            _ => {}
        }
    }
    arrival
}

/// Whether a reply to this peer leaves as IPv4, also from a dual-stack socket.
pub fn is_ipv4(peer: &RawAddr) -> bool {
    peer.socket_addr().is_some_and(|peer| peer.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(write: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        // SAFETY: zeroes are a valid msghdr.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        let mut space = Control::EMPTY;
        write(&mut Encoder::new(&mut header, &mut space));
        space.0[..header.msg_controllen as usize].to_vec()
    }

    #[test]
    fn what_is_encoded_is_read_again() {
        let mut local = Local { family: 6, interface: 3, ..Local::default() };
        local.address[..2].copy_from_slice(&[0xfe, 0x80]);
        let bytes = encoded(|encoder| {
            encoder.local(&local);
            encoder.segment(1200);
            encoder.dscp(0xb8, false);
        });
        let read = arrival(&bytes);
        assert!(read.local == local);
        assert_eq!(read.dscp, 0xb8);
        let kinds: Vec<(c_int, c_int)> =
            messages(&bytes).map(|(level, kind, _)| (level, kind)).collect();
        assert_eq!(
            kinds,
            [
                (libc::SOL_IPV6, libc::IPV6_PKTINFO),
                (libc::SOL_UDP, libc::UDP_SEGMENT),
                (libc::SOL_IPV6, libc::IPV6_TCLASS),
            ]
        );
    }

    #[test]
    fn every_message_is_read_not_only_the_first() {
        let local = Local {
            family: 4,
            address: [192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..Local::default()
        };
        let bytes = encoded(|encoder| {
            encoder.dscp(0x28, true);
            encoder.local(&local);
        });
        let read = arrival(&bytes);
        assert!(read.local == local);
        assert_eq!(read.dscp, 0x28);
    }

    #[test]
    fn a_transparent_socket_tells_address_and_port() {
        let original = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            let (level, kind) = match address.is_ipv4() {
                true => (libc::SOL_IP, libc::IP_ORIGDSTADDR),
                false => (libc::SOL_IPV6, IPV6_ORIGDSTADDR),
            };
            let bytes = encoded(|encoder| {
                encoder.push(level, kind, RawAddr::from(address).bytes());
                encoder.dscp(0xb8, address.is_ipv4());
            });
            let read = arrival(&bytes);
            assert_eq!(read.dscp, 0xb8);
            read.local.socket_addr().map(|address| address.to_string())
        };
        for text in ["198.51.100.7:5060", "[2001:db8::7]:65535", "[fe80::1%3]:53"] {
            assert_eq!(original(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn ecn_is_no_part_of_the_dscp() {
        let bytes = encoded(|encoder| encoder.push(libc::SOL_IP, libc::IP_TOS, &[0xff]));
        assert_eq!(arrival(&bytes).dscp, 0xfc);
    }

    #[test]
    fn the_layout_is_that_of_the_c_library() {
        let bytes = encoded(|encoder| {
            encoder.segment(1200);
            encoder.dscp(4, true);
        });
        // SAFETY: the macros only compute.
        let (first, second) = unsafe { (libc::CMSG_SPACE(2), libc::CMSG_SPACE(4)) };
        assert_eq!(bytes.len(), (first + second) as usize);
        // SAFETY: as above.
        let length = unsafe { libc::CMSG_LEN(2) } as usize;
        assert_eq!(bytes[..size_of::<usize>()], length.to_ne_bytes());
    }

    #[test]
    fn malformed_messages_end_the_walk() {
        let good = encoded(|encoder| encoder.dscp(4, true));
        for cut in 0..good.len() {
            let _ = messages(&good[..cut]).count();
        }
        let mut short = good.clone();
        short[..size_of::<usize>()].copy_from_slice(&1usize.to_ne_bytes());
        assert_eq!(messages(&short).count(), 0);
        short[..size_of::<usize>()].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(messages(&short).count(), 0);
    }
}
