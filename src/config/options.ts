/** Values and defaults of the options, and addresses in the native core's form. */
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
export type OffloadMode = "auto" | "off";
/** `auto`: colours on a terminal, unless the environment has NO_COLOR. */
export type ColorMode = "auto" | "always" | "never";

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
  upgradeDrain: "300",
  udpHeader: "datagram",
  logLevel: "info",
  logFormat: "text",
  color: "auto",
  table: "123",
  sandbox: "auto",
  offload: "off",
} as const;

/** Names to protocols' bits. */
export const PROTOCOLS: Record<ProtocolName, number> = {
  tcp: Protocol.tcp,
  udp: Protocol.udp,
  both: Protocol.tcp | Protocol.udp,
};

/** The meaning of a protocol's name. */
export function transportsOf(protocol: ProtocolName): Transport[] {
  return protocol === "both" ? ["tcp", "udp"] : [protocol];
}

/** The upstreams of a listener, in whatever form. */
interface Upstreams {
  readonly ipv4?: { readonly text: string };
  readonly ipv6?: { readonly text: string };
}

/** The families whose clients are refused, because no upstream is named for them. */
export function refusedFamilies({ ipv4, ipv6 }: Upstreams): (4 | 6)[] {
  return [...(ipv4 ? [] : [4 as const]), ...(ipv6 ? [] : [6 as const])];
}

/** `IPv6 clients are refused: no --ipv6 upstream`. */
export function refusedSentence(family: 4 | 6): string {
  return `IPv${family} clients are refused: no --ipv${family} upstream`;
}

/** Whether both services are at their defaults: then each family is meant as far as the host has it. */
export function hasDefaultServices({ ipv4, ipv6 }: Upstreams): boolean {
  return ipv4?.text === DEFAULTS.ipv4 && ipv6?.text === DEFAULTS.ipv6;
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
export function writeEndpoint(
  view: DataView,
  offset: number,
  address: Omit<Address, "text">,
): void {
  view.setUint8(offset + ENDPOINT.family, address.family);
  view.setUint16(offset + ENDPOINT.port, address.port, LITTLE_ENDIAN);
  view.setUint32(offset + ENDPOINT.scope, address.scope, LITTLE_ENDIAN);
  address.bytes.forEach((byte, index) => view.setUint8(offset + ENDPOINT.address + index, byte));
}
