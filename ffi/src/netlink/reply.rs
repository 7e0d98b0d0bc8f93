//! Which way a reply to a client takes (`ip route get`), and the rule that sends it there.
//!
//! The kernel says by which table it routes, and not by which rule it came to that table. So the rules are
//! compared with the reply here, in the kernel's order (fib_rule_match in net/core/fib_rules.c).

use std::net::IpAddr;

use super::message::{attributes, u16_at, u32_at, Request};
use super::{
    all, family_number, index_of, is_unreachable, name_at, name_of, octets, open, route, rule,
};
use crate::abi::errors::{Error, Result};
use crate::abi::layout::{reach, ReplyQuery, ReplyRecord};

/// Bytes of `struct rtmsg`, and of `struct fib_rule_hdr`.
const ROUTE_FIXED: usize = 12;
const RULE_FIXED: usize = 12;
/// The answer names the table (linux/rtnetlink.h); IPv6 always does, and refuses the flag.
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
/// What this host sends comes from here.
const LOOPBACK: &[u8] = b"lo\0";

/// Asks the kernel how it routes a reply, and finds the rule that decides it. Needs no capability.
///
/// A reply that the kernel does not route at all has the error as its reason.
pub fn find(query: &ReplyQuery) -> Result<ReplyRecord> {
    let reply = Reply::of(query)?;
    let routing = open()?;
    let ask = |with_source| match routing.ask(&mut reply.request(with_source)?) {
        Ok(messages) => route::found_in(&messages, answer_in),
        Err(refused) if is_unreachable(&refused.error) || is_filtered(&refused.error) => {
            Ok(ReplyRecord {
                kind: reach::NONE,
                error: refused.error.raw_os_error().unwrap_or(0) as u32,
                ..ReplyRecord::default()
            })
        }
        Err(refused) => Err(Error::system(
            format!("Cannot find the route of replies to {}", reply.client),
            &refused.error,
        )),
    };
    let mut found = ask(true)?;
    if found.kind == reach::LOCAL {
        return Ok(found);
    }
    if found.table == 0 {
        // A loopback source that would leave by another device is refused without a table (EINVAL): the
        // route without a source is the same one.
        let anyone = ask(false)?;
        (found.table, found.device) = (anyone.table, anyone.device);
    }
    for message in all(&routing, rule::list(query.client.family), "rules")? {
        let Some(rule) = Selector::read(&message.body) else { continue };
        if rule.decides(&reply, found.table) {
            (found.ruled, found.priority, found.lookup) = (1, rule.priority, rule.table);
            break;
        }
    }
    Ok(found)
}

/// The kernel's answer when `rp_filter` would drop it.
fn is_filtered(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EXDEV)
}

/// A reply, as rules see it.
struct Reply {
    client: IpAddr,
    /// None before the kernel has chosen one.
    source: Option<IpAddr>,
    port: u16,
    ip_protocol: u8,
    mark: u32,
    device: [u8; 16],
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
            source: (!from.ip().is_unspecified()).then(|| from.ip()),
            port: from.port(),
            ip_protocol: query.ip_protocol as u8,
            mark: query.mark,
            device: name_of(&query.device),
            // SAFETY: it takes nothing and always succeeds.
            user: unsafe { libc::geteuid() },
        })
    }

    /// Whether another host sends it.
    fn comes_in(&self) -> bool {
        !self.device.starts_with(LOOPBACK)
    }

    fn request(&self, with_source: bool) -> Result<Request> {
        let (family, client) = octets(self.client);
        let source = self.source.filter(|_| with_source).map(|source| octets(source).1);
        let mut fixed = [0; ROUTE_FIXED];
        fixed[0] = family_number(family);
        fixed[1] = 8 * client.len() as u8;
        fixed[2] = source.as_ref().map_or(0, |source| 8 * source.len() as u8);
        if family == 4 {
            fixed[8..12].copy_from_slice(&RTM_F_LOOKUP_TABLE.to_ne_bytes());
        }
        let mut request = Request::new(libc::RTM_GETROUTE, libc::NLM_F_ACK, &fixed);
        request.attribute(libc::RTA_DST, &client);
        if let Some(source) = source {
            request.attribute(libc::RTA_SRC, &source);
        }
        if self.comes_in() {
            request.attribute(libc::RTA_IIF, &index_of(&self.device)?.to_ne_bytes());
        }
        if self.mark != 0 {
            request.attribute(libc::RTA_MARK, &self.mark.to_ne_bytes());
        }
        request.attribute(RTA_IP_PROTO, &[self.ip_protocol]);
        request.attribute(RTA_SPORT, &self.port.to_be_bytes());
        Ok(request)
    }
}

fn answer_in(body: &[u8]) -> Option<ReplyRecord> {
    let fixed = body.get(..ROUTE_FIXED)?;
    let kind = route::reach_of(fixed[7]);
    let mut found = ReplyRecord { kind, table: u32::from(fixed[4]), ..ReplyRecord::default() };
    for (kind, value) in attributes(&body[ROUTE_FIXED..]) {
        match kind {
            libc::RTA_OIF => found.device = name_at(u32_at(value, 0)?),
            libc::RTA_TABLE => found.table = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(found)
}

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Lookup,
    /// `blackhole`, `unreachable`, `prohibit`.
    Refuse,
    /// `goto`, `nop`, and what is not known here.
    Other,
}

/// A rule, as far as it selects packets: fib_rule_match in net/core/fib_rules.c.
struct Selector {
    priority: u32,
    table: u32,
    action: Action,
    /// `not`.
    inverted: bool,
    source: Option<(Vec<u8>, u8)>,
    destination: Option<(Vec<u8>, u8)>,
    device: Option<[u8; 16]>,
    mark: u32,
    mask: u32,
    ip_protocol: u8,
    ports: Option<(u16, u16)>,
    users: Option<(u32, u32)>,
    /// It asks for what a reply here does not have: a TOS, an outgoing device, a tunnel, a VRF, the
    /// client's port.
    never: bool,
}

impl Selector {
    fn read(body: &[u8]) -> Option<Selector> {
        const FRA_DST: u16 = 1;
        const FRA_SRC: u16 = 2;
        const FRA_IIFNAME: u16 = 3;
        const FRA_PRIORITY: u16 = 6;
        const FRA_FWMARK: u16 = 10;
        const FRA_TUN_ID: u16 = 12;
        const FRA_TABLE: u16 = 15;
        const FRA_FWMASK: u16 = 16;
        const FRA_OIFNAME: u16 = 17;
        const FRA_L3MDEV: u16 = 19;
        const FRA_UID_RANGE: u16 = 20;
        const FRA_IP_PROTO: u16 = 22;
        const FRA_SPORT_RANGE: u16 = 23;
        const FRA_DPORT_RANGE: u16 = 24;
        const FIB_RULE_INVERT: u32 = 2;
        let fixed = body.get(..RULE_FIXED)?;
        let mut rule = Selector {
            priority: 0,
            table: u32::from(fixed[4]),
            action: match fixed[7] {
                1 => Action::Lookup,
                6..=8 => Action::Refuse,
                _ => Action::Other,
            },
            inverted: u32_at(fixed, 8)? & FIB_RULE_INVERT != 0,
            source: None,
            destination: None,
            device: None,
            mark: 0,
            mask: 0,
            ip_protocol: 0,
            ports: None,
            users: None,
            never: fixed[3] != 0,
        };
        for (kind, value) in attributes(&body[RULE_FIXED..]) {
            match kind {
                FRA_DST => rule.destination = Some((value.to_vec(), fixed[1])),
                FRA_SRC => rule.source = Some((value.to_vec(), fixed[2])),
                FRA_IIFNAME => rule.device = Some(name_of(value)),
                FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
                FRA_FWMARK => rule.mark = u32_at(value, 0)?,
                FRA_FWMASK => rule.mask = u32_at(value, 0)?,
                FRA_TABLE => rule.table = u32_at(value, 0)?,
                FRA_UID_RANGE => rule.users = Some((u32_at(value, 0)?, u32_at(value, 4)?)),
                FRA_IP_PROTO => rule.ip_protocol = *value.first()?,
                FRA_SPORT_RANGE => rule.ports = Some((u16_at(value, 0)?, u16_at(value, 2)?)),
                FRA_TUN_ID | FRA_OIFNAME | FRA_DPORT_RANGE => rule.never = true,
                FRA_L3MDEV => rule.never |= value.first().is_some_and(|&on| on != 0),
                _ => {}
            }
        }
        Some(rule)
    }

    /// Whether it is what sends the reply to a table, 0 where the kernel refuses to route it.
    fn decides(&self, reply: &Reply, table: u32) -> bool {
        const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
        let leads_there = match self.action {
            Action::Lookup if table == 0 => self.table != LOCAL,
            Action::Lookup => self.table == table,
            Action::Refuse => table == 0,
            Action::Other => false,
        };
        leads_there && self.matches(reply)
    }

    fn matches(&self, reply: &Reply) -> bool {
        let within = |(first, last): (u16, u16)| (first..=last).contains(&reply.port);
        let matches = !self.never
            && self.device.is_none_or(|device| device == reply.device)
            && self.source.as_ref().is_none_or(|prefix| covers(prefix, reply.source))
            && self.destination.as_ref().is_none_or(|prefix| covers(prefix, Some(reply.client)))
            && (self.mark ^ reply.mark) & self.mask == 0
            && matches!(self.ip_protocol, protocol if protocol == 0 || protocol == reply.ip_protocol)
            && self.ports.is_none_or(within)
            && self.users.is_none_or(|(first, last)| (first..=last).contains(&reply.user));
        matches != self.inverted
    }
}

/// Whether an address is in a prefix; none counts as all zeroes, as to the kernel.
fn covers((prefix, length): &(Vec<u8>, u8), address: Option<IpAddr>) -> bool {
    let octets = address.map_or_else(|| vec![0; prefix.len()], |address| octets(address).1);
    let bits = |index: usize| usize::from(*length).saturating_sub(8 * index).min(8);
    octets.len() == prefix.len()
        && prefix.iter().zip(&octets).enumerate().all(|(index, (one, other))| {
            let mask = 0xff00_u16 >> bits(index);
            u16::from(one ^ other) & mask == 0
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::layout::RoutingRecord;
    use crate::netlink::tests::{device, ours};

    fn reply() -> Reply {
        Reply {
            client: "203.0.113.77".parse().unwrap(),
            source: Some("127.0.0.1".parse().unwrap()),
            port: 443,
            ip_protocol: 6,
            mark: 0,
            device: device("lo"),
            user: 1000,
        }
    }

    /// A rule as the kernel lists it, with more attributes.
    fn listed(rule: &RoutingRecord, more: &[(u16, &[u8])]) -> Vec<u8> {
        let mut request = rule::add(rule);
        for (kind, value) in more {
            request.attribute(*kind, value);
        }
        request.bytes()[16..].to_vec()
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
            let read = Selector::read(&listed(&rule, more)).unwrap();
            assert_eq!(read.decides(&reply(), 123), decides, "{rule:?} {more:?}");
            assert!(!read.decides(&reply(), 254));
        }
        assert_eq!(Selector::read(&listed(&from, &[])).unwrap().priority, 9);
    }

    #[test]
    fn a_rule_may_be_inverted_or_refuse() {
        let read = |offset: usize, value: u8| {
            let mut body = listed(&record(), &[]);
            body[offset] = value;
            Selector::read(&body).unwrap()
        };
        assert!(!read(8, 2).decides(&reply(), 123), "not, of what matches");
        assert!(!read(3, 16).decides(&reply(), 123), "a TOS");
        assert!(read(7, 8).decides(&reply(), 0), "prohibit");
        assert!(!read(7, 8).decides(&reply(), 123));
        assert!(!read(7, 2).decides(&reply(), 123), "goto");
        let inverted = RoutingRecord { mark: 7, ..record() };
        let mut body = listed(&inverted, &[(16, &u32::MAX.to_ne_bytes())]);
        body[8] = 2;
        assert!(Selector::read(&body).unwrap().decides(&reply(), 123), "wg-quick's rule");
    }

    #[test]
    fn a_prefix_covers_what_has_its_bits() {
        let prefix = |length| (vec![192, 0, 2, 129], length);
        let address = |last| Some(IpAddr::from([192, 0, 2, last]));
        assert!(covers(&prefix(24), address(1)));
        assert!(!covers(&prefix(25), address(1)));
        assert!(covers(&prefix(25), address(200)));
        assert!(covers(&prefix(32), address(129)));
        assert!(!covers(&prefix(32), address(128)));
        assert!(covers(&prefix(0), address(9)));
        assert!(!covers(&prefix(32), None));
        assert!(covers(&(vec![0; 4], 32), None));
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
        assert_eq!(found.kind, reach::LOCAL);
        assert!([libc::RT_TABLE_LOCAL, libc::RT_TABLE_MAIN].map(u32::from).contains(&found.table));
        let other = "[::1]:443".parse::<std::net::SocketAddr>().unwrap().into();
        assert!(find(&ReplyQuery { source: other, ..query }).is_err());
    }
}
