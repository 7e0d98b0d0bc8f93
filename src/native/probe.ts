/** Tries to reach an upstream, plain or from a client's address. */
import { type Address, LITTLE_ENDIAN, writeEndpoint } from "../config/options.ts";
import { PROBE, Protocol } from "./layout.ts";
import type { Library } from "./library.ts";

/** What is tried. */
export interface ProbeRequest {
  readonly protocol: "tcp" | "udp";
  readonly service: Address;
  /** From a client's address, which no host has, or from the proxy's own. */
  readonly spoofed: boolean;
  readonly mark: number;
  /** How long to wait, in milliseconds. */
  readonly timeout: number;
}

/**
 * How it ended. `ok`: the connection was accepted, or the datagram answered; `refused`: nobody listens
 * there; `silent`: nothing came back in time; `failed`: it could not be tried, or came to nothing.
 */
export type Outcome = "ok" | "refused" | "silent" | "failed";

/** What came of it; `errno` is the operating system's error, or 0. */
export interface ProbeResult {
  readonly outcome: Outcome;
  readonly errno: number;
}

/** Clients that do not exist: of TEST-NET-3 (RFC 5737) and of 2001:db8::/32 (RFC 3849). */
export const PROBE_CLIENTS = {
  4: client(4, [203, 0, 113, 77], "203.0.113.77"),
  6: client(6, [0x20, 0x01, 0x0d, 0xb8, ...Array(11).fill(0), 0x77], "2001:db8::77"),
} as const;

const ECONNREFUSED = 111;
const ETIMEDOUT = 110;
const OUTCOMES = new Map<number, Outcome>([
  [0, "ok"],
  [ECONNREFUSED, "refused"],
  [ETIMEDOUT, "silent"],
]);

/** Tries once. The service sees a TCP connection that ends at once, or a datagram that fits its port. */
export async function probe(library: Library, request: ProbeRequest): Promise<ProbeResult> {
  const errno = await library.probe(encodeProbe(request), probePayload(request.service.port));
  return { outcome: OUTCOMES.get(errno) ?? "failed", errno };
}

/** The `Probe` record of a request. */
export function encodeProbe(request: ProbeRequest): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(PROBE.size);
  const view = new DataView(record.buffer);
  const { service, spoofed, protocol, mark, timeout } = request;
  if (spoofed) writeEndpoint(view, PROBE.client, PROBE_CLIENTS[service.family]);
  writeEndpoint(view, PROBE.upstream, service);
  view.setUint32(PROBE.protocol, Protocol[protocol], LITTLE_ENDIAN);
  view.setUint32(PROBE.mark, mark, LITTLE_ENDIAN);
  view.setUint32(PROBE.timeout_ms, timeout, LITTLE_ENDIAN);
  return record;
}

/**
 * What a UDP service is asked: at the ports of DNS and NTP a question that such a server answers,
 * elsewhere a few words.
 */
export function probePayload(port: number): Uint8Array<ArrayBuffer> {
  if (port === 53) {
    // The name servers of the root (RFC 1035, 4.1): no recursion is requested.
    const header = [0x6d, 0x6d, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    return Uint8Array.from([...header, 0, 0, 2, 0, 1]);
  }
  if (port === 123) {
    // A client's question, version 4 (RFC 5905, 7.3).
    return Uint8Array.from([0x23, ...Array(47).fill(0)]);
  }
  return new TextEncoder().encode("mmproxy asks whether anyone is there\n");
}

function client(family: 4 | 6, bytes: readonly number[], text: string): Address {
  return { family, bytes, port: 0, scope: 0, text };
}
