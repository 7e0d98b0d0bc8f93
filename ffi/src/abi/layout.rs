//! The records that cross the boundary to TypeScript. `description` describes them for TypeScript.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::observe::events::EventKind;
use crate::observe::refusal::Refusal;

/// The largest header: 16 bytes and a length of 65,535 (PROXY v2, section 2.2).
pub const MAX_HEADER: usize = 16 + 65_535;

/// Bytes of one worker's scratch region: the verdict, then room for what one read brings.
pub const SCRATCH_SIZE: usize = HEADER_OFFSET + MAX_HEADER + 1;

/// Where the header's first byte is in the scratch region.
pub const HEADER_OFFSET: usize = 64;

/// What TypeScript answers about a header. Lies at offset 0 of the scratch region.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    /// A `Refusal` code when the action is `Drop`.
    pub refusal: u8,
    /// 4 or 6: the family of both addresses.
    pub family: u8,
    /// 1, 2, or 3 for the Simple Proxy Protocol; 0: there was no header.
    pub version: u8,
    pub reserved: u8,
    /// Host byte order.
    pub client_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// Network byte order; IPv4 in the first four bytes.
    pub client_address: [u8; 16],
    /// Network byte order; IPv4 in the first four bytes.
    pub destination_address: [u8; 16],
}

const _: () = assert!(std::mem::size_of::<Verdict>() <= HEADER_OFFSET);

/// What the decoder's callback returns.
pub mod action {
    /// Close the connection, or drop the datagram; the verdict holds the reason.
    pub const DROP: u32 = 0;
    /// Connect from the client's address.
    pub const CLIENT: u32 = 1;
    /// LOCAL, UNKNOWN, UNSPEC, unix: connect from the proxy's own address.
    pub const OWN: u32 = 2;
}

/// What the decoder is given: the callback's second argument.
pub mod carrier {
    /// PROXY v1 or v2 on a stream.
    pub const STREAM: u32 = 0;
    /// PROXY v1 or v2 at the head of a datagram.
    pub const DATAGRAM: u32 = 1;
    /// Simple Proxy Protocol at the head of a datagram.
    pub const SPP: u32 = 2;
    /// No header: the bytes are the address block of a version 2 header, of the peer and the address that
    /// it spoke to.
    pub const NONE: u32 = 3;
}

/// What a peer must send first.
pub mod header_rule {
    /// A header.
    pub const REQUIRE: u32 = 1;
    /// A header, or its own bytes: it is the client then.
    pub const OPTIONAL: u32 = 2;
    /// Its own bytes: no header is expected, and none taken.
    pub const SKIP: u32 = 3;
}

/// `--udp-header`.
pub mod udp_header {
    pub const DATAGRAM: u32 = 0;
    pub const SESSION: u32 = 1;
    pub const SPP: u32 = 2;
}

/// `--protocol`, as a set of bits.
pub mod protocol {
    pub const TCP: u32 = 1;
    pub const UDP: u32 = 2;
}

/// Log levels; a worker queues the events whose level is at most the configured one.
pub mod level {
    pub const ERROR: u8 = 1;
    pub const WARN: u8 = 2;
    pub const INFO: u8 = 3;
    pub const ACCESS: u8 = 4;
    pub const DEBUG: u8 = 5;
}

/// What a failed call returns; `last_error` has the text.
pub mod status {
    pub const OK: i32 = 0;
    /// The call was wrong: a defect of the caller.
    pub const INVALID: i32 = -1;
    /// A capability is missing.
    pub const PERMISSION: i32 = -2;
    /// The address is taken.
    pub const ADDRESS_IN_USE: i32 = -3;
    /// The address is not of this host.
    pub const ADDRESS_NOT_AVAILABLE: i32 = -4;
    /// Any other refusal of the operating system.
    pub const SYSTEM: i32 = -5;
    /// A panic was caught.
    pub const PANIC: i32 = -6;
    /// An upstream is the program's own listener.
    pub const LOOP: i32 = -7;
}

/// An address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// 4, 6, or 0 for none.
    pub family: u8,
    pub reserved: u8,
    /// Host byte order.
    pub port: u16,
    /// The interface of a link-local IPv6 address, or 0.
    pub scope: u32,
    /// Network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
}

/// One entry of a trust table; IPv4 as `::ffff:a.b.c.d` with 96 added to its prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustRecord {
    pub address: [u8; 16],
    /// 0 to 128.
    pub prefix: u32,
    /// One of `header_rule`.
    pub header: u32,
}

/// Where headers may lead: a subnet as in a `TrustRecord`, with ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationRecord {
    pub address: [u8; 16],
    /// 0 to 128.
    pub prefix: u32,
    /// Host byte order.
    pub first_port: u16,
    /// Host byte order; not below `first_port`.
    pub last_port: u16,
}

/// What a `RoutingRecord` is.
pub mod routing {
    /// Packets like these look in this table.
    pub const RULE: u8 = 1;
    /// `local default dev …`: what looks in this table is delivered here.
    pub const ROUTE: u8 = 2;
}

/// A routing rule, or the route of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingRecord {
    /// One of `routing`.
    pub kind: u8,
    /// 4 or 6.
    pub family: u8,
    /// Who set it: an `rtm_protocol`, as `ip` shows behind `proto`.
    pub origin: u8,
    /// Rules: the packets' protocol (6 TCP, 17 UDP), 0 for any.
    pub ip_protocol: u8,
    /// Rules: the packets' first source port in host byte order, 0 for any.
    pub port: u16,
    /// The last one; a single port is both.
    pub last_port: u16,
    /// Bits of `address`: rules, the packets' source, 0 for any; routes, the source that packets get
    /// which have none, 0 for the kernel's choice.
    pub source_length: u8,
    /// 1 for what was listed and is more than this record can say.
    pub other: u8,
    pub reserved: [u8; 2],
    pub table: u32,
    /// Rules: the position; routes: the metric. 0 lets the kernel choose.
    pub priority: u32,
    /// Rules: the packets' mark, 0 for any.
    pub mark: u32,
    /// Network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Rules: where the packets come in, `lo` for this host's own; routes: where they go. Ends in a
    /// zero.
    pub device: [u8; 16],
}

/// How the host reaches an address.
pub mod reach {
    /// It does not.
    pub const NONE: u8 = 0;
    /// The address is its own.
    pub const LOCAL: u8 = 1;
    /// Through a device.
    pub const REMOTE: u8 = 2;
}

/// The answer to how the host reaches an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReachRecord {
    /// One of `reach`.
    pub kind: u8,
    pub reserved: [u8; 7],
    /// Empty when the address is on the device's own link.
    pub gateway: Endpoint,
    /// The host's own address on the way.
    pub source: Endpoint,
    /// Ends in a zero.
    pub device: [u8; 16],
}

/// A reply to a client, whose route is requested.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReplyQuery {
    /// Whom it is for; the port does not matter.
    pub client: Endpoint,
    /// The upstream that sends it; an address of zeroes where the kernel has yet to choose one.
    pub source: Endpoint,
    /// 6 TCP, 17 UDP.
    pub ip_protocol: u32,
    /// 0 for none.
    pub mark: u32,
    /// Where it comes in: `lo` for what this host sends. Ends in a zero.
    pub device: [u8; 16],
}

/// Which way a reply takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyRecord {
    /// One of `reach`: where it is delivered.
    pub kind: u8,
    /// 1: a rule is known that decides it; `priority` and `lookup` are the rule's.
    pub ruled: u8,
    pub reserved: [u8; 2],
    /// Why the kernel does not route it, or 0.
    pub error: u32,
    /// Where its route is; 0 if there is none.
    pub table: u32,
    pub priority: u32,
    /// The table that the rule leads to.
    pub lookup: u32,
    /// Where it goes out. Ends in a zero.
    pub device: [u8; 16],
}

/// What holds for the whole proxy.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProxyConfig {
    /// Where the metrics are served over TCP; empty if they are not.
    pub metrics: Endpoint,
    pub log_level: u32,
    /// How many workers there will be.
    pub workers: u32,
    /// 1: flows count what they carry, for a survey; otherwise only where the access log requests it.
    pub counts_traffic: u32,
    pub reserved: u32,
}

/// Which connections and flows a survey is about.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SelectionRecord {
    /// The clients' subnet, as in a `TrustRecord`.
    pub address: [u8; 16],
    /// 0: any client.
    pub prefix: u32,
    /// 0: any listener.
    pub listener: u32,
    /// 1: close them.
    pub closes: u32,
}

/// What a survey came to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SurveyRecord {
    /// How many were found.
    pub found: u32,
    /// How many of them have a record.
    pub listed: u32,
    /// Workers that did not answer in time.
    pub silent: u32,
}

/// What this process uses of the system.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageRecord {
    pub virtual_bytes: u64,
    pub resident_bytes: u64,
    /// Descriptors.
    pub open_files: u64,
    /// How many there may be.
    pub file_limit: u64,
    /// User and system time of all threads, in microseconds.
    pub cpu_us: u64,
}

/// How far a connection is.
pub mod phase {
    /// Its header is not complete.
    pub const HEADER: u8 = 0;
    /// Its upstream has not accepted it yet.
    pub const CONNECTING: u8 = 1;
    /// It is relayed; a flow always is.
    pub const RELAYED: u8 = 2;
    /// The kernel has it: its packets are translated, and mmproxy has no socket of it any more.
    pub const OFFLOADED: u8 = 3;
}

/// A connection or a flow at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionRecord {
    pub age_ms: u64,
    /// Since a byte or datagram moved.
    pub idle_ms: u64,
    /// From the peer to the upstream, without the header.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Empty for a flow without a reply route.
    pub peer: Endpoint,
    /// Empty if the proxy's own address is used, and before the header has come.
    pub client: Endpoint,
    /// Empty before the header has come.
    pub upstream: Endpoint,
    pub listener: u32,
    pub worker: u32,
    /// `protocol::TCP` or `protocol::UDP`.
    pub protocol: u8,
    /// One of `phase`.
    pub phase: u8,
    pub reserved: [u8; 6],
}

/// What a listener is opened with, in addition to its ports.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ListenerConfig {
    pub udp_header: u32,
    pub mark: u32,
    pub header_timeout_ms: u32,
    pub connect_timeout_ms: u32,
    pub close_after_ms: u32,
    /// Silence after which the host at the other end of a connection is asked; 0: as the system says.
    pub keepalive_ms: u32,
    /// How long a relayed connection may carry nothing; 0: forever.
    pub idle_timeout_ms: u32,
    /// 1: nobody may connect but whom the rules name, also if there is none; 0: without rules all may
    /// send headers.
    pub restricted: u32,
    /// How long a peer whose header is optional may be silent before it is relayed as the client.
    pub optional_wait_ms: u32,
    /// How many relayed connections one client may have at once, over all workers; 0: no limit.
    pub max_connections_per_client: u32,
    /// How many connections the listener may have at once, over all workers; 0: no limit of its own.
    pub max_connections: u32,
    /// How many UDP flows the listener may have at once, over all workers; 0: no limit of its own.
    pub max_flows: u32,
}

/// One listener of a whole configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ListenerRecord {
    /// Its number, or 0 for a new one.
    pub id: u32,
    /// How many of the ports are its own: the next ones.
    pub ports: u32,
    /// How many of the trust table's rules are its own: the next ones; 0: see `restricted`.
    pub rules: u32,
    /// How many of the destinations are its own: the next ones.
    pub destinations: u32,
    pub config: ListenerConfig,
}

/// One port of a listener, and where its traffic goes. A range is many of them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PortRecord {
    pub listen: Endpoint,
    /// Empty: IPv4 clients are refused. One of the two is there, except with `port_flag::DESTINATION`. Port 0,
    /// with `port_flag::TRANSPARENT`: the port that the traffic was addressed to.
    pub upstream4: Endpoint,
    /// Empty: IPv6 clients are refused.
    pub upstream6: Endpoint,
    /// Bits of `protocol`.
    pub protocols: u32,
    /// Bits of `port_flag`.
    pub flags: u32,
}

/// What a port is, as a set of bits.
pub mod port_flag {
    /// `[::]` serves IPv6 alone: IPv4 has a port of its own.
    pub const ONLY_V6: u32 = 1;
    /// Clients go where their header says that they were going, as far as the listener's destinations
    /// allow it; the upstreams are for headers without a client.
    pub const DESTINATION: u32 = 2;
    /// It takes what TPROXY hands it, whatever that was addressed to.
    pub const TRANSPARENT: u32 = 4;
}

/// One try to reach an upstream.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Whose address to use, port 0 for an ephemeral one; empty for the proxy's own.
    pub client: Endpoint,
    pub upstream: Endpoint,
    /// One bit of `protocol`.
    pub protocol: u32,
    pub mark: u32,
    pub timeout_ms: u32,
}

/// What came of a mechanism of the sandbox.
pub mod sandbox {
    /// It was not available: the error says why.
    pub const MISSING: u32 = 0;
    /// It was the case already.
    pub const HELD: u32 = 1;
    /// It was set.
    pub const SET: u32 = 2;
}

/// What the sandbox has to leave to the process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SandboxRequest {
    /// The mark that upstream sockets get, or 0.
    pub mark: u32,
    /// 1: rules and routes are removed at the end (`--auto-routes`).
    pub routing: u32,
    /// 1: connections are handed over to the kernel (`--offload`).
    pub offload: u32,
}

/// Connections that earlier programs have left to the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AdoptionRecord {
    /// Those that go on.
    pub adopted: u32,
    /// Those that were in the middle of being handed over.
    pub ended: u32,
    /// Programs of another version: whatever they had was ended.
    pub unreadable: u32,
}

/// What came of the sandbox: for each mechanism one of `sandbox`, and the operating system's error or 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SandboxRecord {
    /// The capabilities that are left, as bits (capabilities(7)).
    pub capabilities: u64,
    pub no_new_privileges: u32,
    pub no_new_privileges_errno: i32,
    /// Every thread has no other capabilities than those needed.
    pub lowered: u32,
    pub lowered_errno: i32,
    /// No file is open for writing, but for standard output and error.
    pub files: u32,
    pub files_errno: i32,
    /// The filter of system calls.
    pub filter: u32,
    pub filter_errno: i32,
}

/// One line for the log, before it is words.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// An `EventKind`.
    pub kind: u16,
    pub level: u8,
    /// A `Refusal` code, or 0.
    pub refusal: u8,
    /// Which worker, from 0.
    pub worker: u32,
    /// Which listener; 0: none, but the proxy.
    pub listener: u32,
    /// The operating system's error, or 0.
    pub errno: i32,
    /// A number whose meaning is the kind's: see `EventKind`.
    pub value: u32,
    /// Events of this kind and reason that have no line of their own: see `LogLimit`.
    pub left_out: u32,
    pub peer: Endpoint,
    pub client: Endpoint,
    pub upstream: Endpoint,
    pub sample_length: u8,
    /// The first bytes that came instead of a header. Untrusted.
    pub sample: [u8; 39],
}

const _: () = assert!(std::mem::size_of::<Event>() == 136);

/// One entry of the access log. The bytes of its header follow, then zeroes up to a multiple of 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessRecord {
    /// Bytes of the whole entry, with what follows.
    pub length: u32,
    /// Bytes of the header that follow: its first ones, where it is very long.
    pub header_length: u32,
    /// Which worker, from 0.
    pub worker: u32,
    /// The operating system's error, or 0.
    pub errno: i32,
    /// `protocol::TCP` or `protocol::UDP`.
    pub protocol: u8,
    /// An `Ending`.
    pub ending: u8,
    /// 1, 2, or 3 for the Simple Proxy Protocol; 0: there was no header.
    pub version: u8,
    pub reserved: u8,
    /// Which listener.
    pub listener: u32,
    pub duration_ms: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub datagrams_up: u64,
    pub datagrams_down: u64,
    pub peer: Endpoint,
    /// Empty if the proxy's own address was used.
    pub client: Endpoint,
    /// What the client had connected to.
    pub destination: Endpoint,
    pub upstream: Endpoint,
}

// Without padding: `Account::write` shows its bytes.
const _: () = assert!(std::mem::size_of::<AccessRecord>() == 16 + 8 + 5 * 8 + 4 * 24);

impl Endpoint {
    /// The socket address, IPv4-mapped IPv6 as IPv4; `None` for an empty endpoint.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let ip = match self.family {
            4 => {
                let [a, b, c, d, ..] = self.address;
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            6 => IpAddr::V6(Ipv6Addr::from(self.address)),
            _ => return None,
        };
        match ip {
            IpAddr::V6(ip) if self.scope != 0 => {
                Some(SocketAddr::V6(SocketAddrV6::new(ip, self.port, 0, self.scope)))
            }
            ip => Some(SocketAddr::new(ip, self.port)),
        }
    }
}

impl Event {
    /// An event of which nothing is known yet but what it is.
    pub fn new(kind: EventKind, level: u8) -> Event {
        Event {
            kind: kind as u16,
            level,
            refusal: Refusal::None as u8,
            worker: 0,
            listener: 0,
            errno: 0,
            value: 0,
            left_out: 0,
            peer: Endpoint::default(),
            client: Endpoint::default(),
            upstream: Endpoint::default(),
            sample_length: 0,
            sample: [0; 39],
        }
    }

    /// The same with the first bytes that came instead of a header.
    pub fn with_sample(mut self, bytes: &[u8]) -> Event {
        let length = bytes.len().min(self.sample.len());
        self.sample[..length].copy_from_slice(&bytes[..length]);
        self.sample_length = length as u8;
        self
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(from: SocketAddr) -> Endpoint {
        let mut endpoint = Endpoint { port: from.port(), ..Endpoint::default() };
        match from {
            SocketAddr::V4(v4) => {
                endpoint.family = 4;
                endpoint.address[..4].copy_from_slice(&v4.ip().octets());
            }
            SocketAddr::V6(v6) => {
                endpoint.family = 6;
                endpoint.scope = v6.scope_id();
                endpoint.address = v6.ip().octets();
            }
        }
        endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_keeps_its_address() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535", "[fe80::1%3]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(Endpoint::from(addr).socket_addr(), Some(addr));
        }
        assert_eq!(Endpoint::default().socket_addr(), None);
    }
}
