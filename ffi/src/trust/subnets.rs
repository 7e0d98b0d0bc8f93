//! A set of subnets of both families, matched by binary search.

use std::net::IpAddr;

use crate::net::subnet::{number_of, Subnet};

/// IPv4 lives in `::ffff:0:0/96`, so a mapped address is its IPv4 self.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Subnets {
    /// Inclusive ranges, sorted, neither overlapping nor adjacent.
    ranges: Box<[(u128, u128)]>,
}

impl Subnets {
    /// Builds the set; `None` if a prefix is longer than 128. Host bits of an address are ignored.
    pub fn new(records: &[Subnet]) -> Option<Subnets> {
        let mut ranges = Vec::with_capacity(records.len());
        for record in records {
            ranges.push(record.range()?);
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => merged.push((first, last)),
            }
        }
        Some(Subnets { ranges: merged.into_boxed_slice() })
    }

    /// Whether an address is in one of the subnets.
    pub fn contain(&self, ip: IpAddr) -> bool {
        let ip = number_of(ip);
        let after = self.ranges.partition_point(|&(first, _)| first <= ip);
        after > 0 && ip <= self.ranges[after - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Subnet {
        let (address, prefix) = text.split_once('/').unwrap();
        let prefix: u32 = prefix.parse().unwrap();
        match address.parse().unwrap() {
            IpAddr::V4(v4) => Subnet { address: v4.to_ipv6_mapped().octets(), prefix: prefix + 96 },
            IpAddr::V6(v6) => Subnet { address: v6.octets(), prefix },
        }
    }

    fn subnets(texts: &[&str]) -> Subnets {
        Subnets::new(&texts.iter().map(|text| record(text)).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_edges_of_a_prefix() {
        let set = subnets(&["192.0.2.64/26", "2001:db8::/33"]);
        for (peer, inside) in [
            ("192.0.2.63", false),
            ("192.0.2.64", true),
            ("192.0.2.127", true),
            ("192.0.2.128", false),
            ("::ffff:192.0.2.100", true),
            ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("2001:db8::", true),
            ("2001:db8:7fff:ffff:ffff:ffff:ffff:ffff", true),
            ("2001:db8:8000::", false),
            ("::192.0.2.100", false),
        ] {
            assert_eq!(set.contain(peer.parse().unwrap()), inside, "{peer}");
        }
    }

    #[test]
    fn every_ipv4_is_not_every_ipv6() {
        let set = subnets(&["0.0.0.0/0"]);
        assert!(set.contain("255.255.255.255".parse().unwrap()));
        assert!(!set.contain("2001:db8::1".parse().unwrap()));
        let all = subnets(&["::/0"]);
        assert!(all.contain("192.0.2.1".parse().unwrap()), "mapped addresses lie in ::/0");
    }

    #[test]
    fn overlapping_and_adjacent_subnets_merge() {
        let set = subnets(&["192.0.2.128/25", "192.0.2.0/25", "192.0.2.7/32"]);
        assert_eq!(set, subnets(&["192.0.2.0/24"]));
    }

    #[test]
    fn an_empty_set_allows_nobody() {
        assert!(!Subnets::default().contain("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_prefix_out_of_range_is_refused() {
        assert_eq!(Subnets::new(&[Subnet { address: [0; 16], prefix: 129 }]), None);
    }

    #[test]
    fn the_search_agrees_with_a_scan() {
        // A small linear generator: the same subnets and peers on every run.
        let mut state = 7u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        for _ in 0..200 {
            let records: Vec<Subnet> = (0..next() % 12)
                .map(|_| {
                    let mut address = [0; 16];
                    address[15] = next() as u8;
                    Subnet { address, prefix: 120 + (next() % 9) as u32 }
                })
                .collect();
            let set = Subnets::new(&records).unwrap();
            for peer in 0..=255u8 {
                let expected = records.iter().any(|record| {
                    let mask = 0xffu8.checked_shl(128 - record.prefix).unwrap_or(0);
                    record.address[15] & mask == peer & mask
                });
                let mut octets = [0; 16];
                octets[15] = peer;
                assert_eq!(set.contain(IpAddr::from(octets)), expected, "{records:?} {peer}");
            }
        }
    }
}
