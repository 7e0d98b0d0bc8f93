//! Routing rules (ip-rule(8)) as messages.

use netlink_packet_core::{
    DefaultNla, Nla, Parseable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL,
};
use netlink_packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage, RulePortRange,
};

use super::link::{name_of, text_of};
use super::message::{Decoded, Request};
use super::{address_of, family_number, family_of, is_elsewhere, set_address};
use crate::abi::layout::{routing, RoutingRecord};

/// Attributes that the crate does not know (linux/fib_rules.h).
const FRA_PAD: u16 = 18;
/// Linux 6.14 and newer say it of every rule with a port.
const FRA_SPORT_MASK: u16 = 28;

/// The value of a rule that suppresses nothing.
const NO_SUPPRESSION: u32 = u32::MAX;
const FULL_MASK: u32 = u32::MAX;

/// The request that adds a rule. Its priority is the kernel's choice: before every other but the one
/// for local addresses.
pub fn add(rule: &RoutingRecord) -> Request {
    Request::new(libc::RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &message(rule))
}

/// The request that removes a rule; with a priority, exactly the one there.
pub fn remove(rule: &RoutingRecord) -> Request {
    Request::new(libc::RTM_DELRULE, NLM_F_ACK, &message(rule))
}

/// The request for every rule of a family.
pub fn list(family: u8) -> Request {
    let mut rules = RuleMessage::default();
    rules.header.family = family_number(family);
    Request::new(libc::RTM_GETRULE, NLM_F_DUMP, &rules)
}

/// The attributes are in the order in which iproute2 has them.
fn message(rule: &RoutingRecord) -> RuleMessage {
    let short_table = u8::try_from(rule.table).ok();
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: family_number(rule.family),
        src_len: rule.source_length,
        table: short_table.unwrap_or(libc::RT_TABLE_UNSPEC),
        action: RuleAction::ToTable,
        ..RuleHeader::default()
    };
    let attributes = &mut message.attributes;
    if rule.source_length > 0 {
        attributes.push(RuleAttribute::Source(address_of(rule)));
    }
    if rule.priority != 0 {
        attributes.push(RuleAttribute::Priority(rule.priority));
    }
    if rule.mark != 0 {
        // The mask is all ones unless one is named.
        attributes.push(RuleAttribute::FwMark(rule.mark));
    }
    attributes.push(RuleAttribute::Iifname(text_of(&rule.device)));
    if rule.ip_protocol != 0 {
        attributes.push(RuleAttribute::IpProtocol(rule.ip_protocol.into()));
    }
    if rule.port != 0 {
        let range = RulePortRange { start: rule.port, end: rule.last_port };
        attributes.push(RuleAttribute::SourcePortRange(range));
    }
    if short_table.is_none() {
        attributes.push(RuleAttribute::Table(rule.table));
    }
    attributes.push(RuleAttribute::Protocol(rule.origin.into()));
    message
}

/// A rule of `table` from its message, or `None` for one of another table. What the record has no
/// place for sets `other`.
///
/// # Errors
///
/// A rule that may be of `table` and that the crate cannot read.
pub fn read(body: &[u8], table: u32) -> Decoded<Option<RoutingRecord>> {
    /// Flags of a rule whose interface is not there now: it may come back.
    const DETACHED: RuleFlags = RuleFlags::IifDetached.union(RuleFlags::OifDetached);
    if is_elsewhere(RuleHeader::parse(body)?.table, table) {
        return Ok(None);
    }
    let RuleMessage { header, attributes, .. } = RuleMessage::parse(body)?;
    let Some(family) = family_of(header.family) else { return Ok(None) };
    let mut rule = RoutingRecord {
        kind: routing::RULE,
        family,
        source_length: header.src_len,
        table: u32::from(header.table),
        // A destination, a TOS, another action, or flags such as `not`.
        other: u8::from(
            header.dst_len != 0
                || header.tos != 0
                || header.action != RuleAction::ToTable
                || !DETACHED.contains(header.flags),
        ),
        ..RoutingRecord::default()
    };
    let mut mask = FULL_MASK;
    for attribute in attributes {
        match attribute {
            RuleAttribute::Source(address) => set_address(&mut rule, address),
            RuleAttribute::Iifname(name) => rule.device = name_of(&name),
            RuleAttribute::Priority(priority) => rule.priority = priority,
            RuleAttribute::FwMark(mark) => rule.mark = mark,
            RuleAttribute::FwMask(of_mark) => mask = of_mark,
            RuleAttribute::Table(number) => rule.table = number,
            RuleAttribute::Protocol(origin) => rule.origin = origin.into(),
            RuleAttribute::IpProtocol(protocol) => rule.ip_protocol = protocol.into(),
            RuleAttribute::SourcePortRange(ports) => {
                (rule.port, rule.last_port) = (ports.start, ports.end);
            }
            RuleAttribute::SuppressPrefixLen(NO_SUPPRESSION) => {}
            RuleAttribute::Other(unknown) if says_nothing(&unknown) => {}
            _ => rule.other = 1,
        }
    }
    if rule.mark != 0 && mask != FULL_MASK {
        rule.other = 1;
    }
    Ok((rule.table == table).then_some(rule))
}

/// Whether an attribute that the crate does not know is padding, or the mask of source ports where it
/// leaves nothing out: a range has no mask, one port has a full one.
fn says_nothing(attribute: &DefaultNla) -> bool {
    let mut mask = [0; 2];
    match attribute.kind() {
        FRA_PAD => true,
        FRA_SPORT_MASK if attribute.value_len() == mask.len() => {
            attribute.emit_value(&mut mask);
            matches!(u16::from_ne_bytes(mask), 0 | u16::MAX)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::HEADER;
    use crate::netlink::tests::{device, ours, shown, with};

    const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
    const FRA_FWMASK: u16 = 16;
    const FIB_RULE_DETACHED: u32 = 0x08 | 0x10;

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
        let body = add(rule).bytes()[HEADER..].to_vec();
        with(with(body, &[(FRA_SUPPRESS_PREFIXLEN, &NO_SUPPRESSION.to_ne_bytes())]), more)
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
        let mask = (FRA_FWMASK, &FULL_MASK.to_ne_bytes()[..]);
        let ports = (FRA_SPORT_MASK, &[0xff, 0xff][..]);
        let range = RoutingRecord { port: 30_000, last_port: 30_999, ..full };
        for rule in [full, range, record(4), record(6)] {
            let body = listed(&rule, &[mask, ports]);
            assert_eq!(read(&body, rule.table).unwrap(), Some(rule));
            assert_eq!(read(&listed(&rule, &[]), rule.table + 1).unwrap(), None);
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
            let other = read(&listed(&marked, &[more]), 123).unwrap().map(|rule| rule.other);
            assert_eq!(other, Some(1), "{more:?}");
        }
        // A destination's length, a TOS, an action (prohibit), a flag (not).
        for (offset, value) in [(1, 32), (3, 0x10), (7, 8), (8, 2)] {
            let mut body = listed(&marked, &[]);
            body[offset] = value;
            let rule = read(&body, 123).unwrap();
            assert_eq!(rule.map(|rule| rule.other), Some(1), "{offset}");
        }
        let mut detached = listed(&marked, &[]);
        detached[8..12].copy_from_slice(&FIB_RULE_DETACHED.to_ne_bytes());
        assert_eq!(read(&detached, 123).unwrap(), Some(marked));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_but_in_another_table() {
        let whole = listed(&record(4), &[]);
        for length in (0..12).chain([whole.len() - 1]) {
            assert!(read(&whole[..length], 123).is_err(), "{length}");
        }
        let cut = &whole[..whole.len() - 1];
        assert_eq!(read(cut, 124).unwrap(), None);
        // Its number is in an attribute.
        assert!(read(cut, 70_000).is_ok());
        let long = listed(&RoutingRecord { table: 70_000, ..record(4) }, &[]);
        assert!(read(&long[..long.len() - 1], 70_000).is_err());
    }
}
