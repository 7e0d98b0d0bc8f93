/** Allowed destinations of headers: subnets with ports. */
import { Problem } from "./problem.ts";
import { parsePorts, type Ports } from "./ranges.ts";
import { contains, parseSubnet, type Subnet } from "./subnet.ts";

/** The addresses and ports of one entry of `allowed-destinations`. */
export interface Destination {
  readonly subnet: Subnet;
  readonly ports: Ports;
  /** As it was written. */
  readonly text: string;
}

const EXPECTED = "expected an address or subnet with a port or a range of ports, for example " +
  "10.0.0.5:22, 127.0.0.0/8:1024-65535 or [2001:db8::/32]:443";

/**
 * Reads `10.0.0.5:22`, `127.0.0.0/8:1024-65535` or `[2001:db8::/32]:443`. The ports must be named, so
 * that no entry opens more of a host than it says.
 */
export function parseDestination(text: string): Destination | Problem {
  const match = /^(?:\[([^[\]]+)\]|([^:[\]]+)):([\d-]+)$/.exec(text);
  const ports = parsePorts(match?.[3] ?? "");
  if (!match || !ports) return new Problem(EXPECTED);
  const [, v6, v4 = ""] = match;
  const subnet = parseSubnet(v6 ?? v4);
  if (subnet instanceof Problem) return new Problem(`${v6 ?? v4} ${subnet.text}`);
  // An IPv4 address in brackets is not an address with a port anywhere else, either.
  return (v6 ?? "::").includes(":") ? { subnet, ports, text } : new Problem(EXPECTED);
}

/** Whether a header may send its client there. `bytes`: 4 or 16, network byte order. */
export function isAllowed(
  destinations: readonly Destination[],
  bytes: readonly number[],
  port: number,
): boolean {
  return destinations.some(({ subnet, ports }) =>
    port >= ports.first && port <= ports.last && contains(subnet, bytes)
  );
}
