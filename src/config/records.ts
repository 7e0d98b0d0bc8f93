/** The records with which the native core's proxy and listeners are opened. */
import type { ConfigurationRecords } from "../native/library.ts";
import {
  ENDPOINT,
  Level,
  LISTENER,
  LISTENER_CONFIG,
  PORT,
  PortFlag,
  PROXY_CONFIG,
  SUBNET,
  UdpHeader,
} from "../native/layout.ts";
import type { Limits } from "./limits.ts";
import type { ListenerConfig, ProxyConfig } from "./model.ts";
import { type Address, LITTLE_ENDIAN, PROTOCOLS, writeEndpoint } from "./options.ts";
import type { ListenPort } from "./ports.ts";

/** The `ProxyConfig` record. */
export function encodeProxy(
  { metricsAddr, logLevel, control }: Pick<ProxyConfig, "metricsAddr" | "logLevel" | "control">,
  workers: number,
  { flows, connections, pipes }: Limits,
): Uint8Array<ArrayBuffer> {
  const [record, view, number] = newRecord(PROXY_CONFIG.size);
  // A record of zeroes is no address.
  if (metricsAddr) writeEndpoint(view, PROXY_CONFIG.metrics, metricsAddr);
  number(PROXY_CONFIG.log_level, Level[logLevel]);
  number(PROXY_CONFIG.workers, workers);
  number(PROXY_CONFIG.max_flows, flows);
  number(PROXY_CONFIG.max_connections, connections);
  number(PROXY_CONFIG.max_pipes, pipes);
  // Only whoever asks by the control socket sees what a flow has carried.
  number(PROXY_CONFIG.counts_traffic, control === undefined ? 0 : 1);
  return record;
}

/** What a listener is told beside its ports. Times are in seconds. */
export type ListenerTerms = Pick<
  ListenerConfig,
  | "udpHeader"
  | "mark"
  | "headerTimeout"
  | "connectTimeout"
  | "closeAfter"
  | "keepalive"
  | "idleTimeout"
>;

/**
 * The `ListenerConfig` record.
 *
 * @param restricted nobody may send headers but whom `setSubnets` names
 */
export function encodeListener(
  terms: ListenerTerms,
  restricted: boolean,
): Uint8Array<ArrayBuffer> {
  const [record, view] = newRecord(LISTENER_CONFIG.size);
  writeListener(view, 0, terms, restricted);
  return record;
}

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
  number(LISTENER_CONFIG.restricted, restricted ? 1 : 0);
}

/** A listener of a whole configuration. */
export interface ListenerEntry {
  /** Its number in the native core; none for a new one. */
  readonly id?: number;
  readonly terms: ListenerTerms;
  readonly ports: readonly ListenPort[];
  /** `SubnetRecord`s of the peers that may send headers; without them all may. */
  readonly subnets?: Uint8Array<ArrayBuffer>;
}

/** The records of a whole configuration. */
export function encodeListeners(entries: readonly ListenerEntry[]): ConfigurationRecords {
  const [listeners, view, number] = newRecord(entries.length * LISTENER.size);
  entries.forEach(({ id, terms, ports, subnets }, index) => {
    const at = index * LISTENER.size;
    number(at + LISTENER.id, id ?? 0);
    number(at + LISTENER.ports, ports.length);
    number(at + LISTENER.subnets, (subnets?.length ?? 0) / SUBNET.size);
    writeListener(view, at + LISTENER.config, terms, subnets !== undefined);
  });
  const subnets = entries.map((entry) => entry.subnets ?? new Uint8Array());
  const all = new Uint8Array(subnets.reduce((sum, { length }) => sum + length, 0));
  let end = 0;
  for (const records of subnets) {
    all.set(records, end);
    end += records.length;
  }
  return { listeners, ports: encodePorts(entries.flatMap(({ ports }) => ports)), subnets: all };
}

/** The `PortRecord`s of a listener. */
export function encodePorts(ports: readonly ListenPort[]): Uint8Array<ArrayBuffer> {
  const [records, view, number] = newRecord(ports.length * PORT.size);
  ports.forEach(({ listen, ipv4, ipv6, protocol, onlyV6 }, index) => {
    const at = index * PORT.size;
    writeEndpoint(view, at + PORT.listen, listen);
    if (ipv4) writeEndpoint(view, at + PORT.upstream4, ipv4);
    if (ipv6) writeEndpoint(view, at + PORT.upstream6, ipv6);
    number(at + PORT.protocols, PROTOCOLS[protocol]);
    number(at + PORT.flags, onlyV6 ? PortFlag.only_v6 : 0);
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
