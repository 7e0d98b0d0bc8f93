import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import type { ListenerConfig } from "../config/model.ts";
import { LITTLE_ENDIAN } from "../config/options.ts";
import { Listeners } from "../proxy/listeners.ts";
import { logEvent, type NativeEvent, readEvent } from "./events.ts";
import type { Details } from "./log.ts";
import { ENDPOINT, EVENT, EventKind, Level, Refusal, REFUSALS } from "../native/layout.ts";

const LISTENER = listener("--header-timeout", "10", "-a", "/etc/mmproxy/subnets");

function listener(...args: string[]): ListenerConfig {
  const request = parseArguments(args, "0");
  assert(request.kind === "run" && request.setup.kind === "flags");
  return request.setup.config.listeners[0] ?? assert.fail();
}

/** Listeners by number; the first is the one above. */
function running(...names: string[]): Listeners {
  const listeners = new Listeners();
  names.forEach((name, index) => listeners.set(1 + index, { ...LISTENER, name }));
  return listeners;
}

/** An endpoint as the native core writes it: family, address, port, interface. */
type Endpoint = readonly [family: number, bytes: readonly number[], port: number, scope?: number];

interface Fields {
  readonly kind: number;
  readonly level?: number;
  readonly refusal?: number;
  readonly worker?: number;
  readonly listener?: number;
  readonly errno?: number;
  readonly value?: number;
  readonly left_out?: number;
  readonly peer?: Endpoint;
  readonly client?: Endpoint;
  readonly upstream?: Endpoint;
  /** A character a byte. */
  readonly sample?: string;
}

const PEER: Endpoint = [4, [198, 51, 100, 7], 40_000];
const CLIENT: Endpoint = [6, [0x20, 0x01, 0x0d, 0xb8, ...new Array(11).fill(0), 1], 50_000];
const UPSTREAM: Endpoint = [6, [0xfe, 0x80, ...new Array(13).fill(0), 2], 443, 3];
const ENDPOINTS = { peer: PEER, client: CLIENT, upstream: UPSTREAM };

/** Writes a record at `offset`, through the layout's offsets. */
function write(records: Uint8Array<ArrayBuffer>, offset: number, fields: Fields): void {
  const view = new DataView(records.buffer, offset, EVENT.size);
  const { kind, level = Level.info, refusal = 0, worker = 0, errno = 0, value = 0 } = fields;
  view.setUint32(EVENT.listener, fields.listener ?? 1, LITTLE_ENDIAN);
  view.setUint32(EVENT.left_out, fields.left_out ?? 0, LITTLE_ENDIAN);
  view.setUint16(EVENT.kind, kind, LITTLE_ENDIAN);
  view.setUint8(EVENT.level, level);
  view.setUint8(EVENT.refusal, refusal);
  view.setUint32(EVENT.worker, worker, LITTLE_ENDIAN);
  view.setInt32(EVENT.errno, errno, LITTLE_ENDIAN);
  view.setUint32(EVENT.value, value, LITTLE_ENDIAN);
  for (const name of ["peer", "client", "upstream"] as const) {
    const [family, bytes, port, scope = 0] = fields[name] ?? [0, [], 0];
    const start = EVENT[name];
    view.setUint8(start + ENDPOINT.family, family);
    view.setUint16(start + ENDPOINT.port, port, LITTLE_ENDIAN);
    view.setUint32(start + ENDPOINT.scope, scope, LITTLE_ENDIAN);
    records.set(bytes, offset + start + ENDPOINT.address);
  }
  const sample = Uint8Array.from(fields.sample ?? "", (byte) => byte.charCodeAt(0));
  view.setUint8(EVENT.sample_length, sample.length);
  records.set(sample, offset + EVENT.sample);
}

function eventOf(fields: Fields): NativeEvent | undefined {
  const records = new Uint8Array(EVENT.size);
  write(records, 0, fields);
  return readEvent(records, 0);
}

interface Line {
  readonly level: string;
  readonly message: string;
  readonly details: Details;
}

function lineOf(fields: Fields, listeners = running("mail")): Line {
  const lines: Line[] = [];
  const log = (level: string, message: string, details: Details) =>
    lines.push({ level, message, details });
  const event = eventOf(fields);
  assert(event);
  logEvent(log, event, listeners);
  const [line] = lines;
  assert(line && lines.length === 1);
  return line;
}

Deno.test("readEvent: reads every field of the record at its offset", () => {
  const records = new Uint8Array(3 * EVENT.size).fill(0xee);
  write(records, EVENT.size, {
    kind: EventKind.header_refused,
    level: Level.access,
    refusal: Refusal.v2_tlv,
    worker: 70_000,
    listener: 80_000,
    errno: -5,
    value: 4_000_000_000,
    left_out: 3_000_000_000,
    ...ENDPOINTS,
    sample: "SSH-2.0-x",
  });
  assert.deepEqual(readEvent(records, EVENT.size), {
    kind: "header_refused",
    level: "access",
    refusal: "v2_tlv",
    worker: 70_000,
    listener: 80_000,
    errno: -5,
    value: 4_000_000_000,
    leftOut: 3_000_000_000,
    peer: "198.51.100.7:40000",
    client: "[2001:db8::1]:50000",
    upstream: "[fe80::2%3]:443",
    came: "SSH banner",
  });
});

Deno.test("readEvent: leaves out endpoints that the event has not", () => {
  const event = eventOf({ kind: EventKind.events_lost });
  assert(event && !("peer" in event || "client" in event || "upstream" in event));
});

for (const kind of [0, Math.max(...Object.values(EventKind)) + 1, 0xffff]) {
  Deno.test(`readEvent: does not know kind ${kind}`, () => {
    assert.equal(eventOf({ kind }), undefined);
  });
}

Deno.test("logEvent: gives JSON the fields that the event has", () => {
  const { level, message, details } = lineOf({
    kind: EventKind.header_refused,
    level: Level.warn,
    refusal: Refusal.not_proxy,
    worker: 2,
    peer: PEER,
    sample: "GET / HTTP/1.1\r\n",
  });
  assert.equal(level, "warn");
  assert.equal(
    message,
    "Closed 198.51.100.7:40000: expected a PROXY header, received HTTP request (not a PROXY header: is the sender configured to send one?)",
  );
  assert.deepEqual(details, {
    event: "header_refused",
    listener: "mail",
    worker: 2,
    peer: "198.51.100.7:40000",
    refusal: "not_proxy",
    came: "HTTP request",
  });
});

Deno.test("logEvent: of several listeners the line says which, of none it does not", () => {
  const fields = { kind: EventKind.connection_opened, peer: PEER };
  assert.match(lineOf(fields, running("mail", "web")).message, /^mail: Relaying 198/);
  assert.match(lineOf(fields, running("mail")).message, /^Relaying 198/);
  assert.match(lineOf({ ...fields, listener: 2 }, running("mail", "web")).message, /^web: Rel/);
  const nobody = lineOf({ ...fields, listener: 0 });
  assert.match(nobody.message, /^Relaying 198/);
  assert.ok(!("listener" in nobody.details));
});

Deno.test("logEvent: a refused peer's line names the place to allow it", () => {
  const fields = { kind: EventKind.peer_refused, refusal: Refusal.peer_not_allowed };
  const listeners = new Listeners();
  const { allowedSubnets: _, ...trusting } = LISTENER;
  listeners.set(1, trusting);
  assert.match(lineOf(fields, listeners).message, /add it to its trust or allowed-subnets$/);
});

/** How the Simple Proxy Protocol's header begins. */
const SPP = "\x56\xec";

const SENTENCES: readonly (readonly [fields: Fields, sentence: RegExp])[] = [
  [
    { kind: EventKind.header_refused, refusal: Refusal.incomplete, peer: PEER },
    /^Closed 198.*: connection ended before the PROXY header was complete \(nothing\)$/,
  ],
  [
    { kind: EventKind.header_timeout, refusal: Refusal.timeout, value: 5, sample: "PROXY" },
    /^Closed a peer: incomplete PROXY header after 10 s; received only text "PROXY"$/,
  ],
  [
    { kind: EventKind.peer_refused, refusal: Refusal.peer_not_allowed, peer: PEER },
    /add it to \/etc\/mmproxy\/subnets$/,
  ],
  [
    { kind: EventKind.connect_failed, ...ENDPOINTS, errno: 111 },
    /is the upstream running, or does a firewall \(for example fail2ban\) reject this client\?$/,
  ],
  [{ kind: EventKind.connect_failed, errno: 1 }, /CAP_NET_RAW or CAP_NET_ADMIN is needed$/],
  [
    { kind: EventKind.connect_failed, errno: 113 },
    /to see what is missing, run mmproxy routes show with the same flags$/,
  ],
  [
    { kind: EventKind.connect_failed },
    /no answer within 5 s: .*to see what is missing, run mmproxy routes show with the same flags$/,
  ],
  [{ kind: EventKind.connect_failed, errno: 9999 }, /^Cannot connect .*: error 9999$/],
  [
    { kind: EventKind.port_fallback, ...ENDPOINTS, value: 50_000 },
    /as \[2001:db8::1\]:50000 from an ephemeral port: client port 50000 is in use$/,
  ],
  [
    { kind: EventKind.port_fallback, value: 0 },
    /from an ephemeral port: the header gives client port 0$/,
  ],
  [{ kind: EventKind.accept_paused, errno: 24, value: 100 }, /paused for 100 ms: too many open/],
  [
    { kind: EventKind.family_unavailable, value: 6 },
    /^Refusing IPv6 clients: IPv6 is not available/,
  ],
  [
    { kind: EventKind.connection_opened, peer: PEER, upstream: UPSTREAM },
    /^Relaying 198.* to \[fe80::2%3\]:443 as the proxy's own address$/,
  ],
  [
    { kind: EventKind.connection_closed, ...ENDPOINTS },
    /^Stopped relaying .* as \[2001:db8::1\]:50000$/,
  ],
  [{ kind: EventKind.connection_closed, errno: 104 }, /: connection reset \(ECONNRESET\)$/],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.peer_not_allowed, peer: PEER },
    /^Dropped a datagram from 198.*: it is not in the allowed subnets$/,
  ],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.spp_short, left_out: 6, sample: "hi" },
    /^Dropped 7 datagrams, the last from a peer: received text "hi" \(Simple Proxy Protocol: /,
  ],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.not_proxy, sample: SPP },
    /received Simple Proxy Protocol header \(see --udp-header spp\)$/,
  ],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.no_session, sample: SPP },
    /received Simple Proxy Protocol header \(see --udp-header spp\)$/,
  ],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.spp_short, sample: SPP },
    /received Simple Proxy Protocol header \(Simple Proxy Protocol: shorter than 38 bytes\)$/,
  ],
  [
    {
      kind: EventKind.datagrams_refused,
      refusal: Refusal.spp_magic,
      sample: "PROXY UDP",
    },
    /received PROXY v1 line "PROXY UDP" \(see --udp-header\)$/,
  ],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.spp_magic, sample: "hi" },
    /received text "hi" \(not a Simple Proxy Protocol header: is the sender configured to send one\?\)$/,
  ],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.not_proxy, sample: "hi" },
    /received text "hi" \(not a PROXY header: .* If only to the first, use --udp-header session\)$/,
  ],
  [
    {
      kind: EventKind.client_refused,
      refusal: Refusal.client_loopback,
      peer: [4, [198, 51, 100, 7], 41_233],
      client: [4, [127, 0, 0, 1], 5],
    },
    /^Refused 198\.51\.100\.7:41233: client 127\.0\.0\.1 is a loopback address, and the peer is not on this host; see docs\/trust\.md$/,
  ],
  [
    { kind: EventKind.client_refused, refusal: Refusal.client_own_address, client: CLIENT },
    /client 2001:db8::1 is an address of this host, and the peer is not on this host; see docs\/trust\.md$/,
  ],
  [
    { kind: EventKind.client_refused, refusal: Refusal.client_is_listener, client: PEER },
    /client 198\.51\.100\.7:40000 is an address on which mmproxy or its upstream listens; see/,
  ],
  [
    { kind: EventKind.client_refused, refusal: Refusal.client_family, client: CLIENT },
    /client 2001:db8::1 is IPv6, and no --ipv6 upstream is set; further IPv6 clients are counted but not logged$/,
  ],
  [
    { kind: EventKind.client_refused, refusal: Refusal.client_family, client: PEER },
    /client 198\.51\.100\.7 is IPv4, and no --ipv4 upstream is set; further IPv4 clients/,
  ],
  [
    { kind: EventKind.client_refused, refusal: Refusal.source_mismatch, ...ENDPOINTS },
    /^Refused 198.*: the connection to \[fe80::2%3\]:443 would have had another source address than client 2001:db8::1; see/,
  ],
  [
    { kind: EventKind.forwarding_loop, refusal: Refusal.forwarding_loop, upstream: UPSTREAM },
    /^Refused a peer: \[fe80::2%3\]:443 is now an address of this host on which mmproxy itself listens; choose another listen port/,
  ],
  [
    { kind: EventKind.datagrams_refused, refusal: Refusal.forwarding_loop },
    /^Dropped a datagram from a peer: the upstream is mmproxy itself: choose another listen port/,
  ],
  [
    {
      kind: EventKind.datagrams_refused,
      refusal: Refusal.client_subnet_broadcast,
      left_out: 1,
      client: PEER,
    },
    /^Dropped 2 datagrams, the last from a peer: client 198\.51\.100\.7 is the broadcast address of a subnet of this host; see docs\/trust\.md$/,
  ],
  [
    { kind: EventKind.addresses_unknown, errno: 7 },
    /^This host has too many addresses to cache; mmproxy queries/,
  ],
  [
    { kind: EventKind.addresses_unknown, errno: 97 },
    /^Cannot list this host's addresses \(address family not supported \(EAFNOSUPPORT\)\); mmproxy queries the kernel for each client instead/,
  ],
  [
    {
      kind: EventKind.header_refused,
      refusal: Refusal.v1_mixed_families,
      sample: "PROXY TCP4 ::1",
    },
    /^Closed a peer: invalid PROXY header: PROXY v1 line "PROXY TCP4 ::1" \(version 1: an address does not match/,
  ],
  [{ kind: EventKind.flow_failed, errno: 13 }, /^Cannot open a flow .*CAP_NET_ADMIN is needed$/],
  [{ kind: EventKind.flows_full, value: 4 }, /^The UDP flow table is full \(4\):/],
  [
    { kind: EventKind.header_evicted, refusal: Refusal.evicted, value: 480, peer: PEER },
    /^Closed 198.* to free a slot: its PROXY header was incomplete \(nothing\), and its peer had the most such connections \(480\)/,
  ],
  [
    { kind: EventKind.mostly_silent, value: 10 },
    /^Most connections .*: 10 of the most recent ones timed out .*header_placement=on_first_ack\)$/,
  ],
  [
    { kind: EventKind.ports_exhausted, ...ENDPOINTS, errno: 99 },
    /^Cannot connect to .* as \[2001:db8::1\]:50000: no free source port: every port in net\.ipv4\.ip_local_/,
  ],
  [{ kind: EventKind.events_lost, value: 9 }, /^9 log lines were lost/],
];

for (const [fields, sentence] of SENTENCES) {
  Deno.test(`logEvent: says ${sentence.source}`, () => {
    assert.match(lineOf(fields).message, sentence);
  });
}

Deno.test("logEvent: a peer that sent no byte is distinguished from one that sent some", () => {
  const silent = lineOf({ kind: EventKind.header_timeout, refusal: Refusal.timeout, peer: PEER });
  assert.match(silent.message, /^Closed 198.*: no PROXY header: received nothing for 10 s$/);
  assert.equal(silent.details.came, "nothing for 10 s");
  const slow = lineOf({
    kind: EventKind.header_timeout,
    refusal: Refusal.timeout,
    value: 6,
    sample: "PROXY ",
  });
  assert.equal(slow.details.came, 'PROXY v1 line "PROXY "');
});

Deno.test("logEvent: says how many like it have no line", () => {
  const fields = { kind: EventKind.connect_failed, errno: 9999, left_out: 1234 };
  const { message, details } = lineOf(fields);
  assert.match(message, /: error 9999 \(and 1234 more in the last second\)$/);
  assert.equal(details.left_out, 1234);
  assert.ok(!("left_out" in lineOf({ ...fields, left_out: 0 }).details));
  const refusal = Refusal.not_proxy;
  const datagrams = lineOf({ kind: EventKind.datagrams_refused, refusal, left_out: 6 });
  assert.match(datagrams.message, /^Dropped 7 datagrams, [^\d]+$/);
  assert.equal(datagrams.details.value, 7);
});

Deno.test("logEvent: names an error by its constant, and an unknown one by its number", () => {
  const error = (errno: number) => lineOf({ kind: EventKind.flow_failed, errno }).details.error;
  assert.deepEqual([error(111), error(9999)], ["ECONNREFUSED", "errno 9999"]);
});

Deno.test("logEvent: a refused client is named, and what came is not shown", () => {
  for (const kind of [EventKind.client_refused, EventKind.datagrams_refused]) {
    const { details } = lineOf({ kind, refusal: Refusal.client_loopback, client: CLIENT });
    assert.equal(details.client, "[2001:db8::1]:50000");
    assert.equal(details.refusal, "client_loopback");
    assert.equal("came" in details, false);
  }
});

Deno.test("logEvent: says nothing of what came from a peer that may not send", () => {
  const { details } = lineOf({
    kind: EventKind.peer_refused,
    refusal: Refusal.peer_not_allowed,
    sample: "GET /",
  });
  assert.deepEqual(details, {
    event: "peer_refused",
    listener: "mail",
    worker: 0,
    refusal: "peer_not_allowed",
  });
});

const ERRNOS = [0, 1, 22, 111, 9999];

for (const [name, kind] of Object.entries(EventKind)) {
  Deno.test(`logEvent: ${name} has a whole sentence, whatever the record lacks`, () => {
    for (const [refusal] of REFUSALS.entries()) {
      for (const errno of ERRNOS) {
        for (const endpoints of [{}, ENDPOINTS]) {
          const { message, details } = lineOf({ kind, refusal, errno, ...endpoints });
          assert.match(message, /^[A-Z0-9][ -~]+[^.]$/);
          assert.doesNotMatch(message, /undefined|null|NaN|\[object/);
          assert.equal(details.event, name);
        }
      }
    }
  });
}

Deno.test("logEvent: every reason has words of its own", () => {
  const said = REFUSALS.filter((name) => name !== "none" && name !== "incomplete").map((name) =>
    lineOf({ kind: EventKind.header_refused, refusal: Refusal[name] }).message
  );
  assert.equal(new Set(said).size, REFUSALS.length - 2);
});

Deno.test("REFUSALS: each name is at its code", () => {
  assert.deepEqual(Object.fromEntries(REFUSALS.map((name, code) => [name, code])), Refusal);
});

Deno.test("docs/logs.md: has a row for every event of the native core", async () => {
  const page = await Deno.readTextFile(new URL("../../docs/logs.md", import.meta.url));
  const rows = page.split("\n").filter((line) => line.startsWith("| `"));
  for (const kind of Object.keys(EventKind)) {
    assert.ok(rows.some((row) => row.split("|")[1]?.includes(`\`${kind}\``)), kind);
  }
});
