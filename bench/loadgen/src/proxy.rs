//! The clients that the load pretends to come from, and the PROXY headers that say so.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

/// RFC 5737: addresses for documentation, never in use anywhere.
const NETWORKS: [[u8; 3]; 3] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];
const HOSTS: u64 = 254;
/// How many client addresses there are.
const ADDRESSES: u64 = HOSTS * NETWORKS.len() as u64;
const FIRST_PORT: u64 = 1024;
const PORTS: u64 = 65_536 - FIRST_PORT;

const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The client of a number: neighbours differ in their address, and 49 million numbers pass before
/// an address and port come again.
pub fn client(number: u64) -> SocketAddrV4 {
    let host = number % ADDRESSES;
    let [a, b, c] = NETWORKS[(host / HOSTS) as usize];
    let ip = Ipv4Addr::new(a, b, c, (1 + host % HOSTS) as u8);
    SocketAddrV4::new(ip, (FIRST_PORT + number / ADDRESSES % PORTS) as u16)
}

/// True for an address that `client` can give.
pub fn is_client(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    NETWORKS.contains(&[a, b, c])
}

/// Which header a load puts before its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// None: the load goes straight to the server.
    None,
    V1,
    V2,
}

/// What a header says that it travels on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Stream,
    Datagram,
}

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Header, String> {
        match text {
            "none" => Ok(Header::None),
            "v1" => Ok(Header::V1),
            "v2" => Ok(Header::V2),
            _ => Err(format!("Header {text:?} is not none, v1 or v2")),
        }
    }
}

impl Header {
    /// Appends the header of a client that spoke to `destination`.
    pub fn append(
        self,
        transport: Transport,
        client: SocketAddrV4,
        destination: SocketAddrV4,
        out: &mut Vec<u8>,
    ) {
        match self {
            Header::None => {}
            Header::V1 => {
                let (from, to) = (client.ip(), destination.ip());
                let (port, to_port) = (client.port(), destination.port());
                // Writing to a vector cannot fail.
                let _ = write!(out, "PROXY TCP4 {from} {to} {port} {to_port}\r\n");
            }
            Header::V2 => {
                out.extend_from_slice(&V2_SIGNATURE);
                let transport = match transport {
                    Transport::Stream => 0x11,
                    Transport::Datagram => 0x12,
                };
                out.extend_from_slice(&[0x21, transport, 0, 12]);
                out.extend_from_slice(&client.ip().octets());
                out.extend_from_slice(&destination.ip().octets());
                out.extend_from_slice(&client.port().to_be_bytes());
                out.extend_from_slice(&destination.port().to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn clients_are_distinct_and_in_the_documentation_ranges() {
        let clients: HashSet<_> = (0..5000).map(client).collect();
        assert_eq!(clients.len(), 5000);
        assert!(clients.iter().all(|client| is_client(*client.ip()) && client.port() >= 1024));
        assert!(!is_client(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn headers_as_the_specification_spells_them() {
        let destination = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8443);
        let mut out = Vec::new();
        Header::V1.append(Transport::Stream, client(0), destination, &mut out);
        assert_eq!(out, b"PROXY TCP4 192.0.2.1 127.0.0.1 1024 8443\r\n");
        out.clear();
        Header::V2.append(Transport::Datagram, client(0), destination, &mut out);
        assert_eq!(
            out,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\xc0\0\x02\x01\x7f\0\0\x01\x04\0\x20\xfb"
        );
    }
}
