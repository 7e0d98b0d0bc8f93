/** An upstream in its text form: an address or a host name, with or without ports. */
import { isMapped, parseIp } from "./address.ts";
import { addressHint } from "./address_hint.ts";
import type { Address } from "./options.ts";
import { Problem } from "./problem.ts";
import { parsePorts, type Ports } from "./ranges.ts";
import { SCOPE, scopeOf } from "./scope.ts";

/**
 * The upstream's ports. `same`: the port that was listened on; a single one takes all; a range is matched
 * one to one with the listener's distinct ports and is as long as those are many.
 */
export type UpstreamPorts = "same" | Ports;

export type Upstream = AddressUpstream | NameUpstream;

/** A server known by its address. */
export interface AddressUpstream {
  readonly kind: "address";
  /** The address alone. */
  readonly address: Pick<Address, "family" | "bytes" | "scope">;
  readonly ports: UpstreamPorts;
  /** As it was written. */
  readonly text: string;
}

/** A server whose addresses of the family are resolved at the start and from time to time. */
export interface NameUpstream {
  readonly kind: "name";
  /** The host's name in small letters. */
  readonly host: string;
  readonly ports: UpstreamPorts;
  readonly text: string;
}

/** Says outright that a family has no upstream. */
export const NONE = "none";

const FORMS = {
  4: "an IPv4 address or a host name, with or without a port or a range of ports, for example 127.0.0.1:443",
  6: "an IPv6 address or a host name, with or without a port or a range of ports, for example [::1]:443",
} as const;
/** An address without ports may come without brackets. */
const PARTS = [
  String.raw`^\[([^[\]%]*:[^[\]%]*)(?:%(${SCOPE}))?\](?::(.*))?$`,
  String.raw`^([^[%]*:[^[%]*:[^[%]*)(?:%(${SCOPE}))?$`,
  "^([^[:]*)()(?::(.*))?$",
].map((source) => new RegExp(source));
const UNIX =
  "a unix socket cannot be an upstream, because a unix peer has no address to take the " +
  "client's place: name an IP address and port";

/**
 * Reads `127.0.0.1`, `127.0.0.1:443`, `127.0.0.1:30000-30999`, `[::1]:443`, `::1`, `mail.internal`,
 * `mail.internal:25` or `none`.
 *
 * @param family whose clients go there
 */
export function parseUpstream(text: string, family: 4 | 6): Upstream | typeof NONE | Problem {
  if (text.toLowerCase() === NONE) return NONE;
  if (/^unix:|^@|\//.test(text)) return new Problem(UNIX);
  const [host = "", scopeText, portText] = split(text);
  const ports = portText === undefined ? "same" : parsePorts(portText);
  const scope = scopeOf(scopeText || "0");
  const unread = () => new Problem(`expected ${FORMS[family]}${addressHint(text, "upstream")}`);
  if (!ports || scope === undefined) return unread();
  const ip = parseIp(host);
  if (ip === undefined) {
    if (!isHostName(host)) return unread();
    return { kind: "name", host: host.toLowerCase(), ports, text };
  }
  const wrong = wrongAddress(ip, family, text);
  if (wrong !== undefined) return new Problem(`expected ${FORMS[family]}${wrong}`);
  return { kind: "address", address: { ...ip, scope }, ports, text };
}

/** The port of the upstream for a port that was listened on, which is `index` of the distinct ones. */
export function upstreamPort(ports: UpstreamPorts, listened: number, index: number): number {
  if (ports === "same") return listened;
  return ports.first === ports.last ? ports.first : ports.first + index;
}

/** Host, scope and ports, as far as a text has them. */
function split(text: string): (string | undefined)[] {
  const parts = PARTS.map((form) => form.exec(text)).find((found) => found !== null);
  return parts?.slice(1) ?? [];
}

/** What is wrong with an address as an upstream for a family. */
function wrongAddress(
  { family, bytes }: { family: 4 | 6; bytes: readonly number[] },
  wanted: 4 | 6,
  text: string,
): string | undefined {
  if (family !== wanted) return `: this one is IPv${family}, which is for ipv${family}`;
  // connect(2) to it does not reach a server: with a client's address it reaches that client's.
  if (bytes.every((byte) => byte === 0)) return `: ${text} is not the address of a server`;
  if (family === 4) return undefined;
  if (isMapped(bytes)) return ": this one is IPv4, which is for ipv4";
  // `::1:443` is an address of its own; nobody who writes it means that one.
  const isLow = bytes.slice(0, 12).every((byte) => byte === 0) &&
    bytes.slice(12, 15).some((byte) => byte !== 0);
  return isLow ? ": with a port, the address stands in brackets" : undefined;
}

/** RFC 1123, with `_`; the last label has a letter, so that no wrong address is a name. */
function isHostName(host: string): boolean {
  const labels = host.replace(/\.$/, "").split(".");
  return host.length <= 253 && /[a-z]/i.test(labels.at(-1) ?? "") &&
    labels.every((label) => /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/i.test(label));
}
