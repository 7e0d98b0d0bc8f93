//! Finds the end of a header. Its meaning is left to the decoder, in TypeScript.
//!
//! The rules are those of HAProxy's proxy-protocol.txt, sections 2.1 (version 1) and 2.2 (version 2), and of
//! Cloudflare's Simple Proxy Protocol.

use crate::abi::layout::MAX_HEADER;
use crate::observe::refusal::Refusal;

const V1_START: &[u8] = b"PROXY ";
const V1_LONGEST: usize = 107;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;

/// Length of a Simple Proxy Protocol header, in bytes.
pub const SPP_LENGTH: usize = 38;
const SPP_MAGIC: [u8; 2] = [0x56, 0xec];

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// They may become a header; more is needed.
    Partial,
    /// A header of this many bytes; payload follows it.
    Header(usize),
    /// They can become no header.
    Refused(Refusal),
}

/// Frames the head of a stream: any number of its first bytes. Refuses at the first byte that no
/// header can have there.
pub fn stream(data: &[u8]) -> Frame {
    match data.first() {
        None => Frame::Partial,
        Some(b'P') => v1(data),
        Some(b'\r') => v2(data),
        Some(_) => Frame::Refused(Refusal::NotProxy),
    }
}

/// Frames the head of a datagram, which is never split.
pub fn datagram(data: &[u8]) -> Frame {
    match stream(data) {
        Frame::Partial => Frame::Refused(Refusal::Incomplete),
        framed => framed,
    }
}

/// Frames a Simple Proxy Protocol datagram.
pub fn spp(data: &[u8]) -> Frame {
    if !data.starts_with(&SPP_MAGIC) {
        let short = data.len() < SPP_MAGIC.len() && SPP_MAGIC.starts_with(data);
        return Frame::Refused(if short { Refusal::SppShort } else { Refusal::SppMagic });
    }
    if data.len() < SPP_LENGTH {
        return Frame::Refused(Refusal::SppShort);
    }
    Frame::Header(SPP_LENGTH)
}

/// Whether a datagram announces a Simple Proxy Protocol header, valid or not.
pub fn announces_spp(data: &[u8]) -> bool {
    data.starts_with(&SPP_MAGIC)
}

/// Whether a stream or datagram announces a header, valid or not.
pub fn announces_header(data: &[u8]) -> bool {
    data.starts_with(V2_SIGNATURE) || data.starts_with(V1_START)
}

fn v1(data: &[u8]) -> Frame {
    if !agrees(data, V1_START) {
        return Frame::Refused(Refusal::NotProxy);
    }
    let Some(rest) = data.get(V1_START.len()..) else { return Frame::Partial };
    let unknown = rest.first() == Some(&b'U');
    if !(agrees(rest, b"UNKNOWN") || agrees(rest, b"TCP4 ") || agrees(rest, b"TCP6 ")) {
        return Frame::Refused(Refusal::V1Protocol);
    }
    if unknown && rest.get(7).is_some_and(|byte| !matches!(byte, b' ' | b'\r')) {
        return Frame::Refused(Refusal::V1Protocol);
    }
    // A space begins what is to be ignored; a CR right behind the word can only be the line's end.
    if unknown && rest.get(7) == Some(&b'\r') && rest.get(8).is_some_and(|&byte| byte != b'\n') {
        return Frame::Refused(Refusal::V1LoneLineEnd);
    }
    let line = &data[..data.len().min(V1_LONGEST)];
    for (at, byte) in line.iter().enumerate().skip(V1_START.len()) {
        let after_cr = line[at - 1] == b'\r';
        match byte {
            b'\n' if after_cr => return Frame::Header(at + 1),
            // All up to the CRLF of an UNKNOWN line is to be ignored, whatever it is.
            _ if unknown => {}
            b'\n' => return Frame::Refused(Refusal::V1LoneLineEnd),
            _ if after_cr => return Frame::Refused(Refusal::V1LoneLineEnd),
            _ => {}
        }
    }
    if data.len() >= V1_LONGEST {
        return Frame::Refused(Refusal::V1TooLong);
    }
    Frame::Partial
}

fn v2(data: &[u8]) -> Frame {
    if !agrees(data, V2_SIGNATURE) {
        return Frame::Refused(Refusal::NotProxy);
    }
    // The bytes before the length are judged as they come, so that no peer can make us wait for
    // 65,535 bytes behind a command that nobody knows.
    let Some(&version_command) = data.get(12) else { return Frame::Partial };
    if version_command >> 4 != 2 {
        return Frame::Refused(Refusal::V2Version);
    }
    if version_command & 0x0f > 1 {
        return Frame::Refused(Refusal::V2Command);
    }
    let local = version_command & 0x0f == 0;
    let Some(&family_transport) = data.get(13) else { return Frame::Partial };
    if !local && family_transport >> 4 > 3 {
        return Frame::Refused(Refusal::V2Family);
    }
    if !local && family_transport & 0x0f > 2 {
        return Frame::Refused(Refusal::V2Transport);
    }
    let Some(length) = data.get(14..V2_FIXED) else { return Frame::Partial };
    let whole = V2_FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
    debug_assert!(whole <= MAX_HEADER);
    if data.len() < whole {
        return Frame::Partial;
    }
    Frame::Header(whole)
}

/// Whether the data starts with the expected bytes, as far as either goes.
fn agrees(data: &[u8], expected: &[u8]) -> bool {
    data.iter().zip(expected).all(|(have, want)| have == want)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2_header(version_command: u8, family_transport: u8, body: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([version_command, family_transport]);
        header.extend((body.len() as u16).to_be_bytes());
        header.extend(body);
        header
    }

    /// G3: a header may be split anywhere, and what follows it is payload (T8, B5).
    fn frames_at_every_split(header: &[u8]) {
        for split in 0..header.len() {
            assert_eq!(stream(&header[..split]), Frame::Partial, "after {split} bytes");
            assert_eq!(datagram(&header[..split]), Frame::Refused(Refusal::Incomplete));
        }
        assert_eq!(stream(header), Frame::Header(header.len()));
        for payload in [&b"x"[..], b"\r\n", b"PROXY TCP4 ", V2_SIGNATURE] {
            assert_eq!(stream(&[header, payload].concat()), Frame::Header(header.len()));
        }
    }

    #[test]
    fn g3_a_header_may_be_split_anywhere() {
        frames_at_every_split(b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n");
        frames_at_every_split(b"PROXY UNKNOWN\r\n");
        frames_at_every_split(b"PROXY UNKNOWN ffff:f... \r \n junk\r\n");
        frames_at_every_split(&v2_header(0x20, 0x00, &[]));
        frames_at_every_split(&v2_header(0x21, 0x11, &[1; 12]));
        frames_at_every_split(&v2_header(0x21, 0x31, &[7; 300]));
    }

    #[test]
    fn g9_the_longest_header_is_65551_bytes() {
        let longest = v2_header(0x21, 0x11, &[0; 65_535]);
        assert_eq!(longest.len(), MAX_HEADER);
        assert_eq!(stream(&longest), Frame::Header(MAX_HEADER));
        assert_eq!(stream(&longest[..MAX_HEADER - 1]), Frame::Partial);
    }

    #[test]
    fn g3_the_first_impossible_byte_refuses() {
        for (data, refusal) in [
            (&b"\x16"[..], Refusal::NotProxy),
            (b"G", Refusal::NotProxy),
            (b"PO", Refusal::NotProxy),
            (b"PROXY\t", Refusal::NotProxy),
            (b"p", Refusal::NotProxy),
            (b"\r\n\r\n\0\r\nQUIX", Refusal::NotProxy),
            (b"PROXY X", Refusal::V1Protocol),
            (b"PROXY  ", Refusal::V1Protocol),
            (b"PROXY TCP5", Refusal::V1Protocol),
            (b"PROXY TCP4\r", Refusal::V1Protocol),
            (b"PROXY UNKNOWS", Refusal::V1Protocol),
            (b"PROXY UNKNOWNX", Refusal::V1Protocol),
            (b"PROXY TCP4 192.0.2.1\n", Refusal::V1LoneLineEnd),
            (b"PROXY TCP4 192.0.2.1\r ", Refusal::V1LoneLineEnd),
            (b"PROXY UNKNOWN\r\r", Refusal::V1LoneLineEnd),
            (b"PROXY UNKNOWN\rx", Refusal::V1LoneLineEnd),
            (b"\r\n\r\n\0\r\nQUIT\n\x11", Refusal::V2Version),
            (b"\r\n\r\n\0\r\nQUIT\n\x22", Refusal::V2Command),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x41", Refusal::V2Family),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x13", Refusal::V2Transport),
        ] {
            assert_eq!(stream(data), Frame::Refused(refusal), "{}", data.escape_ascii());
            let before = stream(&data[..data.len() - 1]);
            assert_eq!(before, Frame::Partial, "a byte early: {}", data.escape_ascii());
        }
    }

    #[test]
    fn t4_the_crlf_ends_within_107_bytes() {
        let mut line = b"PROXY UNKNOWN ".to_vec();
        line.resize(105, b'x');
        line.extend(b"\r\n");
        assert_eq!(stream(&line), Frame::Header(107));
        line.insert(20, b'x');
        assert_eq!(stream(&line[..106]), Frame::Partial);
        assert_eq!(stream(&line), Frame::Refused(Refusal::V1TooLong));
        assert_eq!(stream(&line[..107]), Frame::Refused(Refusal::V1TooLong));
    }

    #[test]
    fn t5_a_lone_cr_or_lf_ends_no_unknown_line() {
        assert_eq!(stream(b"PROXY UNKNOWN \n\r"), Frame::Partial);
        assert_eq!(stream(b"PROXY UNKNOWN \r\r\nx"), Frame::Header(17));
    }

    #[test]
    fn b2_local_ignores_the_family() {
        assert_eq!(stream(&v2_header(0x20, 0xff, b"tlv")), Frame::Header(19));
    }

    #[test]
    fn spp_is_38_bytes_behind_its_magic() {
        let mut header = vec![0x56, 0xec];
        header.resize(SPP_LENGTH, 0);
        assert_eq!(spp(&header), Frame::Header(38));
        assert_eq!(spp(&[&header[..], b"payload"].concat()), Frame::Header(38));
        for short in [0, 1, 2, 37] {
            assert_eq!(spp(&header[..short]), Frame::Refused(Refusal::SppShort));
        }
        assert_eq!(spp(b"PROXY UNKNOWN\r\n"), Frame::Refused(Refusal::SppMagic));
        assert_eq!(spp(b"x"), Frame::Refused(Refusal::SppMagic));
    }

    #[test]
    fn no_bytes_make_it_panic_or_pass_the_end() {
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize
        };
        let seeds = [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n".to_vec(),
            v2_header(0x21, 0x11, &[1; 40]),
            b"PROXY UNKNOWN x\r\n".to_vec(),
        ];
        for _ in 0..20_000 {
            let mut data = seeds[next() % seeds.len()].clone();
            for _ in 0..next() % 4 {
                let at = next() % data.len();
                data[at] = next() as u8;
            }
            data.truncate(next() % (data.len() + 1));
            if let Frame::Header(length) = stream(&data) {
                assert!(length <= data.len());
            }
            if let Frame::Header(length) = spp(&data) {
                assert!(length <= data.len());
            }
        }
    }
}
