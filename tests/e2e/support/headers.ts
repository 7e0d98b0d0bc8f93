/**
 * Writes PROXY headers byte by byte from the specification (HAProxy's doc/proxy-protocol.txt and
 * Cloudflare's page on the Simple Proxy Protocol). Shares nothing with the program under test.
 */

import type { Endpoint } from "./endpoints.ts";

/** Numbers of TLV types. */
export const Tlv = {
  alpn: 0x01,
  authority: 0x02,
  crc32c: 0x03,
  noop: 0x04,
  uniqueId: 0x05,
  ssl: 0x20,
  sslVersion: 0x21,
  sslCommonName: 0x22,
} as const;

const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const LOCAL = 0;
const PROXY = 1;
const FAMILY_IPV4 = 1;
const FAMILY_IPV6 = 2;
const FAMILY_UNIX = 3;
const STREAM = 1;
const DATAGRAM = 2;

/** UTF-8 bytes. */
export function bytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

/** The text of UTF-8 bytes. */
export function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

/** One array of all the parts. */
export function concat(...parts: (Uint8Array | number[])[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}

/** `PROXY TCP4 …` or `PROXY TCP6 …`, by the family of the source. */
export function v1(source: Endpoint, destination: Endpoint): Uint8Array<ArrayBuffer> {
  const family = source.ip.includes(":") ? "TCP6" : "TCP4";
  return bytes(
    `PROXY ${family} ${source.ip} ${destination.ip} ${source.port} ${destination.port}\r\n`,
  );
}

/** `PROXY UNKNOWN`, and what is to follow it before the line's end. */
export function v1Unknown(tail = ""): Uint8Array<ArrayBuffer> {
  return bytes(`PROXY UNKNOWN${tail}\r\n`);
}

/** What a v2 header may carry beyond the addresses. */
export interface V2Options {
  /** UDP instead of TCP. */
  datagram?: boolean;
  tlvs?: Uint8Array[];
  /** Adds a CRC32c TLV with the right value. */
  checksum?: boolean;
}

/** Version 2, command PROXY, family by the source. */
export function v2(
  source: Endpoint,
  destination: Endpoint,
  options: V2Options = {},
): Uint8Array<ArrayBuffer> {
  const family = source.ip.includes(":") ? FAMILY_IPV6 : FAMILY_IPV4;
  const block = concat(
    addressBytes(source.ip),
    addressBytes(destination.ip),
    u16(source.port),
    u16(destination.port),
  );
  const tlvs = [...(options.tlvs ?? [])];
  if (options.checksum) tlvs.push(tlv(Tlv.crc32c, new Uint8Array(4)));
  const transport = options.datagram ? DATAGRAM : STREAM;
  const header = v2Raw(PROXY, (family << 4) | transport, concat(block, ...tlvs));
  // The checksum is the last TLV, computed while its own bytes are zero.
  if (options.checksum) new DataView(header.buffer).setUint32(header.length - 4, crc32c(header));
  return header;
}

/** Version 2, command LOCAL; the family byte and the body may hold anything. */
export function v2Local(
  body: Uint8Array = new Uint8Array(),
  familyByte = 0,
): Uint8Array<ArrayBuffer> {
  return v2Raw(LOCAL, familyByte, body);
}

/** Version 2, command PROXY, no family: the sender does not know the client. */
export function v2Unspecified(body: Uint8Array = new Uint8Array()): Uint8Array<ArrayBuffer> {
  return v2Raw(PROXY, 0, body);
}

/** Version 2, command PROXY, unix stream: two paths of 108 bytes. */
export function v2Unix(source: string, destination: string): Uint8Array<ArrayBuffer> {
  const body = new Uint8Array(216);
  body.set(bytes(source), 0);
  body.set(bytes(destination), 108);
  return v2Raw(PROXY, (FAMILY_UNIX << 4) | STREAM, body);
}

/** Version 2 with a command and family byte as given. */
export function v2Raw(
  command: number,
  familyByte: number,
  body: Uint8Array,
): Uint8Array<ArrayBuffer> {
  return concat(SIGNATURE, [0x20 | command, familyByte], u16(body.length), body);
}

/** One TLV: type, big-endian length, value. */
export function tlv(type: number, value: Uint8Array): Uint8Array<ArrayBuffer> {
  return concat([type], u16(value.length), value);
}

/** The SSL TLV: client bits, the result of verification, then sub-TLVs. */
export function sslTlv(...inner: Uint8Array[]): Uint8Array<ArrayBuffer> {
  return tlv(Tlv.ssl, concat([0x01, 0, 0, 0, 0], ...inner));
}

/** The 38 bytes of the Simple Proxy Protocol. */
export function spp(client: Endpoint, proxy: Endpoint): Uint8Array<ArrayBuffer> {
  return concat(
    [0x56, 0xec],
    mapped(client.ip),
    mapped(proxy.ip),
    u16(client.port),
    u16(proxy.port),
  );
}

/** Bytes of an address in network byte order: 4 or 16 of them. */
export function addressBytes(ip: string): Uint8Array<ArrayBuffer> {
  if (!ip.includes(":")) return Uint8Array.from(ip.split("."), Number);
  const dotted = /[^:]*\.[^:]*$/.exec(ip)?.[0];
  const tail = dotted === undefined ? [] : [...addressBytes(dotted)];
  const groupText = dotted === undefined ? ip : ip.slice(0, -dotted.length).replace(/:$/, "");
  const [before = "", after] = groupText.split("::");
  const head = groups(before);
  const rest = [...groups(after ?? ""), ...tail];
  const zeroes = new Array<number>(16 - head.length - rest.length).fill(0);
  return Uint8Array.from([...head, ...zeroes, ...rest]);
}

function groups(colonSeparated: string): number[] {
  return colonSeparated.split(":").filter((group) => group !== "").flatMap((group) => {
    const value = parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
}

function mapped(ip: string): Uint8Array {
  return ip.includes(":") ? addressBytes(ip) : addressBytes(`::ffff:${ip}`);
}

function u16(value: number): number[] {
  return [value >> 8, value & 0xff];
}

/** CRC32c (Castagnoli, RFC 3720 appendix B.4), bit by bit. */
export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return (crc ^ 0xffffffff) >>> 0;
}
