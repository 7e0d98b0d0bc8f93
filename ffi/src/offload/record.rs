//! The records of the BPF program's maps, as `ffi/bpf/offload.h` has them.

use std::net::{IpAddr, SocketAddr};

/// How far an entry is.
pub mod state {
    pub const FREE: u32 = 0;
    pub const WATCHED: u32 = 1;
    pub const OFFLOADED: u32 = 2;
    pub const OVER: u32 = 3;
}

/// What was seen of a direction.
pub mod saw {
    pub const FIN: u32 = 1;
    pub const RST: u32 = 2;
    /// The other direction had no FIN before.
    pub const FIRST_FIN: u32 = 4;
}

/// How a packet leaves.
pub mod out {
    pub const TO_LOOPBACK: u32 = 1;
    pub const TO_NEIGHBOUR: u32 = 2;
}

/// Of a `Reference`'s direction: packets of the proxy's own socket.
pub const FROM_SOCKET: u32 = 2;

/// What `Entry::notes` has, for whoever adopts the entry; the BPF program does not look at it.
pub mod note {
    pub const TIMESTAMPS: u32 = 1;
    pub const IPV6: u32 = 2;
}

/// The version of all of this, which programs of several versions share by the BPF file system (`pins.rs`): another
/// number for whatever an adopter would misunderstand.
pub const LAYOUT: u32 = 1;

/// See `Direction::reach`.
pub const MOST_REACH: u32 = 1 << 29;

/// Addresses and ports of a packet, in network byte order. IPv4 has the first four bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: [u8; 2],
    pub destination_port: [u8; 2],
}

/// Which entry and direction a tuple stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    pub entry: u32,
    pub direction: u32,
}

/// One direction; see `offload.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    pub to: Tuple,
    pub out: u32,
    pub out_interface: u32,
    pub in_interface: u32,
    pub add_sequence: u32,
    pub window_shift: i32,
    pub window_scale: u32,
    pub address_sum: u32,
    pub timestamp_base: u32,
    pub timestamp_add: u32,
    pub timestamp_known: u32,
    pub boundary: u32,
    pub seen: u32,
    pub fin: u32,
    pub reach: u32,
    pub window: u32,
    pub acknowledged: u64,
    pub sent: u64,
    pub clock_at: u64,
    pub last: u64,
    pub heard: u64,
}

/// A connection: from the peer to the service, and back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub state: u32,
    pub draining: u32,
    pub directions: [Direction; 2],
    /// Of packets to the upstream.
    pub mark: u32,
    pub notes: u32,
}

// SAFETY: integers alone, and no padding between them: any bytes are valid.
unsafe impl aya::Pod for Tuple {}
// SAFETY: as above.
unsafe impl aya::Pod for Reference {}

const _: () = assert!(size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<Direction>() == 136);
const _: () = assert!(size_of::<Entry>() == 288);

impl Tuple {
    /// The tuple of packets between two addresses of one family; `None` for two families.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Option<Tuple> {
        (source.is_ipv4() == destination.is_ipv4()).then(|| Tuple {
            source: words(source.ip()),
            destination: words(destination.ip()),
            source_port: source.port().to_be_bytes(),
            destination_port: destination.port().to_be_bytes(),
        })
    }

    /// The two ends, for whoever knows their family.
    pub fn ends(&self, is_ipv6: bool) -> [SocketAddr; 2] {
        let end = |words: [u8; 16], port| {
            let [a, b, c, d, ..] = words;
            let ip = if is_ipv6 { IpAddr::from(words) } else { IpAddr::from([a, b, c, d]) };
            SocketAddr::new(ip, u16::from_be_bytes(port))
        };
        [end(self.source, self.source_port), end(self.destination, self.destination_port)]
    }

    /// That of the packets back.
    pub fn reversed(&self) -> Tuple {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// What a checksum over the addresses of `from` must change by to fit these: ones' complement, as
    /// bytes lie in memory (RFC 1624).
    pub fn address_sum(&self, from: &Tuple) -> u32 {
        let words = |tuple: &Tuple| [tuple.source, tuple.destination].map(halves).concat();
        let sum: u64 = words(self).iter().map(|word| u64::from(*word)).sum::<u64>()
            + words(from).iter().map(|word| u64::from(!*word)).sum::<u64>();
        // Eight words of 32 bits each have carried less than 2^5.
        let folded = (sum & 0xffff_ffff) + (sum >> 32);
        ((folded & 0xffff_ffff) + (folded >> 32)) as u32
    }
}

fn words(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut words = [0; 16];
            words[..4].copy_from_slice(&address.octets());
            words
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn halves(bytes: [u8; 16]) -> [u32; 4] {
    [0, 4, 8, 12]
        .map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of RFC 1071 over words in memory order.
    fn checksum(words: &[u32]) -> u16 {
        let mut sum: u64 =
            words.iter().map(|word| u64::from(word & 0xffff) + u64::from(word >> 16)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn a_checksum_that_is_changed_by_the_sum_fits_the_new_addresses() {
        let tuple = |source: &str, destination: &str| {
            Tuple::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
        };
        let pairs = [
            (tuple("192.0.2.1:5", "198.51.100.1:6"), tuple("203.0.113.9:7", "127.0.0.1:8")),
            (tuple("[2001:db8::1]:5", "[2001:db8::2]:6"), tuple("[2001:db8:ffff::9]:7", "[::1]:8")),
            (tuple("255.255.255.255:5", "255.255.255.255:6"), tuple("0.0.0.0:7", "0.0.0.0:8")),
        ];
        for (from, to) in pairs {
            let words = |tuple: &Tuple| [tuple.source, tuple.destination].map(halves).concat();
            let before = checksum(&words(&from));
            // RFC 1624, equation 3: the complement of the old checksum, plus the change.
            let changed = checksum(&[u32::from(!before), to.address_sum(&from)]);
            let right = checksum(&words(&to));
            // Zero has two forms in ones' complement.
            assert!(changed == right || changed | right == 0xffff, "{changed:04x} {right:04x}");
        }
    }

    #[test]
    fn two_families_have_no_tuple() {
        assert!(Tuple::new("192.0.2.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()).is_none());
    }
}
