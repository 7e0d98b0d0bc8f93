/** The records with which the native core's proxy and listeners are opened. */
import type { ConfigurationRecords } from "../native/library.ts";
import {
  DESTINATION,
  ENDPOINT,
  HeaderRule,
  Level,
  LISTENER,
  LISTENER_CONFIG,
  PORT,
  PortFlag,
  PROXY_CONFIG,
  TRUST,
  UdpHeader,
} from "../native/layout.ts";
import type { Destination } from "./destinations.ts";
import type { ListenerConfig, ProxyConfig } from "./model.ts";
import { type Address, LITTLE_ENDIAN, PROTOCOLS, writeEndpoint } from "./options.ts";
import type { ListenPort } from "./ports.ts";
import type { TrustRule } from "./trust.ts";

/** The `ProxyConfig` record. */
export function encodeProxy(
  { metricsAddr, logLevel, control }: Pick<ProxyConfig, "metricsAddr" | "logLevel" | "control">,
  workers: number,
): Uint8Array<ArrayBuffer> {
  const [record, view, number] = newRecord(PROXY_CONFIG.size);
  // A record of zeroes is not an address.
  if (metricsAddr) writeEndpoint(view, PROXY_CONFIG.metrics, metricsAddr);
  number(PROXY_CONFIG.log_level, Level[logLevel]);
  number(PROXY_CONFIG.workers, workers);
  // Only the control socket shows what a flow has carried.
  number(PROXY_CONFIG.counts_traffic, control === undefined ? 0 : 1);
  return record;
}

/** The settings of a listener apart from its ports. Times are in seconds. */
export type ListenerTerms = Pick<
  ListenerConfig,
  | "udpHeader"
  | "mark"
  | "headerTimeout"
  | "connectTimeout"
  | "closeAfter"
  | "keepalive"
  | "idleTimeout"
  | "optionalWait"
  | "maxConnections"
  | "maxFlows"
  | "maxConnectionsPerClient"
>;

/** Writes the `ListenerConfig` record. `restricted`: only peers in the rules may connect. */
function writeListener(
  view: DataView,
  at: number,
  terms: ListenerTerms,
  restricted: boolean,
): void {
  const number = (offset: number, value: number) =>
    view.setUint32(at + offset, value, LITTLE_ENDIAN);
  number(LISTENER_CONFIG.udp_header, UdpHeader[terms.udpHeader]);
  number(LISTENER_CONFIG.mark, terms.mark);
  number(LISTENER_CONFIG.header_timeout_ms, terms.headerTimeout * 1000);
  number(LISTENER_CONFIG.connect_timeout_ms, terms.connectTimeout * 1000);
  number(LISTENER_CONFIG.close_after_ms, terms.closeAfter * 1000);
  number(LISTENER_CONFIG.keepalive_ms, terms.keepalive * 1000);
  number(LISTENER_CONFIG.idle_timeout_ms, terms.idleTimeout * 1000);
  number(LISTENER_CONFIG.optional_wait_ms, terms.optionalWait * 1000);
  number(LISTENER_CONFIG.max_connections_per_client, terms.maxConnectionsPerClient ?? 0);
  number(LISTENER_CONFIG.max_connections, terms.maxConnections ?? 0);
  number(LISTENER_CONFIG.max_flows, terms.maxFlows ?? 0);
  number(LISTENER_CONFIG.restricted, restricted ? 1 : 0);
}

/** A listener of a whole configuration. */
export interface ListenerEntry {
  /** Its number in the native core; none for a new one. */
  readonly id?: number;
  readonly terms: ListenerTerms;
  readonly ports: readonly ListenPort[];
  /** `TrustRecord`s of the peers that may connect; without them all may send headers. */
  readonly rules?: Uint8Array<ArrayBuffer>;
  /** `DestinationRecord`s of where headers may lead. */
  readonly destinations?: Uint8Array<ArrayBuffer>;
}

/** The records of a whole configuration. */
export function encodeListeners(entries: readonly ListenerEntry[]): ConfigurationRecords {
  const [listeners, view, number] = newRecord(entries.length * LISTENER.size);
  entries.forEach(({ id, terms, ports, rules, destinations }, index) => {
    const at = index * LISTENER.size;
    number(at + LISTENER.id, id ?? 0);
    number(at + LISTENER.ports, ports.length);
    number(at + LISTENER.rules, (rules?.length ?? 0) / TRUST.size);
    number(at + LISTENER.destinations, (destinations?.length ?? 0) / DESTINATION.size);
    writeListener(view, at + LISTENER.config, terms, rules !== undefined);
  });
  return {
    listeners,
    ports: encodePorts(entries.flatMap(({ ports }) => ports)),
    rules: concat(entries.flatMap(({ rules }) => rules ?? [])),
    destinations: concat(entries.flatMap(({ destinations }) => destinations ?? [])),
  };
}

function concat(parts: readonly Uint8Array<ArrayBuffer>[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let end = 0;
  for (const records of parts) {
    all.set(records, end);
    end += records.length;
  }
  return all;
}

/** A `TrustRecord` for each rule. */
export function encodeTrust(rules: readonly TrustRule[]): Uint8Array<ArrayBuffer> {
  const [records, , number] = newRecord(rules.length * TRUST.size);
  rules.forEach(({ from, header }, index) => {
    const at = index * TRUST.size;
    records.set(from.bytes, at + TRUST.address);
    number(at + TRUST.prefix, from.prefix);
    number(at + TRUST.header, HeaderRule[header]);
  });
  return records;
}

/** A `DestinationRecord` for each entry. */
export function encodeDestinations(entries: readonly Destination[]): Uint8Array<ArrayBuffer> {
  const [records, view, number] = newRecord(entries.length * DESTINATION.size);
  entries.forEach(({ subnet, ports }, index) => {
    const at = index * DESTINATION.size;
    records.set(subnet.bytes, at + DESTINATION.address);
    number(at + DESTINATION.prefix, subnet.prefix);
    view.setUint16(at + DESTINATION.first_port, ports.first, LITTLE_ENDIAN);
    view.setUint16(at + DESTINATION.last_port, ports.last, LITTLE_ENDIAN);
  });
  return records;
}

/** The `PortRecord`s of a listener. */
export function encodePorts(ports: readonly ListenPort[]): Uint8Array<ArrayBuffer> {
  const [records, view, number] = newRecord(ports.length * PORT.size);
  ports.forEach((port, index) => {
    const { listen, ipv4, ipv6, byDestination, protocol, onlyV6, transparent } = port;
    const at = index * PORT.size;
    writeEndpoint(view, at + PORT.listen, listen);
    if (ipv4) writeEndpoint(view, at + PORT.upstream4, ipv4);
    if (ipv6) writeEndpoint(view, at + PORT.upstream6, ipv6);
    number(at + PORT.protocols, PROTOCOLS[protocol]);
    const flags = (onlyV6 ? PortFlag.only_v6 : 0) |
      (byDestination ? PortFlag.destination : 0) |
      (transparent ? PortFlag.transparent : 0);
    number(at + PORT.flags, flags);
  });
  return records;
}

/** The `Endpoint` record of an address; an empty one without. */
export function encodeAnyEndpoint(address: Address | undefined): Uint8Array<ArrayBuffer> {
  const [record, view] = newRecord(ENDPOINT.size);
  if (address) writeEndpoint(view, 0, address);
  return record;
}

function newRecord(
  size: number,
): [Uint8Array<ArrayBuffer>, DataView, (offset: number, value: number) => void] {
  const record = new Uint8Array(size);
  const view = new DataView(record.buffer);
  return [record, view, (offset, value) => view.setUint32(offset, value, LITTLE_ENDIAN)];
}
