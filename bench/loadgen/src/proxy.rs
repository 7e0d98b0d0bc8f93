//! The clients that the load pretends to come from, and the PROXY headers that say so.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// RFC 5737: addresses for documentation, never in use anywhere.
const NETWORKS: [[u8; 3]; 3] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];
const HOSTS: u64 = 254;
/// How many client addresses there are, in either family.
const ADDRESSES: u64 = HOSTS * NETWORKS.len() as u64;
const FIRST_PORT: u64 = 1024;
const PORTS: u64 = 65_536 - FIRST_PORT;

/// RFC 3849, the same for IPv6: clients are in the first /48 of it.
const NETWORK_V6: [u16; 3] = [0x2001, 0xdb8, 0];
/// The load itself is in the last one, where it needs more addresses than `::1`.
const OWN_NETWORK_V6: [u16; 3] = [0x2001, 0xdb8, 0xffff];

const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Which IP a load runs over: its clients, its headers and its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: SocketAddr) -> Family {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// The client of a number: neighbours differ in their address, and 49 million numbers pass
    /// before an address and port come again.
    pub fn client(self, number: u64) -> SocketAddr {
        let host = number % ADDRESSES;
        let ip = match self {
            Family::V4 => {
                let [a, b, c] = NETWORKS[(host / HOSTS) as usize];
                IpAddr::from([a, b, c, (1 + host % HOSTS) as u8])
            }
            Family::V6 => within(NETWORK_V6, 1 + host as u16),
        };
        SocketAddr::new(ip, (FIRST_PORT + number / ADDRESSES % PORTS) as u16)
    }

    /// The load's own `number`th address: on loopback, but for IPv6, where that has one alone. An
    /// IPv6 one is on no interface, so binding to it takes `IP_FREEBIND`.
    pub fn source(self, number: u8) -> IpAddr {
        match self {
            Family::V4 => IpAddr::from([127, 0, 0, 1 + number]),
            Family::V6 => within(OWN_NETWORK_V6, 1 + u16::from(number)),
        }
    }
}

fn within([a, b, c]: [u16; 3], host: u16) -> IpAddr {
    IpAddr::from([a, b, c, 0, 0, 0, 0, host])
}

/// True for an address that `client` can give.
pub fn is_client(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            NETWORKS.contains(&[a, b, c])
        }
        IpAddr::V6(ip) => ip.segments()[..3] == NETWORK_V6,
    }
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
    /// Appends the header of a client that spoke to `destination`, an address of its own family.
    pub fn append(
        self,
        transport: Transport,
        client: SocketAddr,
        destination: SocketAddr,
        out: &mut Vec<u8>,
    ) {
        let (from, to) = (client.ip(), destination.ip());
        let (port, to_port) = (client.port(), destination.port());
        match self {
            Header::None => {}
            Header::V1 => {
                let family = if from.is_ipv4() { 4 } else { 6 };
                // Writing to a vector cannot fail.
                let _ = write!(out, "PROXY TCP{family} {from} {to} {port} {to_port}\r\n");
            }
            Header::V2 => {
                out.extend_from_slice(&V2_SIGNATURE);
                let transport = match transport {
                    Transport::Stream => 1,
                    Transport::Datagram => 2,
                };
                let (family, length) = if from.is_ipv4() { (0x10, 12) } else { (0x20, 36) };
                out.extend_from_slice(&[0x21, family | transport, 0, length]);
                for ip in [from, to] {
                    match ip {
                        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
                    }
                }
                out.extend_from_slice(&port.to_be_bytes());
                out.extend_from_slice(&to_port.to_be_bytes());
            }
        }
    }
}

/// True for the address of loopback that everything here listens on.
pub fn is_localhost(ip: IpAddr) -> bool {
    ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn clients_are_distinct_and_in_the_documentation_ranges() {
        for family in [Family::V4, Family::V6] {
            let clients: HashSet<_> = (0..5000).map(|number| family.client(number)).collect();
            assert_eq!(clients.len(), 5000);
            assert!(clients.iter().all(|client| is_client(client.ip()) && client.port() >= 1024));
            assert!(clients.iter().all(|client| Family::of(*client) == family));
            assert!(!is_client(family.source(63)));
        }
    }

    #[test]
    fn headers_as_the_specification_spells_them() {
        let destination = SocketAddr::from((Ipv4Addr::LOCALHOST, 8443));
        let mut out = Vec::new();
        Header::V1.append(Transport::Stream, Family::V4.client(0), destination, &mut out);
        assert_eq!(out, b"PROXY TCP4 192.0.2.1 127.0.0.1 1024 8443\r\n");
        out.clear();
        Header::V2.append(Transport::Datagram, Family::V4.client(0), destination, &mut out);
        assert_eq!(
            out,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\xc0\0\x02\x01\x7f\0\0\x01\x04\0\x20\xfb"
        );
    }

    #[test]
    fn headers_over_ipv6_as_the_specification_spells_them() {
        let destination = SocketAddr::from((Ipv6Addr::LOCALHOST, 8443));
        let mut out = Vec::new();
        Header::V1.append(Transport::Stream, Family::V6.client(0), destination, &mut out);
        assert_eq!(out, b"PROXY TCP6 2001:db8::1 ::1 1024 8443\r\n");
        out.clear();
        Header::V2.append(Transport::Stream, Family::V6.client(0), destination, &mut out);
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8".to_vec();
        expected.extend_from_slice(&[0; 11]);
        expected.push(1);
        expected.extend_from_slice(&[0; 15]);
        expected.push(1);
        expected.extend_from_slice(b"\x04\0\x20\xfb");
        assert_eq!(out, expected);
    }
}
