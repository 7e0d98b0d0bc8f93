/** Ports, port ranges, and addresses with them; overlaps between listening addresses. */
import { formatAddress, isMapped, parseAddress } from "./address.ts";
import type { Address, Transport } from "./options.ts";

/** Ports from the first to the last, both included. */
export interface Ports {
  readonly first: number;
  readonly last: number;
}

/** An address with one or more ports; `port` is the first of them. */
export interface PortRange extends Address {
  readonly lastPort: number;
}

/** `443` or `30000-30999`, each from 1 to 65535 and the last not below the first. */
export function parsePorts(text: string): Ports | undefined {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text);
  if (!match) return undefined;
  const first = Number(match[1]);
  const last = Number(match[2] ?? first);
  return first >= 1 && first <= last && last <= 65_535 ? { first, last } : undefined;
}

/** `192.0.2.1:443`, `[2001:db8::1]:443`, `0.0.0.0:30000-30999`. */
export function parsePortRange(text: string): PortRange | undefined {
  const match = /^(.*):([\d-]+)$/.exec(text);
  const ports = parsePorts(match?.[2] ?? "");
  const address = ports && parseAddress(`${match?.[1]}:${ports.first}`);
  return address && { ...address, lastPort: ports.last, text };
}

/**
 * The ports of these ranges, each once, in the order in which they are first named. A range of upstream
 * ports is matched to them one by one, so that `0.0.0.0:1000-1999` and `[::]:1000-1999` are a thousand.
 */
export function distinctPorts(ranges: readonly PortRange[]): number[] {
  const ports = new Set<number>();
  for (const { port, lastPort } of ranges) {
    for (let next = port; next <= lastPort; next++) ports.add(next);
  }
  return [...ports];
}

/** A range that somebody listens on. */
export interface Claim<Owner> {
  readonly range: PortRange;
  readonly transports: readonly Transport[];
  readonly owner: Owner;
}

/**
 * The claims that overlap an earlier one of the same transport, each with the first such. A wildcard
 * address overlaps every address of its family; `0.0.0.0` and `[::]` may stand side by side.
 */
export function overlaps<Owner>(
  claims: readonly Claim<Owner>[],
): { readonly claim: Claim<Owner>; readonly earlier: Claim<Owner> }[] {
  const hosts = claims.map(({ range }) => host(range));
  return claims.flatMap((claim, index) => {
    const found = claims.findIndex((earlier, other) =>
      other === index || overlap(claim, earlier) && shareHost(hosts[index], hosts[other])
    );
    const earlier = claims[found];
    return earlier && found < index ? [{ claim, earlier }] : [];
  });
}

/** Whether two claims have a port of a transport in common. */
function overlap<Owner>(one: Claim<Owner>, other: Claim<Owner>): boolean {
  return one.range.port <= other.range.lastPort && other.range.port <= one.range.lastPort &&
    one.transports.some((transport) => other.transports.includes(transport));
}

type Host = ReturnType<typeof host>;

/**
 * The first claim of a transport to which an address of this host's leads with one of these ports. A
 * wildcard is every address of this host's, of which only those of loopback are known without looking.
 */
export function claimOf<Owner>(
  address: Pick<Address, "family" | "bytes" | "scope">,
  ports: Ports,
  transports: readonly Transport[],
  claims: readonly Claim<Owner>[],
): Claim<Owner> | undefined {
  const meant: Claim<undefined> = {
    range: { ...address, port: ports.first, lastPort: ports.last, text: "" },
    transports,
    owner: undefined,
  };
  const isLoopback = address.family === 4
    ? address.bytes[0] === 127
    : address.bytes.every((byte, index) => byte === (index === 15 ? 1 : 0));
  const own = host(address);
  return claims.find((claim) => {
    const other = host(claim.range);
    return overlap(meant, claim) && (other.isWildcard ? isLoopback : true) && shareHost(own, other);
  });
}

/** What makes two addresses one, as the kernel sees it: a mapped IPv4 address is IPv4. */
function host({ family, bytes, scope }: Pick<Address, "family" | "bytes" | "scope">) {
  const mapped = family === 6 && isMapped(bytes);
  const plain = mapped ? bytes.slice(12) : bytes;
  return {
    family: mapped ? 4 : family,
    text: formatAddress(mapped ? 4 : family, Uint8Array.from(plain), undefined, scope),
    isWildcard: plain.every((byte) => byte === 0),
  };
}

function shareHost(one?: Host, other?: Host): boolean {
  if (!one || !other || one.family !== other.family) return false;
  return one.isWildcard || other.isWildcard || one.text === other.text;
}
