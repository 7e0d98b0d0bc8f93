//! Routing rules (ip-rule(8)) as messages: `struct fib_rule_hdr` and FRA_* of linux/fib_rules.h.

use super::message::{attributes, u16_at, u32_at, Request};
use super::{address_length, family_number, name_of};
use crate::abi::layout::{routing, RoutingRecord};

const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
/// Linux 6.14 and newer say it of every rule with a port.
const FRA_SPORT_MASK: u16 = 28;

/// Flags of a rule whose interface is not there now: it may come back.
const FIB_RULE_DETACHED: u32 = 0x08 | 0x10;
/// Look in a table.
const FR_ACT_TO_TBL: u8 = 1;
/// Bytes of `struct fib_rule_hdr`.
const FIXED: usize = 12;
/// A rule that suppresses nothing says so in this way.
const NO_SUPPRESSION: u32 = u32::MAX;
const WHOLE_MARK: u32 = u32::MAX;

/// The request that adds a rule. Its priority is the kernel's choice: before every other but the one
/// for local addresses.
pub fn add(rule: &RoutingRecord) -> Request {
    const NEW: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    request(rule, libc::RTM_NEWRULE, NEW)
}

/// The request that removes a rule; with a priority, exactly the one there.
pub fn remove(rule: &RoutingRecord) -> Request {
    request(rule, libc::RTM_DELRULE, libc::NLM_F_ACK)
}

/// The request for every rule of a family.
pub fn list(family: u8) -> Request {
    let mut fixed = [0; FIXED];
    fixed[0] = family_number(family);
    Request::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &fixed)
}

/// The attributes stand in the order in which iproute2 has them.
fn request(rule: &RoutingRecord, kind: u16, flags: i32) -> Request {
    let short_table = u8::try_from(rule.table).ok();
    let fixed = [
        family_number(rule.family),
        0,
        rule.source_length,
        0,
        short_table.unwrap_or(libc::RT_TABLE_UNSPEC),
        0,
        0,
        FR_ACT_TO_TBL,
        0,
        0,
        0,
        0,
    ];
    let mut request = Request::new(kind, flags, &fixed);
    if rule.source_length > 0 {
        request.attribute(FRA_SRC, &rule.address[..address_length(rule.family)]);
    }
    if rule.priority != 0 {
        request.attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes());
    }
    if rule.mark != 0 {
        // The mask is all ones unless one is named.
        request.attribute(FRA_FWMARK, &rule.mark.to_ne_bytes());
    }
    request.attribute(FRA_IIFNAME, &super::with_zero(&rule.device));
    if rule.ip_protocol != 0 {
        request.attribute(FRA_IP_PROTO, &[rule.ip_protocol]);
    }
    if rule.port != 0 {
        let range = [rule.port.to_ne_bytes(), rule.last_port.to_ne_bytes()];
        request.attribute(FRA_SPORT_RANGE, range.as_flattened());
    }
    if short_table.is_none() {
        request.attribute(FRA_TABLE, &rule.table.to_ne_bytes());
    }
    request.attribute(FRA_PROTOCOL, &[rule.origin]);
    request
}

/// A rule of `table` from its message, or `None` for one of another table. What the record has no
/// place for sets `other`.
pub fn read(body: &[u8], table: u32) -> Option<RoutingRecord> {
    let fixed = body.get(..FIXED)?;
    let mut rule = RoutingRecord {
        kind: routing::RULE,
        family: super::family_of(fixed[0])?,
        source_length: fixed[2],
        table: u32::from(fixed[4]),
        // A destination, a TOS, another action, or flags such as `not`.
        other: u8::from(
            fixed[1] != 0
                || fixed[3] != 0
                || fixed[7] != FR_ACT_TO_TBL
                || u32_at(fixed, 8)? & !FIB_RULE_DETACHED != 0,
        ),
        ..RoutingRecord::default()
    };
    let mut mask = WHOLE_MARK;
    for (kind, value) in attributes(&body[FIXED..]) {
        match kind {
            FRA_SRC => super::set_address(&mut rule, value),
            FRA_IIFNAME => rule.device = name_of(value),
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_FWMARK => rule.mark = u32_at(value, 0)?,
            FRA_FWMASK => mask = u32_at(value, 0)?,
            FRA_TABLE => rule.table = u32_at(value, 0)?,
            FRA_PROTOCOL => rule.origin = *value.first()?,
            FRA_IP_PROTO => rule.ip_protocol = *value.first()?,
            FRA_SPORT_RANGE => {
                rule.port = u16_at(value, 0)?;
                rule.last_port = u16_at(value, 2)?;
            }
            FRA_SUPPRESS_PREFIXLEN if u32_at(value, 0) == Some(NO_SUPPRESSION) => {}
            // A range has no mask, one port has a whole one.
            FRA_SPORT_MASK if matches!(u16_at(value, 0), Some(0 | u16::MAX)) => {}
            FRA_PAD => {}
            _ => rule.other = 1,
        }
    }
    if rule.mark != 0 && mask != WHOLE_MARK {
        rule.other = 1;
    }
    (rule.table == table).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::{device, ours, shown};

    fn record(family: u8) -> RoutingRecord {
        ours(routing::RULE, family)
    }

    /// The bytes are those that iproute2 6.1 sends for the command, but for the sequence number.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_rule_is_what_iproute2_sends() {
        // ip rule add from 127.0.0.1/8 iif lo lookup 123 protocol 123
        let mut loopback = RoutingRecord { source_length: 8, ..record(4) };
        loopback.address[..4].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(
            shown(add(&loopback).bytes()),
            "34000000 20000506 00000000 00000000 02000800 7b000001 00000000 \
             08000200 7f000001 07000300 6c6f0000 05001500 7b000000"
        );
        // ip rule add from 0.0.0.0 iif lo ipproto udp sport 53 lookup 123 protocol 123
        let wildcard = RoutingRecord {
            source_length: 32,
            ip_protocol: 17,
            port: 53,
            last_port: 53,
            ..record(4)
        };
        assert_eq!(
            shown(add(&wildcard).bytes()),
            "44000000 20000506 00000000 00000000 02002000 7b000001 00000000 \
             08000200 00000000 07000300 6c6f0000 05001600 11000000 08001700 35003500 \
             05001500 7b000000"
        );
        // ip rule add fwmark 7 iif lo lookup 70000 protocol 123
        let marked = RoutingRecord { mark: 7, table: 70_000, ..record(4) };
        assert_eq!(
            shown(add(&marked).bytes()),
            "3c000000 20000506 00000000 00000000 02000000 00000001 00000000 \
             08000a00 07000000 07000300 6c6f0000 08000f00 70110100 05001500 7b000000"
        );
        // ip -6 rule add from 2001:db8::5 iif lo ipproto tcp sport 443 lookup 123 protocol 123
        let mut v6 = RoutingRecord {
            source_length: 128,
            ip_protocol: 6,
            port: 443,
            last_port: 443,
            ..record(6)
        };
        v6.address = "2001:db8::5".parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(
            shown(add(&v6).bytes()),
            "50000000 20000506 00000000 00000000 0a008000 7b000001 00000000 \
             14000200 20010db8 00000000 00000000 00000005 07000300 6c6f0000 05001600 06000000 \
             08001700 bb01bb01 05001500 7b000000"
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_removal_names_the_position() {
        let request = shown(remove(&RoutingRecord { priority: 32_765, ..record(4) }).bytes());
        assert!(request.starts_with("34000000 21000500 "), "{request}");
        assert!(request.contains(" 08000600 fd7f0000 "), "{request}");
    }

    /// As the kernel lists it: the fixed part and the attributes of the request, and more of its own.
    fn listed(rule: &RoutingRecord, more: &[(u16, &[u8])]) -> Vec<u8> {
        let mut request = add(rule);
        request.attribute(FRA_SUPPRESS_PREFIXLEN, &NO_SUPPRESSION.to_ne_bytes());
        for (kind, value) in more {
            request.attribute(*kind, value);
        }
        request.bytes()[16..].to_vec()
    }

    #[test]
    fn a_rule_reads_as_it_was_written() {
        let mut full = RoutingRecord {
            source_length: 32,
            ip_protocol: 6,
            port: 443,
            last_port: 443,
            mark: 9,
            priority: 77,
            table: 70_000,
            device: device("eth0"),
            ..record(4)
        };
        full.address[..4].copy_from_slice(&[192, 0, 2, 1]);
        let mask = (FRA_FWMASK, &WHOLE_MARK.to_ne_bytes()[..]);
        let ports = (FRA_SPORT_MASK, &[0xff, 0xff][..]);
        let range = RoutingRecord { port: 30_000, last_port: 30_999, ..full };
        for rule in [full, range, record(4), record(6)] {
            assert_eq!(read(&listed(&rule, &[mask, ports]), rule.table), Some(rule));
            assert_eq!(read(&listed(&rule, &[]), rule.table + 1), None);
        }
    }

    #[test]
    fn what_a_record_cannot_say_makes_another_rule() {
        const FRA_DST: u16 = 1;
        const FRA_DPORT_RANGE: u16 = 24;
        let marked = RoutingRecord { mark: 9, ..record(4) };
        for more in [
            (FRA_DST, &[192, 0, 2, 1][..]),
            (FRA_DPORT_RANGE, &[1, 0, 1, 0]),
            (FRA_SPORT_MASK, &[0xf0, 0xff]),
            (FRA_FWMASK, &[3, 0, 0, 0]),
            (FRA_SUPPRESS_PREFIXLEN, &[0, 0, 0, 0]),
            (4_000, &[]),
        ] {
            let other = read(&listed(&marked, &[more]), 123).map(|rule| rule.other);
            assert_eq!(other, Some(1), "{more:?}");
        }
        // A destination's length, a TOS, an action (prohibit), a flag (not).
        for (offset, value) in [(1, 32), (3, 0x10), (7, 8), (8, 2)] {
            let mut body = listed(&marked, &[]);
            body[offset] = value;
            assert_eq!(read(&body, 123).map(|rule| rule.other), Some(1), "{offset}");
        }
        let mut detached = listed(&marked, &[]);
        detached[8..12].copy_from_slice(&FIB_RULE_DETACHED.to_ne_bytes());
        assert_eq!(read(&detached, 123), Some(marked));
    }

    #[test]
    fn a_short_message_is_no_rule() {
        for length in 0..12 {
            assert_eq!(read(&listed(&record(4), &[])[..length], 123), None);
        }
    }
}
