/** Conversion of rules and routes to the native core's records, and back. */
import { formatAddress } from "../config/address.ts";
import { LITTLE_ENDIAN, writeEndpoint } from "../config/options.ts";
import {
  ENDPOINT,
  REACH,
  Reach as ReachCode,
  REPLY,
  REPLY_QUERY,
  ROUTING,
  Routing,
} from "../native/layout.ts";
import { PROBE_CLIENTS } from "../native/probe.ts";
import {
  type Family,
  ORIGIN,
  type Present,
  type Reach,
  type Reply,
  type ReplyRoute,
  type Route,
  type Rule,
} from "./plan.ts";

/** The IP protocols' numbers. */
const TRANSPORTS = { tcp: 6, udp: 17 } as const;
/** All of the routes that are set lead here. */
const LOOPBACK = "lo";

/** The `RoutingRecord` of a rule or route that is to be added, or of one that is there. */
export function encodeRouting(entry: Rule | Route | Present): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(ROUTING.size);
  const view = new DataView(record.buffer);
  view.setUint8(ROUTING.kind, Routing[entry.kind]);
  view.setUint8(ROUTING.family, entry.family);
  view.setUint8(ROUTING.origin, "origin" in entry ? entry.origin : ORIGIN);
  view.setUint32(ROUTING.table, entry.table, LITTLE_ENDIAN);
  const priority = "priority" in entry ? entry.priority ?? 0 : 0;
  view.setUint32(ROUTING.priority, priority, LITTLE_ENDIAN);
  const from = entry.kind === "rule"
    ? entry.from
    : entry.source && { bytes: entry.source, length: 8 * entry.source.length };
  if (from) {
    view.setUint8(ROUTING.source_length, from.length);
    record.set(from.bytes, ROUTING.address);
  }
  const device = entry.kind === "rule" ? entry.device : LOOPBACK;
  record.set(new TextEncoder().encode(device), ROUTING.device);
  if (entry.kind === "rule") {
    view.setUint8(ROUTING.ip_protocol, entry.transport ? TRANSPORTS[entry.transport] : 0);
    view.setUint16(ROUTING.port, entry.ports?.first ?? 0, LITTLE_ENDIAN);
    view.setUint16(ROUTING.last_port, entry.ports?.last ?? 0, LITTLE_ENDIAN);
    view.setUint32(ROUTING.mark, entry.mark ?? 0, LITTLE_ENDIAN);
  }
  return record;
}

/** The rules and routes of a listing. */
export function decodeRouting(records: Uint8Array<ArrayBuffer>): Present[] {
  const entries: Present[] = [];
  for (let offset = 0; offset < records.length; offset += ROUTING.size) {
    entries.push(decodeOne(records.subarray(offset, offset + ROUTING.size)));
  }
  return entries;
}

function decodeOne(record: Uint8Array<ArrayBuffer>): Present {
  const view = new DataView(record.buffer, record.byteOffset, record.length);
  const family: Family = view.getUint8(ROUTING.family) === 4 ? 4 : 6;
  const length = view.getUint8(ROUTING.source_length);
  const bytes = [...record.subarray(ROUTING.address, ROUTING.address + (family === 4 ? 4 : 16))];
  const device = textAt(record, ROUTING.device);
  const common = {
    family,
    table: view.getUint32(ROUTING.table, LITTLE_ENDIAN),
    origin: view.getUint8(ROUTING.origin),
    priority: view.getUint32(ROUTING.priority, LITTLE_ENDIAN),
  };
  const other = view.getUint8(ROUTING.other) !== 0;
  if (view.getUint8(ROUTING.kind) === Routing.route) {
    const source = length > 0 ? { source: bytes } : {};
    return { kind: "route", ...common, ...source, other: other || device !== LOOPBACK };
  }
  const mark = view.getUint32(ROUTING.mark, LITTLE_ENDIAN);
  const first = view.getUint16(ROUTING.port, LITTLE_ENDIAN);
  const last = view.getUint16(ROUTING.last_port, LITTLE_ENDIAN);
  const protocol = view.getUint8(ROUTING.ip_protocol);
  const transport = protocol === TRANSPORTS.tcp
    ? "tcp"
    : protocol === TRANSPORTS.udp
    ? "udp"
    : undefined;
  return {
    kind: "rule",
    ...common,
    device,
    ...(length > 0 && { from: { bytes, length } }),
    ...(mark !== 0 && { mark }),
    ...(first !== 0 && { ports: { first, last } }),
    ...(transport && { transport }),
    other: other || (protocol !== 0 && !transport),
  };
}

/** How a service's address is reached, from a `ReachRecord`. */
export function decodeReach(record: Uint8Array<ArrayBuffer>): Reach {
  const view = new DataView(record.buffer, record.byteOffset, record.length);
  switch (view.getUint8(REACH.kind)) {
    case ReachCode.local:
      return { kind: "local" };
    case ReachCode.remote:
      return {
        kind: "remote",
        device: textAt(record, REACH.device),
        ...addressAt(record, REACH.gateway, "gateway"),
        ...addressAt(record, REACH.source, "source"),
      };
    default:
      return { kind: "none" };
  }
}

/** The `ReplyQuery` of a reply, to a client that no host is. */
export function encodeReply({ rule, source, port, transport }: Reply): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(REPLY_QUERY.size);
  const view = new DataView(record.buffer);
  const { family, mark = 0, device } = rule;
  writeEndpoint(view, REPLY_QUERY.client, PROBE_CLIENTS[family]);
  writeEndpoint(view, REPLY_QUERY.source, { family, bytes: source, port, scope: 0 });
  view.setUint32(REPLY_QUERY.ip_protocol, TRANSPORTS[transport], LITTLE_ENDIAN);
  view.setUint32(REPLY_QUERY.mark, mark, LITTLE_ENDIAN);
  record.set(new TextEncoder().encode(device), REPLY_QUERY.device);
  return record;
}

/** Which way a reply takes, from a `ReplyRecord`. */
export function decodeReplyRoute(record: Uint8Array<ArrayBuffer>): ReplyRoute {
  const view = new DataView(record.buffer, record.byteOffset, record.length);
  const rule = {
    priority: view.getUint32(REPLY.priority, LITTLE_ENDIAN),
    table: view.getUint32(REPLY.lookup, LITTLE_ENDIAN),
  };
  return {
    isLocal: view.getUint8(REPLY.kind) === ReachCode.local,
    device: textAt(record, REPLY.device),
    ...(view.getUint8(REPLY.ruled) !== 0 && { rule }),
  };
}

function addressAt<Name extends string>(
  record: Uint8Array,
  offset: number,
  name: Name,
): { [name in Name]?: string } {
  const family = record[offset + ENDPOINT.family] ?? 0;
  if (family === 0) return {};
  const bytes = record.subarray(offset + ENDPOINT.address, offset + ENDPOINT.address + 16);
  return { [name]: formatAddress(family, bytes) } as { [name in Name]?: string };
}

/** Text that ends in a zero. */
function textAt(record: Uint8Array, offset: number): string {
  const rest = record.subarray(offset, offset + 16);
  return new TextDecoder().decode(rest.subarray(0, rest.indexOf(0)));
}
