//! Routing rules (ip-rule(8)) as messages: `struct fib_rule_hdr` and FRA_* of linux/fib_rules.h.

use super::{address_length, family_number, name_of, netlink};
use crate::layout::{routing, RoutingRecord};
use netlink::{attributes, u16_at, u32_at, Request};

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
        let [low, high] = rule.port.to_ne_bytes();
        request.attribute(FRA_SPORT_RANGE, &[low, high, low, high]);
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
            FRA_SPORT_RANGE if u16_at(value, 0) == u16_at(value, 2) => {
                rule.port = u16_at(value, 0)?;
            }
            FRA_SUPPRESS_PREFIXLEN if u32_at(value, 0) == Some(NO_SUPPRESSION) => {}
            FRA_SPORT_MASK if u16_at(value, 0) == Some(u16::MAX) => {}
            FRA_PAD => {}
            _ => rule.other = 1,
        }
    }
    if rule.mark != 0 && mask != WHOLE_MARK {
        rule.other = 1;
    }
    (rule.table == table).then_some(rule)
}
