/** What a service is started with: one checked, immutable value, and every default. */
import { ENDPOINT, type Level, Protocol, type UdpHeader } from "../native/layout.ts";

/** An IP address and port. */
export interface Address {
  readonly family: 4 | 6;
  /** Network byte order: 4 or 16 bytes. */
  readonly bytes: readonly number[];
  readonly port: number;
  /** The interface's number of a link-local IPv6 address, or 0. */
  readonly scope: number;
  /** As it was written. */
  readonly text: string;
}

export type ProtocolName = "tcp" | "udp" | "both";
export type Transport = Exclude<ProtocolName, "both">;
export type UdpHeaderName = keyof typeof UdpHeader;
export type LevelName = keyof typeof Level;
export type LogFormat = "text" | "json";
export type SandboxMode = "auto" | "on" | "off";

/** Everything that the command line decides. Times are in seconds. */
export interface Options {
  /** Where IPv4 clients go; without one they are refused. One of the two is there. */
  readonly ipv4?: Address;
  /** Where IPv6 clients go. */
  readonly ipv6?: Address;
  /** The path of the subnet file; without one every peer may send headers. */
  readonly allowedSubnets?: string;
  readonly closeAfter: number;
  readonly listenAddr: Address;
  readonly listeners: number;
  readonly protocol: ProtocolName;
  readonly mark: number;
  readonly headerTimeout: number;
  readonly connectTimeout: number;
  /** Silence of a TCP connection after which its host is asked; 0 leaves it to the system. */
  readonly keepalive: number;
  /** How long a relayed TCP connection may carry nothing; 0 is for ever. */
  readonly idleTimeout: number;
  /** How long connections may go on once no new ones are taken. */
  readonly drainTimeout: number;
  /** How long new connections are taken after the signal to stop. */
  readonly shutdownDelay: number;
  readonly udpHeader: UdpHeaderName;
  readonly logLevel: LevelName;
  readonly logFormat: LogFormat;
  /** Set the routing that replies need at the start, and remove it at a clean stop. */
  readonly autoRoutes: boolean;
  /** The routing table for that. */
  readonly table: number;
  /** `auto`: as much of the sandbox as can be had; `on`: all of it, or no start. */
  readonly sandbox: SandboxMode;
  /** Where metrics are served; without one they are not. */
  readonly metricsAddr?: Address;
}

/** The defaults, as they are typed on the command line. */
export const DEFAULTS = {
  ipv4: "127.0.0.1:443",
  ipv6: "[::1]:443",
  closeAfter: "60",
  listenAddr: "0.0.0.0:8443",
  listeners: "1",
  protocol: "tcp",
  mark: "0",
  headerTimeout: "10",
  connectTimeout: "5",
  keepalive: "15",
  idleTimeout: "0",
  drainTimeout: "10",
  shutdownDelay: "0",
  udpHeader: "datagram",
  logLevel: "info",
  logFormat: "text",
  table: "123",
  sandbox: "auto",
} as const;

/** Names to protocols' bits. */
export const PROTOCOLS: Record<ProtocolName, number> = {
  tcp: Protocol.tcp,
  udp: Protocol.udp,
  both: Protocol.tcp | Protocol.udp,
};

/** What a protocol's name stands for. */
export function transportsOf(protocol: ProtocolName): Transport[] {
  return protocol === "both" ? ["tcp", "udp"] : [protocol];
}

type Services = Pick<Options, "ipv4" | "ipv6">;

/** The services that the command line means: one or two. */
export function servicesOf({ ipv4, ipv6 }: Services): Address[] {
  return [ipv4, ipv6].filter((service) => service !== undefined);
}

/** The families whose clients are refused, because no upstream is named for them. */
export function refusedFamilies({ ipv4, ipv6 }: Services): (4 | 6)[] {
  return [...(ipv4 ? [] : [4 as const]), ...(ipv6 ? [] : [6 as const])];
}

/** `IPv6 clients are refused: no --ipv6 upstream`. */
export function refusedSentence(family: 4 | 6): string {
  return `IPv${family} clients are refused: no --ipv${family} upstream`;
}

/** Whether both services are at their defaults: then each family is meant as far as the host has it. */
export function hasDefaultServices({ ipv4, ipv6 }: Services): boolean {
  return ipv4?.text === DEFAULTS.ipv4 && ipv6?.text === DEFAULTS.ipv6;
}

/** Descriptors that the runtime and each listener need for themselves. */
const RESERVED_FILES = 48;
const RESERVED_FILES_A_LISTENER = 12;
/** Connections that the metrics port has at once. */
export const METRICS_CONNECTIONS = 32;
/** Those, the port itself, and the sockets with which readiness tries the upstreams. */
const RESERVED_FILES_FOR_METRICS = METRICS_CONNECTIONS + 3;
const MOST_FLOWS = 65_536;
/** Each may hold 1 MiB while its reader stalls. */
const MOST_PIPES = 1024;
const FILES_A_PIPE = 2;
const FILES_A_CONNECTION = 2;
/** The part of TCP's descriptors that is for pipes. */
const SHARE_OF_PIPES = 1 / 8;
/** So few are tried even where the reckoning leaves none. */
const FEWEST = 4;

/**
 * How many UDP flows, TCP connections and pipes there may be at once. A flow takes one file descriptor, a
 * connection two; a connection that cannot get its second one would be lost, so it is not accepted. Two
 * pipes more for each would be too many to set aside: there are fewer, and who gets none is copied.
 *
 * @param fileLimit the limit of open files
 */
export function limits(
  { protocol, listeners, metricsAddr }: Pick<Options, "protocol" | "listeners" | "metricsAddr">,
  fileLimit: number,
): { flows: number; connections: number; pipes: number } {
  const metrics = metricsAddr ? RESERVED_FILES_FOR_METRICS : 0;
  const free = fileLimit - RESERVED_FILES - RESERVED_FILES_A_LISTENER * listeners - metrics;
  const share = protocol === "both" ? free / 2 : free;
  const pipes = Math.floor(Math.max(0, share) * SHARE_OF_PIPES / FILES_A_PIPE);
  const lent = Math.min(MOST_PIPES, pipes);
  return {
    flows: Math.max(FEWEST, Math.min(MOST_FLOWS, Math.floor(share))),
    connections: Math.max(FEWEST, Math.floor((share - lent * FILES_A_PIPE) / FILES_A_CONNECTION)),
    pipes: lent,
  };
}

/** Records are in host byte order. */
export const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** The `Endpoint` record of an address. */
export function encodeEndpoint(address: Address): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(ENDPOINT.size);
  writeEndpoint(new DataView(record.buffer), 0, address);
  return record;
}

/** Writes an address and port as the `Endpoint` record at `offset`. */
export function writeEndpoint(view: DataView, offset: number, address: Address): void {
  view.setUint8(offset + ENDPOINT.family, address.family);
  view.setUint16(offset + ENDPOINT.port, address.port, LITTLE_ENDIAN);
  view.setUint32(offset + ENDPOINT.scope, address.scope, LITTLE_ENDIAN);
  address.bytes.forEach((byte, index) => view.setUint8(offset + ENDPOINT.address + index, byte));
}
