/** The upstreams of a listener as addresses with ports, for routing, probes and checks. */
import { formatAddress, isMapped } from "./address.ts";
import type { Destination } from "./destinations.ts";
import type { ListenerConfig } from "./model.ts";
import type { Address } from "./options.ts";
import type { PortRange, Ports } from "./ranges.ts";
import type { AddressUpstream } from "./upstreams.ts";

type Way = Pick<ListenerConfig, "listen" | "ipv4" | "ipv6"> & { readonly transparent?: boolean };

/** What TPROXY hands over may have been addressed to any port. */
const ANY_PORT: Ports = { first: 1, last: 65_535 };

/** Contiguous ports of one address; `port` is the first of them. */
export interface Endpoint extends Address {
  readonly lastPort: number;
}

/** Whether an endpoint represents a range: a port of it may have no server at the moment. */
export function isRange({ port, lastPort }: Endpoint): boolean {
  return lastPort > port;
}

/** The upstreams of a listener whose addresses are known: at most one a family. */
export function addressUpstreams({ ipv4, ipv6 }: Pick<Way, "ipv4" | "ipv6">): AddressUpstream[] {
  return [ipv4, ipv6].filter((upstream) => upstream?.kind === "address");
}

/** Where a listener's connections go, each address and port once. Upstreams that are names are left out. */
export function upstreamEndpoints(listener: Way): Endpoint[] {
  const same = () => listener.transparent ? [ANY_PORT] : mergePorts(listener.listen);
  return addressUpstreams(listener).flatMap((upstream) =>
    upstream.ports === "same"
      ? same().map((ports) => endpointOf(upstream, ports))
      : [endpointOf(upstream, upstream.ports)]
  );
}

/** The ports of these ranges in ascending order; what touches or overlaps is one. */
export function mergePorts(ranges: readonly PortRange[]): Ports[] {
  const merged: { first: number; last: number }[] = [];
  for (const { port, lastPort } of ranges.toSorted((one, other) => one.port - other.port)) {
    const before = merged.at(-1);
    if (before && port <= before.last + 1) before.last = Math.max(before.last, lastPort);
    else merged.push({ first: port, last: lastPort });
  }
  return merged;
}

function endpointOf({ address, ports, text }: AddressUpstream, { first, last }: Ports): Endpoint {
  const { family, bytes, scope } = address;
  // Where the ports are written, so is all of it.
  const written = ports === "same" ? endpointText(address, { first, last }) : text;
  return { family, bytes, scope, port: first, lastPort: last, text: written };
}

/** `127.0.0.1:443`, `[::1]:30000-30999`. */
export function endpointText(
  { family, bytes, scope }: Pick<Address, "family" | "bytes" | "scope">,
  { first, last }: Ports,
): string {
  const text = formatAddress(family, Uint8Array.from(bytes), first, scope);
  return first === last ? text : `${text}-${last}`;
}

/** Addresses that headers may select. */
export interface Network {
  readonly family: 4 | 6;
  readonly bytes: readonly number[];
  /** Bits of the family's address. */
  readonly prefix: number;
}

/** A destination's addresses in their own family. */
export function networkOf({ subnet: { bytes, prefix } }: Destination): Network {
  return isMapped(bytes) && prefix >= 96
    ? { family: 4, bytes: bytes.slice(12), prefix: prefix - 96 }
    : { family: 6, bytes, prefix };
}
