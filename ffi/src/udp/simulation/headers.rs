//! Headers, and a parser for them that is independent of the real decoder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::abi::layout::carrier;
use crate::header::frame::SPP_LENGTH;

pub fn client(at: u8) -> SocketAddr {
    match at % 2 {
        0 => (Ipv4Addr::new(203, 0, 113, at), 1_000 + u16::from(at)).into(),
        _ => {
            let ip = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(at));
            (ip, 1_000 + u16::from(at)).into()
        }
    }
}

pub fn refused_client() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 7).into()
}

pub const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Where headers can lead.
pub fn destination(client: SocketAddr, at: u8) -> SocketAddr {
    match client {
        SocketAddr::V4(_) => ([198, 51, 100, 200 + at], 53).into(),
        SocketAddr::V6(_) => (Ipv6Addr::from(u128::from(at)), 53).into(),
    }
}

pub fn v2(client: SocketAddr, to: u8, unique_id: Option<u32>) -> Vec<u8> {
    let mut body = Vec::new();
    let family = match client.ip() {
        IpAddr::V4(ip) => {
            body.extend(ip.octets());
            body.extend([198, 51, 100, 200 + to]);
            0x12
        }
        IpAddr::V6(ip) => {
            body.extend(ip.octets());
            body.extend(u128::from(to).to_be_bytes());
            0x22
        }
    };
    body.extend(client.port().to_be_bytes());
    body.extend(53u16.to_be_bytes());
    if let Some(id) = unique_id {
        body.extend([0x05, 0, 4]);
        body.extend(id.to_be_bytes());
    }
    let mut header = SIGNATURE.to_vec();
    header.extend([0x21, family]);
    header.extend((body.len() as u16).to_be_bytes());
    header.extend(body);
    header
}

pub fn v2_local() -> Vec<u8> {
    [SIGNATURE, &[0x20, 0, 0, 0]].concat()
}

pub fn v1(client: SocketAddr, to: u8) -> Vec<u8> {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let to = destination(client, to).ip();
    format!("PROXY {family} {} {to} {} 53\r\n", client.ip(), client.port()).into_bytes()
}

pub fn spp(client: SocketAddr, salt: u32) -> Vec<u8> {
    let ip = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut header = vec![0x56, 0xec];
    header.extend(ip.octets());
    header.extend(Ipv6Addr::from(u128::from(salt)).octets());
    header.extend(client.port().to_be_bytes());
    header.extend(53u16.to_be_bytes());
    debug_assert_eq!(header.len(), SPP_LENGTH);
    header
}

/// Whom a header names; nobody: LOCAL.
pub fn read_client(header: &[u8], carrier: u32) -> Option<SocketAddr> {
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let v6 = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
        Ipv6Addr::from(octets).to_canonical()
    };
    if carrier == carrier::SPP {
        return Some((v6(2), port(34)).into());
    }
    if header.starts_with(b"PROXY ") {
        let line = String::from_utf8_lossy(header);
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        return Some((words[2].parse::<IpAddr>().ok()?, words[4].parse::<u16>().ok()?).into());
    }
    match (header[12], header[13] >> 4) {
        (0x20, _) => None,
        (_, 1) => {
            let ip = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
            Some((ip, port(24)).into())
        }
        _ => Some((v6(16), port(48)).into()),
    }
}

/// Where a header with a client leads.
pub fn read_destination(header: &[u8], carrier: u32) -> SocketAddr {
    let v6 = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().unwrap_or_default();
        Ipv6Addr::from(octets)
    };
    let ip: IpAddr = if carrier == carrier::SPP {
        // The rest of it only makes headers vary.
        Ipv6Addr::from(u128::from(header[33] & 1)).into()
    } else if header.starts_with(b"PROXY ") {
        let line = String::from_utf8_lossy(header);
        let word = line.split_ascii_whitespace().nth(3).map(str::parse);
        word.and_then(Result::ok).unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    } else if header[13] >> 4 == 1 {
        Ipv4Addr::new(header[20], header[21], header[22], header[23]).into()
    } else {
        v6(32).into()
    };
    (ip, 53).into()
}
