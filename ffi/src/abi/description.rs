//! The boundary to TypeScript as data: the compiler hashes it into `FINGERPRINT`, and `printer` prints it as
//! `src/native/layout.ts`, which is checked in. The released library contains only the hash: a library and a
//! program that were not built together refuse each other at load.

use std::mem::{offset_of, size_of};

use super::layout::*;
use crate::observe::access::Ending;
use crate::observe::events::EventKind;
use crate::observe::refusal::Refusal;
use crate::observe::stats::{Counter, Histogram, BUCKETS_MS, ERRNOS};

/// A name and its number.
#[derive(Clone, Copy)]
pub struct Code {
    pub name: &'static str,
    pub value: i64,
}

/// One export of `src/native/layout.ts`, with its comment.
pub enum Item {
    Number { name: &'static str, about: &'static str, value: i64 },
    Numbers { name: &'static str, about: &'static str, numbers: &'static [u64] },
    Codes { name: &'static str, about: &'static str, codes: &'static [Code] },
    Names { name: &'static str, about: &'static str, names: &'static [Code] },
    Offsets { name: &'static str, record: &'static str, fields: &'static [Code], size: i64 },
}

/// Byte offsets of a record's fields.
macro_rules! offsets {
    ($name:literal, $record:ty, $($field:ident),+ $(,)?) => {
        Item::Offsets {
            name: $name,
            record: stringify!($record),
            fields: &[$(Code {
                name: stringify!($field),
                value: offset_of!($record, $field) as i64,
            }),+],
            size: size_of::<$record>() as i64,
        }
    };
}

/// Constants of a module.
macro_rules! codes {
    ($name:literal, $about:literal, $($module:ident :: $code:ident),+ $(,)?) => {
        Item::Codes {
            name: $name,
            about: $about,
            codes: &[$(Code { name: stringify!($code), value: $module::$code as i64 }),+],
        }
    };
}

/// The values of an enumeration that `named!` declared.
macro_rules! values {
    ($Type:ident) => {{
        const VALUES: [Code; $Type::ALL.len()] = {
            let mut values = [Code { name: "", value: 0 }; $Type::ALL.len()];
            let mut index = 0;
            while index < values.len() {
                let value = $Type::ALL[index];
                values[index] = Code { name: value.name(), value: value as i64 };
                index += 1;
            }
            values
        };
        &VALUES
    }};
}

/// All of it, in the order of the file.
pub const BOUNDARY: &[Item] = &[
    Item::Number {
        name: "MAX_HEADER",
        about: "The largest header: 16 bytes and a length of 65,535.",
        value: MAX_HEADER as i64,
    },
    Item::Number {
        name: "SCRATCH_SIZE",
        about: "Bytes of a worker's scratch region.",
        value: SCRATCH_SIZE as i64,
    },
    Item::Number {
        name: "HEADER_OFFSET",
        about: "Where the header's first byte lies in the scratch region.",
        value: HEADER_OFFSET as i64,
    },
    codes!("Action",
        "What the decoder's callback returns.",
        action::DROP,
        action::CLIENT,
        action::OWN,
    ),
    codes!("Carrier",
        "What the decoder is given: the callback's second argument.",
        carrier::STREAM,
        carrier::DATAGRAM,
        carrier::SPP,
        carrier::NONE,
    ),
    codes!("HeaderRule",
        "What a peer must send first.",
        header_rule::REQUIRE,
        header_rule::OPTIONAL,
        header_rule::SKIP,
    ),
    codes!("UdpHeader",
        "Where a UDP sender puts its header.",
        udp_header::DATAGRAM,
        udp_header::SESSION,
        udp_header::SPP,
    ),
    codes!("Protocol", "Bits of the protocols served.", protocol::TCP, protocol::UDP),
    codes!("Level",
        "Log levels, the gravest first.",
        level::ERROR,
        level::WARN,
        level::INFO,
        level::ACCESS,
        level::DEBUG,
    ),
    codes!("Routing", "What a `RoutingRecord` is.", routing::RULE, routing::ROUTE),
    codes!("Reach",
        "How the host reaches an address.",
        reach::NONE,
        reach::LOCAL,
        reach::REMOTE,
    ),
    codes!("Status",
        "What a failed call returns.",
        status::OK,
        status::INVALID,
        status::PERMISSION,
        status::ADDRESS_IN_USE,
        status::ADDRESS_NOT_AVAILABLE,
        status::SYSTEM,
        status::PANIC,
        status::LOOP,
    ),
    offsets!("VERDICT",
        Verdict,
        refusal,
        family,
        version,
        client_port,
        destination_port,
        client_address,
        destination_address,
    ),
    offsets!("ENDPOINT", Endpoint, family, port, scope, address),
    offsets!("TRUST", TrustRecord, address, prefix, header),
    offsets!("DESTINATION", DestinationRecord, address, prefix, first_port, last_port,),
    offsets!("ROUTING",
        RoutingRecord,
        kind,
        family,
        origin,
        ip_protocol,
        port,
        last_port,
        source_length,
        other,
        table,
        priority,
        mark,
        address,
        device,
    ),
    offsets!("REACH", ReachRecord, kind, gateway, source, device),
    offsets!("REPLY_QUERY", ReplyQuery, client, source, ip_protocol, mark, device),
    offsets!("REPLY", ReplyRecord, kind, ruled, error, table, priority, lookup, device,),
    offsets!("PROXY_CONFIG", ProxyConfig, metrics, log_level, workers, counts_traffic),
    offsets!("SELECTION", SelectionRecord, address, prefix, listener, closes),
    offsets!("SURVEY", SurveyRecord, found, listed, silent),
    offsets!("USAGE",
        UsageRecord,
        virtual_bytes,
        resident_bytes,
        open_files,
        file_limit,
        cpu_us,
    ),
    codes!("Phase",
        "How far a connection is.",
        phase::HEADER,
        phase::CONNECTING,
        phase::RELAYED,
        phase::OFFLOADED,
    ),
    offsets!("CONNECTION",
        ConnectionRecord,
        age_ms,
        idle_ms,
        bytes_up,
        bytes_down,
        peer,
        client,
        upstream,
        listener,
        worker,
        protocol,
        phase,
    ),
    offsets!("LISTENER_CONFIG",
        ListenerConfig,
        udp_header,
        mark,
        header_timeout_ms,
        connect_timeout_ms,
        close_after_ms,
        keepalive_ms,
        idle_timeout_ms,
        restricted,
        optional_wait_ms,
        max_connections_per_client,
        max_connections,
        max_flows,
    ),
    offsets!("LISTENER", ListenerRecord, id, ports, rules, destinations, config),
    offsets!("PORT", PortRecord, listen, upstream4, upstream6, protocols, flags),
    codes!("PortFlag",
        "Bits of what a port is.",
        port_flag::ONLY_V6,
        port_flag::DESTINATION,
        port_flag::TRANSPARENT,
    ),
    offsets!("PROBE", Probe, client, upstream, protocol, mark, timeout_ms),
    codes!("Sandbox",
        "What came of a mechanism of the sandbox.",
        sandbox::MISSING,
        sandbox::HELD,
        sandbox::SET,
    ),
    offsets!("ADOPTION", AdoptionRecord, adopted, ended, unreadable),
    offsets!("SANDBOX_REQUEST", SandboxRequest, mark, routing, offload),
    offsets!("SANDBOX",
        SandboxRecord,
        capabilities,
        no_new_privileges,
        no_new_privileges_errno,
        lowered,
        lowered_errno,
        files,
        files_errno,
        filter,
        filter_errno,
    ),
    offsets!("EVENT",
        Event,
        kind,
        level,
        refusal,
        worker,
        listener,
        errno,
        value,
        left_out,
        peer,
        client,
        upstream,
        sample_length,
        sample,
    ),
    offsets!("ACCESS",
        AccessRecord,
        length,
        header_length,
        worker,
        errno,
        protocol,
        ending,
        version,
        listener,
        duration_ms,
        bytes_up,
        bytes_down,
        datagrams_up,
        datagrams_down,
        peer,
        client,
        destination,
        upstream,
    ),
    Item::Codes {
        name: "Ending",
        about: "Why a connection or a flow ended: the code of each name.",
        codes: values!(Ending),
    },
    Item::Codes {
        name: "Refusal",
        about: "Why something was refused: the code of each name.",
        codes: values!(Refusal),
    },
    Item::Codes {
        name: "EventKind",
        about: "What an event tells: the code of each name.",
        codes: values!(EventKind),
    },
    Item::Names {
        name: "COUNTERS",
        about: "The counters, in the order in which `stats` writes them (u64 each).",
        names: values!(Counter),
    },
    Item::Names {
        name: "REFUSALS",
        about: "Behind the counters, one a refusal, in the order of the codes (u64 each).",
        names: values!(Refusal),
    },
    Item::Number {
        name: "ERRNOS",
        about: "Behind the refusals: failed connections to the upstream, one an errno from 0 (u64 each).",
        value: ERRNOS as i64,
    },
    Item::Names {
        name: "HISTOGRAMS",
        about: "Behind the errors: each histogram's buckets, one more than bounds, and its sum in\n * \
                milliseconds (u64 each). A bucket counts what is in no earlier one.",
        names: values!(Histogram),
    },
    Item::Numbers {
        name: "BUCKETS_MS",
        about: "The buckets' upper bounds in milliseconds.",
        numbers: &BUCKETS_MS,
    },
];

/// The exports, as the program calls them: generated, and tested for staleness.
const EXPORTS: &str = include_str!("../../../src/native/symbols.ts");

/// The hash of all that TypeScript knows of the boundary, exports and records: what `abi_version` answers.
pub const FINGERPRINT: u32 = fingerprint(EXPORTS, BOUNDARY);

const fn fingerprint(exports: &str, boundary: &[Item]) -> u32 {
    let mut hash = text(FNV_BASIS, exports);
    let mut index = 0;
    while index < boundary.len() {
        hash = match boundary[index] {
            Item::Number { name, about, value } => number(text(text(hash, name), about), value),
            Item::Numbers { name, about, numbers } => {
                let mut hash = text(text(hash, name), about);
                let mut index = 0;
                while index < numbers.len() {
                    hash = number(hash, numbers[index] as i64);
                    index += 1;
                }
                hash
            }
            Item::Codes { name, about, codes } => list(text(text(hash, name), about), codes),
            Item::Names { name, about, names } => list(text(text(hash, name), about), names),
            Item::Offsets { name, record, fields, size } => {
                number(list(text(text(hash, name), record), fields), size)
            }
        };
        index += 1;
    }
    hash
}

/// FNV-1a: sufficient to distinguish two layouts, and needs no table.
const FNV_BASIS: u32 = 0x811c_9dc5;

const fn byte(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as u32).wrapping_mul(0x0100_0193)
}

/// A text and its end.
const fn text(mut hash: u32, text: &str) -> u32 {
    let mut index = 0;
    while index < text.len() {
        hash = byte(hash, text.as_bytes()[index]);
        index += 1;
    }
    byte(hash, 0)
}

const fn number(mut hash: u32, number: i64) -> u32 {
    let bytes = number.to_le_bytes();
    let mut index = 0;
    while index < bytes.len() {
        hash = byte(hash, bytes[index]);
        index += 1;
    }
    hash
}

const fn list(mut hash: u32, codes: &[Code]) -> u32 {
    let mut index = 0;
    while index < codes.len() {
        hash = number(text(hash, codes[index].name), codes[index].value);
        index += 1;
    }
    number(hash, codes.len() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(fields: &'static [Code], size: i64) -> [Item; 1] {
        [Item::Offsets { name: "RECORD", record: "Record", fields, size }]
    }

    #[test]
    fn the_fingerprint_is_that_of_the_file() {
        let file = include_str!("../../../src/native/layout.ts");
        let line = format!("\nexport const ABI_VERSION = {FINGERPRINT};\n");
        assert!(file.ends_with(&line), "src/native/layout.ts is stale: run deno task symbols");
    }

    #[test]
    fn whatever_changes_at_the_boundary_changes_the_fingerprint() {
        const FIELDS: &[Code] = &[Code { name: "port", value: 4 }];
        const MOVED: &[Code] = &[Code { name: "port", value: 6 }];
        const RENAMED: &[Code] = &[Code { name: "ports", value: 4 }];
        let plain = fingerprint(EXPORTS, &with(FIELDS, 8));
        let exports = EXPORTS.replacen("\"u32\"", "\"u64\"", 1);
        assert_ne!(exports, EXPORTS);
        assert_ne!(fingerprint(&exports, &with(FIELDS, 8)), plain, "an export");
        for (other, what) in [
            (with(MOVED, 8), "an offset"),
            (with(RENAMED, 8), "a name"),
            (with(FIELDS, 16), "a size"),
            (with(&[], 8), "a field"),
        ] {
            assert_ne!(fingerprint(EXPORTS, &other), plain, "{what}");
        }
        assert_ne!(fingerprint(EXPORTS, &[]), plain, "a record");
        assert_eq!(fingerprint(EXPORTS, &with(FIELDS, 8)), plain);
    }
}
