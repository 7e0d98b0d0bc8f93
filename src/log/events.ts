/** The native core's events as lines for the log. */
import { ENDPOINT, EVENT, EventKind, Level, Refusal, REFUSALS } from "../native/layout.ts";
import { formatAddress } from "../config/address.ts";
import { describeBytes } from "./received.ts";
import { type ListenerConfig, MODEL_DEFAULTS } from "../config/model.ts";
import { DEFAULTS, type LevelName, LITTLE_ENDIAN } from "../config/options.ts";
import type { Listeners } from "../proxy/listeners.ts";
import type { Log } from "./log.ts";

/** An event, read from its record. */
export interface NativeEvent {
  readonly kind: keyof typeof EventKind;
  readonly level: LevelName;
  /** From 0. */
  readonly worker: number;
  /** Its number in the native core; 0: the proxy. */
  readonly listener: number;
  readonly refusal: (typeof REFUSALS)[number];
  readonly errno: number;
  readonly value: number;
  /** Events of the same kind and reason that have no line of their own. */
  readonly leftOut: number;
  readonly peer?: string;
  readonly client?: string;
  readonly upstream?: string;
  /** What came instead of a header. */
  readonly came: string;
}

const KINDS = new Map(
  Object.entries(EventKind).map(([name, code]) => [code, name as keyof typeof EventKind]),
);
const LEVELS = new Map(Object.entries(Level).map(([name, code]) => [code, name as LevelName]));

/** Reads the record at `offset`; undefined for a kind that this program does not know. */
export function readEvent(
  records: Uint8Array<ArrayBuffer>,
  offset: number,
): NativeEvent | undefined {
  const view = new DataView(records.buffer, records.byteOffset + offset, EVENT.size);
  const kind = KINDS.get(view.getUint16(EVENT.kind, LITTLE_ENDIAN) as 1);
  if (!kind) return undefined;
  const sample = new Uint8Array(
    view.buffer,
    view.byteOffset + EVENT.sample,
    view.getUint8(EVENT.sample_length),
  );
  return {
    kind,
    level: LEVELS.get(view.getUint8(EVENT.level) as 1) ?? "warn",
    worker: view.getUint32(EVENT.worker, LITTLE_ENDIAN),
    listener: view.getUint32(EVENT.listener, LITTLE_ENDIAN),
    refusal: REFUSALS[view.getUint8(EVENT.refusal)] ?? "none",
    errno: view.getInt32(EVENT.errno, LITTLE_ENDIAN),
    value: view.getUint32(EVENT.value, LITTLE_ENDIAN),
    leftOut: view.getUint32(EVENT.left_out, LITTLE_ENDIAN),
    ...endpoint(view, EVENT.peer, "peer"),
    ...endpoint(view, EVENT.client, "client"),
    ...endpoint(view, EVENT.upstream, "upstream"),
    came: describeBytes(sample),
  };
}

/** The endpoint record at `offset` under its name; nothing for an empty one. */
export function endpoint<Name extends string>(view: DataView, offset: number, name: Name) {
  const family = view.getUint8(offset + ENDPOINT.family);
  if (family === 0) return {};
  const address = formatAddress(
    family,
    new Uint8Array(view.buffer, view.byteOffset + offset + ENDPOINT.address, 16),
    view.getUint16(offset + ENDPOINT.port, LITTLE_ENDIAN),
    view.getUint32(offset + ENDPOINT.scope, LITTLE_ENDIAN),
  );
  return { [name]: address } as Record<Name, string>;
}

const OF_CLIENT: ReadonlySet<string> = new Set<NativeEvent["refusal"]>([
  "source_mismatch",
  "forwarding_loop",
  "destination_not_allowed",
  "no_destination",
  "too_many_of_client",
  "too_many_flows",
]);

/** Whether a refusal is about the client or the destination in a header, not about its bytes. */
function isOfClient(refusal: NativeEvent["refusal"]): boolean {
  return refusal.startsWith("client_") || OF_CLIENT.has(refusal);
}

/** What sentences say of a listener's settings. */
export type Settings = Pick<
  ListenerConfig,
  "headerTimeout" | "connectTimeout" | "allowedSubnets" | "upstream"
>;

/** For an event without a listener, whose sentence does not use them. */
const NO_SETTINGS: Settings = {
  headerTimeout: Number(DEFAULTS.headerTimeout),
  connectTimeout: Number(DEFAULTS.connectTimeout),
  upstream: MODEL_DEFAULTS.upstream,
};

/** Writes an event's line. It says which listener it is about, in text only if there are several. */
export function logEvent(
  log: Log,
  event: NativeEvent,
  listeners: Pick<Listeners, "get" | "isMany">,
): void {
  const { kind, level, worker, refusal, errno, peer, client, upstream, came } = event;
  const listener = listeners.get(event.listener);
  const settings = listener ?? NO_SETTINGS;
  const whose = listener && listeners.isMany ? `${listener.name}: ` : "";
  const counted = kind === "datagrams_refused";
  const value = counted ? 1 + event.leftOut : event.value;
  const leftOut = counted ? 0 : event.leftOut;
  const refused = refusal !== REFUSALS[Refusal.none];
  const more = leftOut > 0 ? ` (and ${leftOut} more in the last second)` : "";
  log(level, whose + sentence(event, settings) + more, {
    event: kind,
    ...(listener && { listener: listener.name }),
    worker,
    ...(peer && { peer }),
    ...(client && { client }),
    ...(upstream && { [kind === "reply_failed" ? "address" : "upstream"]: upstream }),
    ...(refused && { refusal }),
    ...(refused && kind !== "peer_refused" && !isOfClient(refusal) &&
      {
        came: kind === "header_timeout" && value === 0
          ? `nothing for ${settings.headerTimeout} s`
          : came,
      }),
    ...(value && { value }),
    ...(leftOut && { left_out: leftOut }),
    ...(errno && { error: errorName(errno) }),
  });
}

/** E2BIG. */
const TOO_MANY = 7;

function sentence(event: NativeEvent, settings: Settings): string {
  const { kind, refusal, errno, value, leftOut, came } = event;
  const peer = event.peer ?? "a peer";
  const client = event.client ?? "the proxy's own address";
  const upstream = event.upstream ?? "the upstream";
  switch (kind) {
    case "header_refused":
      return refusal === "incomplete"
        ? `Closed ${peer}: connection ended before the PROXY header was complete (${came})`
        : refusal === "not_proxy"
        ? `Closed ${peer}: expected a PROXY header, received ${came} (${REASONS[refusal]})`
        : `Closed ${peer}: invalid PROXY header: ${came} (${REASONS[refusal]})`;
    case "header_timeout":
      return value === 0
        ? `Closed ${peer}: no PROXY header: received nothing for ${settings.headerTimeout} s`
        : `Closed ${peer}: incomplete PROXY header after ${settings.headerTimeout} s; received only ${came}`;
    case "client_refused":
      return `Refused ${peer}: ${clientReason(event)}`;
    case "forwarding_loop":
      if (settings.upstream === "destination") {
        return `Refused ${peer}: the header's destination for client ${client} is ${upstream}, where mmproxy itself listens; see docs/trust.md`;
      }
      return `Refused ${peer}: ${upstream} is now an address of this host on which mmproxy itself listens; choose another listen port, or set the upstream to the server itself`;
    case "addresses_unknown":
      return errno === TOO_MANY
        ? "This host has too many addresses to cache; mmproxy queries the kernel for each client instead"
        : `Cannot list this host's addresses (${
          errorText(errno)
        }); mmproxy queries the kernel for each client instead. To avoid this, allow AF_NETLINK (RestrictAddressFamilies=)`;
    case "header_evicted":
      return `Closed ${peer} to free a slot: its PROXY header was incomplete (${came}), and its peer had the most such connections (${value}); if the peer is your load balancer, raise the limit on open files (LimitNOFILE=, ulimit -n); if not, restrict --allowed-subnets`;
    case "mostly_silent":
      return `Most connections send no PROXY header: ${value} of the most recent ones timed out without a byte; if the upstream sends first, the load balancer must send the header immediately (AWS NLB: proxy_protocol_v2.client_to_server.header_placement=on_first_ack)`;
    case "peer_refused":
      if (refusal === "too_many_connections") return `Refused ${peer}: ${REASONS[refusal]}`;
      return `Refused ${peer}: it is not in the allowed subnets; if it is your load balancer, add it to ${
        subnetsPlace(settings)
      }`;
    case "connect_failed":
      return `Cannot connect to ${upstream} as ${client}: ${connectProblem(errno, settings)}`;
    case "ports_exhausted":
      return `Cannot connect to ${upstream} as ${client}: no free source port: every port in net.ipv4.ip_local_port_range is in use or in TIME_WAIT for this pair of addresses; widen the range, or set net.ipv4.tcp_tw_reuse=1`;
    case "port_fallback":
      return `Connected to ${upstream} as ${client} from an ephemeral port: ${
        value === 0 ? "the header gives client port 0" : `client port ${value} is in use`
      }`;
    case "accept_paused":
      return `Accepting paused for ${value} ms: ${
        errorText(errno)
      }; raise the limit on open files (LimitNOFILE=, ulimit -n)`;
    case "reply_failed":
      return `Dropped replies to ${peer}: cannot send them from ${upstream}, to which it had sent: ${
        replyProblem(errno)
      }`;
    case "family_unavailable":
      return `Refusing IPv${value} clients: IPv${value} is not available on this host`;
    case "connection_opened":
      return `Relaying ${peer} to ${upstream} as ${client}`;
    case "connection_closed":
      return `Stopped relaying ${peer} to ${upstream} as ${client}${
        errno ? `: ${errorText(errno)}` : ""
      }`;
    case "datagrams_refused":
      if (refusal === "peer_not_allowed") {
        return `Dropped ${count(1 + leftOut)} from ${peer}: it is not in the allowed subnets`;
      }
      return `Dropped ${count(1 + leftOut)}${leftOut > 0 ? ", the last" : ""} from ${peer}: ${
        isOfClient(refusal) ? clientReason(event) : `received ${came} (${datagramReason(event)})`
      }`;
    case "flow_opened":
      return `Opened a flow for ${client} to ${upstream}, from ${peer}`;
    case "flow_closed":
      return `Closed the flow of ${client} to ${upstream}`;
    case "flow_failed":
      return `Cannot open a flow to ${upstream} as ${client}: ${connectProblem(errno, settings)}`;
    case "flows_full":
      if (refusal === "too_many_flows") {
        return `Evicted the UDP flow that was idle the longest: ${REASONS[refusal]} (${value})`;
      }
      return `The UDP flow table is full (${value}): the flows idle the longest are evicted for new ones; raise the limit on open files (LimitNOFILE=, ulimit -n) or lower --close-after`;
    case "events_lost":
      return `${value} log lines were lost: events arrived faster than they could be written`;
  }
}

/** Why a transparent listener cannot reply from an address, and what to do. */
function replyProblem(errno: number): string {
  switch (ERRORS.get(errno)?.name) {
    case "EADDRINUSE":
      return `${
        errorText(errno)
      }: another socket of this host has it; bind that server to 127.0.0.1 or ::1`;
    case "EMFILE":
    case "ENFILE":
      return `${errorText(errno)}; raise the limit on open files (LimitNOFILE=, ulimit -n)`;
    default:
      return errorText(errno);
  }
}

/** Where the operator names the peers that are let in. */
function subnetsPlace({ allowedSubnets }: Settings): string {
  return allowedSubnets?.kind === "file" ? allowedSubnets.path : "its trust or allowed-subnets";
}

/** Why a client or its destination is refused. */
function clientReason({ refusal, client, upstream }: NativeEvent): string {
  // The port is shown only if it is part of the reason.
  const address = client?.replace(/^\[?(.*?)\]?:\d+$/, "$1") ?? "of its header";
  switch (refusal) {
    case "client_family": {
      const family = address.includes(":") ? 6 : 4;
      return `client ${address} is IPv${family}, and no --ipv${family} upstream is set; further IPv${family} clients are counted but not logged`;
    }
    case "client_is_listener":
      return `client ${client ?? address} is ${REASONS[refusal]}; see docs/trust.md`;
    case "source_mismatch":
      return `the connection to ${
        upstream ?? "the upstream"
      } would have had another source address than client ${address}; see docs/trust.md`;
    case "destination_not_allowed":
      return `client ${client ?? address} is not allowed to reach ${
        upstream ?? "an address of another family"
      }: ${REASONS[refusal]}; see docs/trust.md`;
    case "no_destination":
      return REASONS[refusal];
    case "too_many_of_client":
      return `client ${address} has ${REASONS[refusal]}`;
    case "too_many_flows":
      return `no flow for client ${client ?? address}: ${REASONS[refusal]}`;
    case "forwarding_loop":
      return `${
        REASONS[refusal]
      }: choose another listen port, or set the upstream to the server itself`;
    default:
      return `client ${address} is ${REASONS[refusal]}; see docs/trust.md`;
  }
}

/** A datagram may have another kind of header than `--udp-header` expects. */
function datagramReason({ refusal, came }: NativeEvent): string {
  const isSpp = came.startsWith("Simple Proxy Protocol");
  if (isSpp && (refusal === "not_proxy" || refusal === "no_session")) return "see --udp-header spp";
  if (refusal === "spp_magic" && came.startsWith("PROXY v")) return "see --udp-header";
  if (refusal === "not_proxy") {
    return "not a PROXY header: does the sender add one to every datagram? If only to the first, use --udp-header session";
  }
  return REASONS[refusal];
}

function count(datagrams: number): string {
  return datagrams === 1 ? "a datagram" : `${datagrams} datagrams`;
}

/** Each reason in words; the names are those of counters and JSON. */
const REASONS: Record<(typeof REFUSALS)[number], string> = {
  none: "no reason",
  not_proxy: "not a PROXY header: is the sender configured to send one?",
  v1_too_long: "version 1: no CRLF within 107 bytes",
  v1_lone_line_end: "version 1: a lone CR or LF",
  v1_protocol: "version 1: protocol is not TCP4, TCP6 or UNKNOWN",
  v1_syntax: "version 1: not five fields with single spaces",
  v1_address: "version 1: a malformed address",
  v1_port: "version 1: a malformed port",
  v2_version: "version 2: unsupported version number",
  v2_command: "version 2: command is not LOCAL or PROXY",
  v2_family: "version 2: an unknown address family",
  v2_transport: "version 2: an unknown transport",
  v2_short_address: "version 2: length is shorter than the address block",
  v2_tlv: "version 2: a malformed TLV",
  v2_checksum: "version 2: the CRC32c does not match",
  v1_mixed_families:
    "version 1: an address does not match the line's family (nginx sends this behind another proxy); see docs/trust.md",
  client_unspecified: "the unspecified address",
  client_this_network: 'in 0.0.0.0/8 ("this network"), which is not a host address',
  client_multicast: "a multicast address",
  client_broadcast: "the broadcast address",
  client_reserved: "in 240.0.0.0/4, which is reserved",
  client_link_local: "a link-local address, and a PROXY header cannot carry its interface",
  client_loopback: "a loopback address, and the peer is not on this host",
  client_own_address: "an address of this host, and the peer is not on this host",
  client_subnet_broadcast: "the broadcast address of a subnet of this host",
  client_anycast: "an anycast address of this host",
  client_is_listener: "an address on which mmproxy or its upstream listens",
  client_family: "of an address family without an upstream",
  source_mismatch: "not the source address that the kernel would use",
  forwarding_loop: "the upstream is mmproxy itself",
  spp_short: "Simple Proxy Protocol: shorter than 38 bytes",
  spp_magic: "not a Simple Proxy Protocol header: is the sender configured to send one?",
  incomplete: "the header is not complete",
  timeout: "too late",
  peer_not_allowed: "not in the allowed subnets",
  no_session: "no session: a peer's first datagram must carry a header",
  datagram_too_long: "longer than the largest UDP datagram",
  decoder: "the decoder failed: please report it",
  evicted: "evicted to free a slot",
  destination_not_allowed: "the address is not in allowed-destinations",
  no_destination:
    "its header carries no addresses, so there is no destination; set ipv4 or ipv6 as the upstream for such connections",
  too_many_of_client: "reached max-connections-per-client",
  too_many_connections: "the listener has reached max-connections",
  too_many_flows: "the listener has reached max-flows",
};

const ROUTES = "to see what is missing, run mmproxy routes show with the same flags";

/** Why the service was not reached, and what to do; an `errno` of 0 is a timeout. */
export function connectProblem(errno: number, settings: Pick<Settings, "connectTimeout">): string {
  switch (errno && ERRORS.get(errno)?.name) {
    case 0:
      return `no answer within ${settings.connectTimeout} s: the upstream's replies to clients must be routed back to this host; ${ROUTES}`;
    case "ECONNREFUSED":
      return `${
        errorText(errno)
      }: is the upstream running, or does a firewall (for example fail2ban) reject this client?`;
    case "EPERM":
    case "EACCES":
      return `${errorText(errno)}: CAP_NET_RAW or CAP_NET_ADMIN is needed`;
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "EINVAL":
      return `${errorText(errno)}: ${ROUTES}`;
    default:
      return errorText(errno);
  }
}

/** The errors that sockets are known to have (errno(3), Linux). */
const ERRORS = new Map([
  [1, { name: "EPERM", text: "operation not permitted" }],
  [12, { name: "ENOMEM", text: "out of memory" }],
  [13, { name: "EACCES", text: "permission denied" }],
  [22, { name: "EINVAL", text: "invalid argument" }],
  [23, { name: "ENFILE", text: "too many open files in the system" }],
  [24, { name: "EMFILE", text: "too many open files" }],
  [32, { name: "EPIPE", text: "broken pipe" }],
  [97, { name: "EAFNOSUPPORT", text: "address family not supported" }],
  [98, { name: "EADDRINUSE", text: "address in use" }],
  [99, { name: "EADDRNOTAVAIL", text: "address not available" }],
  [101, { name: "ENETUNREACH", text: "network unreachable" }],
  [104, { name: "ECONNRESET", text: "connection reset" }],
  [105, { name: "ENOBUFS", text: "no buffer space" }],
  [110, { name: "ETIMEDOUT", text: "timed out" }],
  [111, { name: "ECONNREFUSED", text: "connection refused" }],
  [113, { name: "EHOSTUNREACH", text: "no route to host" }],
]);

/** An error's name, as ECONNRESET. */
export function errorName(errno: number): string {
  return ERRORS.get(errno)?.name ?? `errno ${errno}`;
}

/** An errno in words, with its name. */
export function errorText(errno: number): string {
  const known = ERRORS.get(errno);
  return known ? `${known.text} (${known.name})` : `error ${errno}`;
}
