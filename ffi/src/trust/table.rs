//! Which peers may connect to a listener, and what each must send first.

use std::net::IpAddr;

use crate::abi::layout::{header_rule, TrustRecord};
use crate::net::subnet::{number_of, Subnet};

/// What a peer must send first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderRule {
    /// A header.
    Require,
    /// A header, or its own bytes: it is the client then.
    Optional,
    /// Its own bytes: no header is expected, and none taken.
    Skip,
}

/// Subnets with a rule each: the longest prefix wins, and whom none names may not connect. IPv4 lives in
/// `::ffff:0:0/96`, so a mapped peer is its IPv4 self.
#[derive(Debug, PartialEq, Eq)]
pub struct TrustTable {
    /// Where each range of addresses begins, with what holds up to the next; sorted.
    ranges: Box<[(u128, Option<HeaderRule>)]>,
    mixed: bool,
}

/// Why records are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTable {
    /// It would look like "allow all".
    Empty,
    /// A prefix is longer than its address.
    Prefix,
    /// A rule that there is not.
    Rule,
    /// Two rules for one subnet.
    Ambiguous,
}

impl HeaderRule {
    fn of(code: u32) -> Option<HeaderRule> {
        match code {
            header_rule::REQUIRE => Some(HeaderRule::Require),
            header_rule::OPTIONAL => Some(HeaderRule::Optional),
            header_rule::SKIP => Some(HeaderRule::Skip),
            _ => None,
        }
    }
}

impl TrustTable {
    /// # Errors
    /// Where the records say nothing, or something twice in different ways.
    pub fn new(records: &[TrustRecord]) -> Result<TrustTable, NoTable> {
        if records.is_empty() {
            return Err(NoTable::Empty);
        }
        let mut rules = Vec::with_capacity(records.len());
        for TrustRecord { address, prefix, header } in records {
            let subnet = Subnet { address: *address, prefix: *prefix };
            let (first, last) = subnet.range().ok_or(NoTable::Prefix)?;
            rules.push((first, last, HeaderRule::of(*header).ok_or(NoTable::Rule)?));
        }
        // A subnet stands before those within it.
        rules.sort_by_key(|(first, last, _)| (*first, std::cmp::Reverse(*last)));
        let differ = |two: &[(u128, u128, HeaderRule)]| {
            (two[0].0, two[0].1) == (two[1].0, two[1].1) && two[0].2 != two[1].2
        };
        if rules.windows(2).any(differ) {
            return Err(NoTable::Ambiguous);
        }
        let mut ranges = Ranges(vec![(0, None)]);
        // The subnets that hold the address where we are, the innermost last.
        let mut around: Vec<(u128, HeaderRule)> = Vec::new();
        for (first, last, rule) in rules.iter().copied() {
            while let Some((end, _)) = around.last().copied().filter(|(end, _)| *end < first) {
                around.pop();
                ranges.begin(end + 1, around.last().map(|(_, rule)| *rule));
            }
            ranges.begin(first, Some(rule));
            around.push((last, rule));
        }
        while let Some((end, _)) = around.pop() {
            // Nothing is behind the last address.
            let Some(next) = end.checked_add(1) else { continue };
            ranges.begin(next, around.last().map(|(_, rule)| *rule));
        }
        let mixed = rules.iter().any(|(.., rule)| *rule != HeaderRule::Require);
        Ok(TrustTable { ranges: ranges.0.into(), mixed })
    }

    /// What a peer must send first; nothing if it may not connect.
    pub fn rule_of(&self, peer: IpAddr) -> Option<HeaderRule> {
        let peer = number_of(peer);
        let after = self.ranges.partition_point(|(first, _)| *first <= peer);
        self.ranges[..after].last()?.1
    }

    /// Whether any peer may come without a header.
    pub fn is_mixed(&self) -> bool {
        self.mixed
    }
}

/// Ranges in ascending order, no two neighbours alike.
struct Ranges(Vec<(u128, Option<HeaderRule>)>);

impl Ranges {
    /// From here on this holds.
    fn begin(&mut self, first: u128, rule: Option<HeaderRule>) {
        if self.0.last().is_some_and(|(before, _)| *before == first) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|(_, before)| *before != rule) {
            self.0.push((first, rule));
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A record of a subnet as text.
    pub fn record(text: &str, header: u32) -> TrustRecord {
        let (address, prefix) = text.split_once('/').unwrap();
        let prefix: u32 = prefix.parse().unwrap();
        match address.parse().unwrap() {
            IpAddr::V4(v4) => {
                TrustRecord { address: v4.to_ipv6_mapped().octets(), prefix: prefix + 96, header }
            }
            IpAddr::V6(v6) => TrustRecord { address: v6.octets(), prefix, header },
        }
    }

    fn table(rules: &[(&str, u32)]) -> Result<TrustTable, NoTable> {
        let records: Vec<TrustRecord> =
            rules.iter().map(|(text, header)| record(text, *header)).collect();
        TrustTable::new(&records)
    }

    use header_rule::{OPTIONAL, REQUIRE, SKIP};

    #[test]
    fn the_longest_prefix_wins_and_what_is_not_named_is_refused() {
        let rules = [
            ("10.0.0.0/8", OPTIONAL),
            ("10.1.0.0/16", REQUIRE),
            ("10.1.2.3/32", SKIP),
            ("2001:db8::/32", REQUIRE),
            ("255.255.255.255/32", SKIP),
        ];
        let table = table(&rules).unwrap();
        for (peer, rule) in [
            ("9.255.255.255", None),
            ("10.0.0.0", Some(HeaderRule::Optional)),
            ("10.1.0.0", Some(HeaderRule::Require)),
            ("10.1.2.2", Some(HeaderRule::Require)),
            ("10.1.2.3", Some(HeaderRule::Skip)),
            ("::ffff:10.1.2.3", Some(HeaderRule::Skip)),
            ("10.1.2.4", Some(HeaderRule::Require)),
            ("10.2.0.0", Some(HeaderRule::Optional)),
            ("11.0.0.0", None),
            ("2001:db8::1", Some(HeaderRule::Require)),
            ("2001:db9::", None),
            ("::", None),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
        ] {
            assert_eq!(table.rule_of(peer.parse().unwrap()), rule, "{peer}");
        }
        assert!(table.is_mixed());
    }

    #[test]
    fn records_that_are_no_table_are_refused() {
        assert_eq!(table(&[]), Err(NoTable::Empty));
        assert_eq!(table(&[("10.0.0.0/33", REQUIRE)]), Err(NoTable::Prefix));
        assert_eq!(table(&[("10.0.0.0/8", 0)]), Err(NoTable::Rule));
        assert_eq!(table(&[("10.0.0.0/8", 4)]), Err(NoTable::Rule));
        let twice = [("10.0.0.0/8", REQUIRE), ("10.9.9.9/8", SKIP)];
        assert_eq!(table(&twice), Err(NoTable::Ambiguous));
        assert!(!table(&[("::/0", REQUIRE), ("::/0", REQUIRE)]).unwrap().is_mixed());
    }

    #[test]
    fn agrees_with_a_scan_for_the_longest_prefix() {
        let mut state = 7u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        for round in 0..500 {
            let mut records: Vec<TrustRecord> = Vec::new();
            // At the lowest and at the highest addresses.
            let base = if round % 2 == 0 { 0 } else { 0xff };
            for _ in 0..1 + next() % 12 {
                let (mut address, prefix) = ([base; 16], 120 + (next() % 9) as u32);
                let mask = 0xffu8.checked_shl(128 - prefix).unwrap_or(0);
                address[15] = next() as u8 & mask;
                let header = 1 + (next() % 3) as u32;
                let known = |it: &TrustRecord| it.address == address && it.prefix == prefix;
                if !records.iter().any(known) {
                    records.push(TrustRecord { address, prefix, header });
                }
            }
            let table = TrustTable::new(&records).unwrap();
            for peer in 0..=255u8 {
                let holds = |record: &&TrustRecord| {
                    let mask = 0xffu8.checked_shl(128 - record.prefix).unwrap_or(0);
                    record.address[15] & mask == peer & mask
                };
                let longest = records.iter().filter(holds).max_by_key(|record| record.prefix);
                let expected = longest.and_then(|record| HeaderRule::of(record.header));
                let mut octets = [base; 16];
                octets[15] = peer;
                assert_eq!(table.rule_of(octets.into()), expected, "{records:?} {peer}");
            }
        }
    }
}
