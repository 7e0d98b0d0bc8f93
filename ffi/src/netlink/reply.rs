//! The route of a reply to a client (`ip route get`), and the rule that selects it.
//!
//! The kernel returns the table that it used, but not the rule that led to it. The rules are therefore compared with
//! the reply here, in the kernel's order (fib_rule_match in net/core/fib_rules.c).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{Parseable, NLM_F_ACK};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::link::{index_of, name_at, name_of, text_of};
#[cfg(any(test, feature = "fuzzing"))]
use super::message::Message;
use super::message::{Decoded, Request};
use super::{all, bits_of, open, reach, rule};
use crate::abi::errors::{Error, Result};
use crate::abi::layout::{reach as delivered, ReplyQuery, ReplyRecord};
use crate::net::subnet::Subnet;

/// What this host sends comes from here.
const LOOPBACK: &str = "lo";

/// Asks the kernel how it routes a reply, and finds the rule that decides it. Needs no capability.
///
/// A reply that the kernel does not route at all has the error as its reason.
pub fn find(query: &ReplyQuery) -> Result<ReplyRecord> {
    let reply = Reply::of(query)?;
    let routing = open()?;
    let ask = |with_source| {
        let answer = reach::ask(&routing, &reply.request(with_source)?, reply.client)?;
        Ok(answer.map_or_else(refused, record_of))
    };
    let mut found = ask(true)?;
    if found.kind == delivered::LOCAL {
        return Ok(found);
    }
    if found.table == 0 {
        // A loopback source that would leave by another device is refused without a table (EINVAL): the
        // route without a source is the same one.
        let anyone = ask(false)?;
        (found.table, found.device) = (anyone.table, anyone.device);
    }
    // The kernel lists rules in the order in which it tries them.
    let deciding = all(&routing, &rule::list(query.client.family), "rules", |body| {
        Ok(Some(Rule::read(body)?).filter(|rule| rule.decides(&reply, found.table)))
    })?;
    if let Some(rule) = deciding.first() {
        (found.ruled, found.priority, found.lookup) = (1, rule.priority, rule.table);
    }
    Ok(found)
}

fn refused(error: io::Error) -> ReplyRecord {
    let error = error.raw_os_error().unwrap_or(0) as u32;
    ReplyRecord { kind: delivered::NONE, error, ..ReplyRecord::default() }
}

/// A reply, as rules see it.
struct Reply {
    client: IpAddr,
    /// Zeroes before the kernel has chosen one.
    source: IpAddr,
    port: u16,
    ip_protocol: u8,
    mark: u32,
    device: String,
    user: u32,
}

impl Reply {
    fn of(query: &ReplyQuery) -> Result<Reply> {
        let missing = || Error::invalid("a reply has a client and a source, of one family");
        let client = query.client.socket_addr().ok_or_else(missing)?.ip();
        let from = query.source.socket_addr().ok_or_else(missing)?;
        if client.is_ipv4() != from.is_ipv4() {
            return Err(missing());
        }
        Ok(Reply {
            client,
            source: from.ip(),
            port: from.port(),
            ip_protocol: query.ip_protocol as u8,
            mark: query.mark,
            device: text_of(&query.device),
            // SAFETY: it takes nothing and always succeeds.
            user: unsafe { libc::geteuid() },
        })
    }

    fn request(&self, with_source: bool) -> Result<Request> {
        let mut route = reach::leading_to(self.client);
        if self.client.is_ipv4() {
            // The answer names the table; IPv6 always does, and refuses the flag.
            route.header.flags = RouteFlags::LookupTable;
        }
        let attributes = &mut route.attributes;
        if with_source && !self.source.is_unspecified() {
            route.header.source_prefix_length = bits_of(self.source);
            attributes.push(RouteAttribute::Source(self.source.into()));
        }
        attributes.push(RouteAttribute::IpProto(self.ip_protocol));
        attributes.push(RouteAttribute::Sport(self.port));
        if self.device != LOOPBACK {
            attributes.push(RouteAttribute::Iif(index_of(&name_of(&self.device))?));
        }
        if self.mark != 0 {
            attributes.push(RouteAttribute::Mark(self.mark));
        }
        Ok(Request::new(libc::RTM_GETROUTE, NLM_F_ACK, &route))
    }
}

fn record_of(route: RouteMessage) -> ReplyRecord {
    let (kind, table) = (reach::kind_of(&route), u32::from(route.header.table));
    let mut found = ReplyRecord { kind, table, ..ReplyRecord::default() };
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.device = name_at(index),
            RouteAttribute::Table(number) => found.table = number,
            _ => {}
        }
    }
    found
}

/// A rule, and which packets it selects: fib_rule_match in net/core/fib_rules.c.
struct Rule {
    message: RuleMessage,
    priority: u32,
    table: u32,
    mark: u32,
    mask: u32,
}

impl Rule {
    fn read(body: &[u8]) -> Decoded<Rule> {
        let message = RuleMessage::parse(body)?;
        let table = u32::from(message.header.table);
        let mut rule = Rule { message, priority: 0, table, mark: 0, mask: 0 };
        for attribute in &rule.message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(mask) => rule.mask = *mask,
                _ => {}
            }
        }
        Ok(rule)
    }

    /// Whether it is what sends the reply to a table, 0 where the kernel refuses to route it.
    fn decides(&self, reply: &Reply, table: u32) -> bool {
        const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
        let leads_there = match self.message.header.action {
            RuleAction::ToTable if table == 0 => self.table != LOCAL,
            RuleAction::ToTable => self.table == table,
            RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => table == 0,
            // `goto`, `nop`, and what is not known here.
            _ => false,
        };
        leads_there && self.matches(reply)
    }

    fn matches(&self, reply: &Reply) -> bool {
        let header = &self.message.header;
        let matches = header.tos == 0
            && (self.mark ^ reply.mark) & self.mask == 0
            && self.message.attributes.iter().all(|attribute| match attribute {
                RuleAttribute::Source(from) => covers(*from, header.src_len, reply.source),
                RuleAttribute::Destination(to) => covers(*to, header.dst_len, reply.client),
                RuleAttribute::Iifname(device) => *device == reply.device,
                RuleAttribute::IpProtocol(protocol) => u8::from(*protocol) == reply.ip_protocol,
                RuleAttribute::SourcePortRange(ports) => {
                    (ports.start..=ports.end).contains(&reply.port)
                }
                RuleAttribute::UidRange(users) => (users.start..=users.end).contains(&reply.user),
                // What a reply here does not have, as the TOS above: a VRF, an outgoing device, a
                // tunnel, the client's port.
                RuleAttribute::L3MDev(vrf) => !vrf,
                RuleAttribute::Oifname(_)
                | RuleAttribute::TunId(_)
                | RuleAttribute::DestinationPortRange(_) => false,
                _ => true,
            });
        matches != header.flags.contains(RuleFlags::Invert)
    }
}

fn covers(prefix: IpAddr, bits: u8, address: IpAddr) -> bool {
    Subnet::new(prefix, bits).is_some_and(|subnet| subnet.holds(address))
}

/// Reads messages as if the kernel had sent them.
#[cfg(any(test, feature = "fuzzing"))]
pub fn read_messages(messages: &[Message]) {
    let reply = Reply {
        client: [203, 0, 113, 77].into(),
        source: [127, 0, 0, 1].into(),
        port: 443,
        ip_protocol: 6,
        mark: 0,
        device: LOOPBACK.into(),
        user: 0,
    };
    for message in messages {
        let _ = Rule::read(&message.body).map(|rule| rule.decides(&reply, 123));
    }
    let _ = reach::answer_in(messages).map(record_of);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::layout::RoutingRecord;
    use crate::netlink::message::HEADER;
    use crate::netlink::tests::{device, ours, shown, with};

    fn reply() -> Reply {
        Reply {
            client: "203.0.113.77".parse().unwrap(),
            source: "127.0.0.1".parse().unwrap(),
            port: 443,
            ip_protocol: 6,
            mark: 0,
            device: "lo".into(),
            user: 1000,
        }
    }

    /// A rule as the kernel lists it, with more attributes.
    fn listed(rule: &RoutingRecord, more: &[(u16, &[u8])]) -> Vec<u8> {
        with(rule::add(rule).bytes()[HEADER..].to_vec(), more)
    }

    fn record() -> RoutingRecord {
        ours(crate::abi::layout::routing::RULE, 4)
    }

    #[test]
    fn a_rule_decides_for_its_packets_and_its_table() {
        let mut from = RoutingRecord { source_length: 8, priority: 9, ..record() };
        from.address[..4].copy_from_slice(&[127, 9, 9, 9]);
        let port = RoutingRecord { ip_protocol: 6, port: 440, last_port: 443, ..record() };
        let whole = u32::MAX.to_ne_bytes();
        for (rule, more, decides) in [
            (record(), &[][..], true),
            (from, &[], true),
            (port, &[], true),
            (RoutingRecord { ip_protocol: 17, ..port }, &[], false),
            (RoutingRecord { last_port: 442, ..port }, &[], false),
            (RoutingRecord { device: device("eth0"), ..record() }, &[], false),
            (RoutingRecord { source_length: 32, ..from }, &[], false),
            (RoutingRecord { mark: 7, ..record() }, &[(16, &whole[..])], false),
            (RoutingRecord { mark: 8, ..record() }, &[(16, &7u32.to_ne_bytes())], true),
            (record(), &[(20, &[0; 8])], false),
            (record(), &[(19, &[1])], false),
            (record(), &[(24, &[1, 0, 1, 0])], false),
        ] {
            let read = Rule::read(&listed(&rule, more)).unwrap();
            assert_eq!(read.decides(&reply(), 123), decides, "{rule:?} {more:?}");
            assert!(!read.decides(&reply(), 254));
        }
        assert_eq!(Rule::read(&listed(&from, &[])).unwrap().priority, 9);
    }

    #[test]
    fn a_rule_may_be_inverted_or_refuse() {
        let read = |offset: usize, value: u8| {
            let mut body = listed(&record(), &[]);
            body[offset] = value;
            Rule::read(&body).unwrap()
        };
        assert!(!read(8, 2).decides(&reply(), 123), "not, of what matches");
        assert!(!read(3, 16).decides(&reply(), 123), "a TOS");
        assert!(read(7, 8).decides(&reply(), 0), "prohibit");
        assert!(!read(7, 8).decides(&reply(), 123));
        assert!(!read(7, 2).decides(&reply(), 123), "goto");
        let inverted = RoutingRecord { mark: 7, ..record() };
        let mut body = listed(&inverted, &[(16, &u32::MAX.to_ne_bytes())]);
        body[8] = 2;
        assert!(Rule::read(&body).unwrap().decides(&reply(), 123), "wg-quick's rule");
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_an_error() {
        let whole = listed(&record(), &[(16, &[0; 4])]);
        for length in (0..12).chain([whole.len() - 1]) {
            assert!(Rule::read(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_prefix_covers_what_has_its_bits() {
        let covers =
            |bits, last| super::covers([192, 0, 2, 129].into(), bits, [192, 0, 2, last].into());
        assert!(covers(24, 1));
        assert!(!covers(25, 1));
        assert!(covers(25, 200));
        assert!(covers(32, 129));
        assert!(!covers(32, 128));
        assert!(covers(0, 9));
        assert!(!covers(33, 129), "more bits than there are");
        assert!(!super::covers([192, 0, 2, 129].into(), 32, [0; 4].into()));
    }

    /// The bytes are those of iproute2 6.1, with an acknowledgement.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernel_is_asked_for_a_reply() {
        // ip route get 203.0.113.77 from 127.0.0.1 ipproto tcp sport 443 mark 7
        let marked = Reply { mark: 7, ..reply() };
        assert_eq!(
            shown(marked.request(true).unwrap().bytes()),
            "44000000 1a000500 00000000 00000000 02202000 00000000 00100000 08000100 cb00714d \
             08000200 7f000001 05001b00 06000000 06001c00 01bb0000 08001000 07000000"
        );
        // The same without `from` and `mark`; then for 2001:db8::77 from 2001:db8::1.
        assert_eq!(
            shown(reply().request(false).unwrap().bytes()),
            "34000000 1a000500 00000000 00000000 02200000 00000000 00100000 08000100 cb00714d \
             05001b00 06000000 06001c00 01bb0000"
        );
        let (client, source) = ("2001:db8::77".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert_eq!(
            shown(Reply { client, source, ..reply() }.request(true).unwrap().bytes()),
            "54000000 1a000500 00000000 00000000 0a808000 00000000 00000000 \
             14000100 20010db8 00000000 00000000 00000077 14000200 20010db8 00000000 00000000 \
             00000001 05001b00 06000000 06001c00 01bb0000"
        );
    }

    #[test]
    fn the_kernel_is_asked_without_a_capability() {
        let query = ReplyQuery {
            source: "127.0.0.1:443".parse::<std::net::SocketAddr>().unwrap().into(),
            client: "127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into(),
            ip_protocol: 6,
            mark: 0,
            device: device("lo"),
        };
        let found = find(&query).unwrap();
        // Without rules of others the kernel keeps its own tables as one, `main`.
        assert_eq!(found.kind, delivered::LOCAL);
        assert!([libc::RT_TABLE_LOCAL, libc::RT_TABLE_MAIN].map(u32::from).contains(&found.table));
        let other = "[::1]:443".parse::<std::net::SocketAddr>().unwrap().into();
        assert!(find(&ReplyQuery { source: other, ..query }).is_err());
    }
}
