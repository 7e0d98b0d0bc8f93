//! Parses what comes on standard input with the crates `ppp` and `proxy-header`, for
//! `tests/oracles_test.ts`.
//!
//! A case is its length (u32) and its bytes. Each gets two answers of 44 bytes, in the crates' order: the
//! header's length (i32; 0 for none, -1 for a panic), the family (0, 4 or 6) and three zeroes, the client's
//! and the destination's address (16 bytes each, IPv4 in the first four), their ports. Numbers are in host
//! byte order.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::panic;

/// A header's length, and whom it names.
type Parsed = Option<(usize, Option<(SocketAddr, SocketAddr)>)>;

fn main() -> io::Result<()> {
    let mut cases = Vec::new();
    io::stdin().read_to_end(&mut cases)?;
    // A parser that panics says so in its answer.
    panic::set_hook(Box::new(|_| {}));
    let mut answers = Vec::new();
    let mut rest = &cases[..];
    while let Some((length, behind)) = rest.split_first_chunk() {
        let (data, next) = behind.split_at(u32::from_ne_bytes(*length) as usize);
        for parse in [with_ppp, with_proxy_header] {
            answer(panic::catch_unwind(|| parse(data)).ok(), &mut answers);
        }
        rest = next;
    }
    io::stdout().write_all(&answers)
}

fn with_ppp(data: &[u8]) -> Parsed {
    match ppp::HeaderResult::parse(data) {
        ppp::HeaderResult::V1(header) => {
            let header = header.ok()?;
            let named = match header.addresses {
                ppp::v1::Addresses::Unknown => None,
                ppp::v1::Addresses::Tcp4(ip) => Some((
                    (ip.source_address, ip.source_port).into(),
                    (ip.destination_address, ip.destination_port).into(),
                )),
                ppp::v1::Addresses::Tcp6(ip) => Some((
                    (ip.source_address, ip.source_port).into(),
                    (ip.destination_address, ip.destination_port).into(),
                )),
            };
            Some((header.header.len(), named))
        }
        ppp::HeaderResult::V2(header) => {
            let header = header.ok()?;
            let named = match header.addresses {
                // It keeps the addresses of a LOCAL header, for its user to leave alone.
                _ if header.command == ppp::v2::Command::Local => None,
                ppp::v2::Addresses::IPv4(ip) => Some((
                    (ip.source_address, ip.source_port).into(),
                    (ip.destination_address, ip.destination_port).into(),
                )),
                ppp::v2::Addresses::IPv6(ip) => Some((
                    (ip.source_address, ip.source_port).into(),
                    (ip.destination_address, ip.destination_port).into(),
                )),
                _ => None,
            };
            Some((header.len(), named))
        }
    }
}

fn with_proxy_header(data: &[u8]) -> Parsed {
    let config = proxy_header::ParseConfig::default();
    let (header, length) = proxy_header::ProxyHeader::parse(data, config).ok()?;
    let named = header.proxied_address().map(|named| (named.source, named.destination));
    Some((length, named))
}

/// `parsed`: `None` for a panic.
fn answer(parsed: Option<Parsed>, answers: &mut Vec<u8>) {
    let length = match parsed {
        None => -1,
        Some(None) => 0,
        Some(Some((length, _))) => length as i32,
    };
    let named = parsed.flatten().and_then(|(_, named)| named);
    answers.extend(length.to_ne_bytes());
    let (family, client, destination) = match named {
        None => (0, None, None),
        Some((client, destination)) => {
            (if client.is_ipv4() { 4 } else { 6 }, Some(client), Some(destination))
        }
    };
    answers.extend([family, 0, 0, 0]);
    for end in [client, destination] {
        let mut address = [0; 16];
        match end.map(|end| end.ip()) {
            Some(IpAddr::V4(v4)) => address[..4].copy_from_slice(&v4.octets()),
            Some(IpAddr::V6(v6)) => address = v6.octets(),
            None => {}
        }
        answers.extend(address);
    }
    for end in [client, destination] {
        answers.extend(end.map_or(0, |end| end.port()).to_ne_bytes());
    }
}
