/** IP addresses and ports as text: strict forms in, the kernel's bytes out, and back. */
import ipaddr from "ipaddr.js";
import type { Address } from "./options.ts";
import { SCOPE, scopeOf } from "./scope.ts";

const ADDRESS = new RegExp(String.raw`^(?:\[([^\]%]+)(?:%(${SCOPE}))?\]|([^:[\]]+)):(\d{1,5})$`);

/**
 * An address in its strict form: four decimals, or RFC 4291 text; no shorthand, octal or hex parts.
 *
 * @returns its family and its bytes in network byte order, or undefined
 */
export function parseIp(text: string): { family: 4 | 6; bytes: number[] } | undefined {
  if (/^\d{1,3}(\.\d{1,3}){3}$/.test(text)) {
    const parts = text.split(".");
    const plain = parts.every((part) => Number(part) <= 255 && String(Number(part)) === part);
    return plain ? { family: 4, bytes: parts.map(Number) } : undefined;
  }
  // ipaddr.js reads octal and hex in an IPv4 tail, and takes ::a.b.c.d for ::ffff:a.b.c.d.
  const tail = /:([^:]*\.[^:]*)$/.exec(text)?.[1];
  if (tail !== undefined && (!parseIp(tail) || text === `::${tail}`)) return undefined;
  if (!text.includes(":") || text.includes("%") || !ipaddr.IPv6.isValid(text)) return undefined;
  return { family: 6, bytes: ipaddr.IPv6.parse(text).toByteArray() };
}

/**
 * `a.b.c.d:port` or `[v6]:port`, the port from 1 to 65535; `[fe80::1%eth0]:port` with an interface's
 * name or number.
 */
export function parseAddress(text: string): Address | undefined {
  const match = ADDRESS.exec(text);
  if (!match) return undefined;
  const [, v6, scopeText = "0", v4, portText] = match;
  const ip = parseIp(v6 ?? v4 ?? "");
  const scope = scopeOf(scopeText);
  const port = Number(portText);
  if (
    !ip || scope === undefined || (ip.family === 6) !== (v6 !== undefined) || port < 1 ||
    port > 65_535
  ) {
    return undefined;
  }
  return { ...ip, port, scope, text };
}

/** An address's text: IPv6 compressed (RFC 5952) and, with a port, in brackets. */
export function formatAddress(
  family: number,
  bytes: Uint8Array,
  port?: number,
  scope = 0,
): string {
  if (family === 4) {
    const text = bytes.subarray(0, 4).join(".");
    return port === undefined ? text : `${text}:${port}`;
  }
  const ip = new ipaddr.IPv6([...bytes.subarray(0, 16)]).toRFC5952String();
  const text = scope ? `${ip}%${scope}` : ip;
  return port === undefined ? text : `[${text}]:${port}`;
}

/** Whether 16 bytes are an IPv4-mapped IPv6 address (`::ffff:0:0/96`). */
export function isMapped(bytes: readonly number[]): boolean {
  return bytes.slice(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff &&
    bytes[11] === 0xff;
}

/** Whether only this host can reach an address: 127.0.0.0/8 and ::1. */
export function isLoopback({ family, bytes }: Pick<Address, "family" | "bytes">): boolean {
  if (family === 4) return bytes[0] === 127;
  if (isMapped(bytes)) return bytes[12] === 127;
  return bytes.every((byte, index) => byte === (index === 15 ? 1 : 0));
}
