/**
 * The decoder: a complete header's bytes in, a verdict out. No I/O, no allocation, no exception.
 *
 * The native framing has found the end of the header; the decoder is nevertheless safe for any bytes.
 * The rules are those of HAProxy's proxy-protocol.txt (version 1: section 2.1, version 2: section
 * 2.2) and of Cloudflare's Simple Proxy Protocol; docs/proxy-protocol.md lists them with their tests.
 */
import { Carrier, MAX_HEADER, Refusal, VERDICT } from "../native/layout.ts";
import { type ActionCode, type AddressField, type RefusalCode, Verdict } from "./verdict.ts";

/** Decodes the header of `length` bytes in the region, which came by a `Carrier`. */
export type Decoder = (length: number, carrier: number) => ActionCode;

const V1_LONGEST = 107;
const V2_FIXED = 16;
const V2_SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const SPP_LENGTH = 38;

/** Bytes of a version 2 header's address block. */
const BLOCK_4 = 12;
const BLOCK_6 = 36;

/** The version numbers that a verdict has. */
const VERSION_1 = 1;
const VERSION_2 = 2;
const VERSION_SPP = 3;
/** There was no header. */
const VERSION_NONE = 0;

const CLIENT = VERDICT.client_address;
const DESTINATION = VERDICT.destination_address;

const TLV_HEAD = 3;
const TLV_CRC32C = 0x03;
const TLV_UNIQUE_ID = 0x05;
const TLV_SSL = 0x20;
const SSL_HEAD = 5;
const UNIQUE_ID_LONGEST = 128;

const SPACE = 0x20;
const CR = 0x0d;
const LF = 0x0a;
const DOT = 0x2e;
const COLON = 0x3a;
const ZERO = 0x30;

/** What a failed parse of text answers; every position is 0 or more. */
const BAD = -1;

/**
 * Makes a decoder over a scratch region.
 *
 * @param region `SCRATCH_SIZE` bytes; the header starts at `HEADER_OFFSET`
 * @returns a function that writes the verdict into the region and returns its action
 */
export function createDecoder(region: ArrayBuffer): Decoder {
  const decoder = new HeaderDecoder(new Verdict(region));
  return (length, carrier) => decoder.decode(length, carrier);
}

/** Takes every path of the decoder a few times, so that the first connections do not pay for it. */
export function warmUp(region: ArrayBuffer, decode: Decoder): void {
  const { header } = new Verdict(region);
  for (let round = 0; round < WARM_UP_ROUNDS; round++) {
    for (let index = 0; index < SAMPLES.length; index++) {
      const sample = SAMPLES[index] as Sample;
      header.set(sample.header);
      decode(sample.header.length, sample.carrier);
    }
  }
}

/**
 * Then a header takes 5 µs instead of 3 ms, and the worker is ready. The engine's last stages of
 * compilation set in after some hundreds; other threads compile while the worker serves.
 */
const WARM_UP_ROUNDS = 30;

interface Sample {
  readonly header: Uint8Array;
  readonly carrier: number;
}

const text = (line: string) => new TextEncoder().encode(line);
const hex = (digits: string) =>
  Uint8Array.from(digits.match(/[0-9a-f]{2}/g) ?? [], (pair) => parseInt(pair, 16));
const v2 = (rest: string) => Uint8Array.of(...V2_SIGNATURE, ...hex(rest));

const IPV6_PAIR = "20010db8000000000000000000000001 20010db8000000000000000000000002 dc04 01bb";

/** Headers that take every path to a client or to the proxy's own address. */
const SAMPLES: readonly Sample[] = [
  {
    header: text("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"),
    carrier: Carrier.stream,
  },
  {
    header: text("PROXY TCP6 2001:db8::1 2001:db8::ffff:198.51.100.1 56324 443\r\n"),
    carrier: Carrier.stream,
  },
  { header: text("PROXY UNKNOWN\r\n"), carrier: Carrier.stream },
  {
    // An SSL TLV with its version, a unique id, an empty NOOP and the checksum.
    header: v2(
      "21 11 0033 c0000201 c6336401 dc04 01bb " +
        "20000f0100000000210007544c5376312e33 " +
        "0500080001020304050607 040000 03000408998fcb",
    ),
    carrier: Carrier.stream,
  },
  { header: v2(`21 21 0024 ${IPV6_PAIR}`), carrier: Carrier.stream },
  {
    header: v2(
      "21 22 0024 00000000000000000000ffffc0000201 00000000000000000000ffffc6336401 dc04 01bb",
    ),
    carrier: Carrier.datagram,
  },
  { header: v2("20 00 0000"), carrier: Carrier.stream },
  { header: hex(`56ec ${IPV6_PAIR}`), carrier: Carrier.spp },
  { header: hex("c0000201 c6336401 dc04 01bb"), carrier: Carrier.none },
  { header: hex(IPV6_PAIR), carrier: Carrier.none },
];

/** CRC32C (Castagnoli), reflected: RFC 3720, appendix B.4. */
function crc32cTable(): Int32Array {
  const table = new Int32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    }
    table[byte] = crc;
  }
  return table;
}

class HeaderDecoder {
  readonly #verdict: Verdict;
  readonly #bytes: Uint8Array;
  readonly #crcTable = crc32cTable();
  /** The position behind a number that was read, and the number. */
  #value = 0;
  /** A version 1 line's addresses, while it may yet be refused. */
  readonly #source = new Uint8Array(16);
  readonly #destination = new Uint8Array(16);

  constructor(verdict: Verdict) {
    this.#verdict = verdict;
    this.#bytes = verdict.header;
  }

  decode(length: number, carrier: number): ActionCode {
    if (length < 0 || length > MAX_HEADER) return this.#verdict.refuse(Refusal.incomplete);
    if (carrier === Carrier.spp) return this.#spp(length);
    if (carrier === Carrier.none) return this.#bare(length);
    if (length === 0) return this.#verdict.refuse(Refusal.incomplete);
    return this.#at(0) === CR ? this.#version2(length) : this.#version1(length);
  }

  /** A byte of the header. Callers stay below the header's length, which the region exceeds. */
  #at(index: number): number {
    return this.#bytes[index] as number;
  }

  #refuse(reason: RefusalCode): ActionCode {
    return this.#verdict.refuse(reason);
  }

  // Version 1

  #version1(length: number): ActionCode {
    if (!this.#isWord(0, length, "PROXY ")) return this.#refuse(Refusal.not_proxy);
    if (length > V1_LONGEST) return this.#refuse(Refusal.v1_too_long);
    const end = length - 2;
    if (this.#at(end) !== CR || this.#at(end + 1) !== LF) {
      return this.#refuse(Refusal.incomplete);
    }
    for (let at = 6; at < end; at++) {
      // The first CRLF ends the header: framing has cut it there.
      if (this.#at(at) === CR && this.#at(at + 1) === LF) return this.#refuse(Refusal.v1_syntax);
    }
    if (this.#isWord(6, end, "UNKNOWN")) {
      if (end > 13 && this.#at(13) !== SPACE) return this.#refuse(Refusal.v1_protocol);
      return this.#verdict.own(VERSION_1);
    }
    for (let at = 6; at < end; at++) {
      if (this.#at(at) === CR || this.#at(at) === LF) return this.#refuse(Refusal.v1_lone_line_end);
    }
    if (this.#isWord(6, end, "TCP4 ")) return this.#addressLine(end, 4);
    if (this.#isWord(6, end, "TCP6 ")) return this.#addressLine(end, 6);
    return this.#refuse(Refusal.v1_protocol);
  }

  /** Source, destination and both ports, with one space between: from 11 to the CR at `end`. */
  #addressLine(end: number, family: 4 | 6): ActionCode {
    const afterSource = this.#nextSpace(11, end);
    const afterDestination = this.#nextSpace(afterSource + 1, end);
    const afterSourcePort = this.#nextSpace(afterDestination + 1, end);
    if (afterDestination >= end || afterSourcePort >= end) {
      return this.#refuse(Refusal.v1_syntax);
    }
    if (
      afterSource === 11 || afterDestination === afterSource + 1 ||
      afterSourcePort === afterDestination + 1 || afterSourcePort + 1 === end ||
      this.#nextSpace(afterSourcePort + 1, end) !== end
    ) {
      return this.#refuse(Refusal.v1_syntax);
    }
    const source = this.#source, destination = this.#destination;
    const addresses = family === 4
      ? this.#ipv4(11, afterSource, source, 0) &&
        this.#ipv4(afterSource + 1, afterDestination, destination, 0)
      : this.#ipv6(11, afterSource, source) &&
        this.#ipv6(afterSource + 1, afterDestination, destination);
    if (!addresses) {
      const isMixed = this.#isAddress(11, afterSource) &&
        this.#isAddress(afterSource + 1, afterDestination);
      return this.#refuse(isMixed ? Refusal.v1_mixed_families : Refusal.v1_address);
    }
    if (this.#port(afterDestination + 1, afterSourcePort) === BAD) {
      return this.#refuse(Refusal.v1_port);
    }
    const sourcePort = this.#value;
    if (this.#port(afterSourcePort + 1, end) === BAD) return this.#refuse(Refusal.v1_port);
    const destinationPort = this.#value;
    const size = family === 4 ? 4 : 16;
    for (let index = 0; index < size; index++) {
      this.#verdict.setByte(CLIENT, index, source[index] as number);
      this.#verdict.setByte(DESTINATION, index, destination[index] as number);
    }
    return this.#conclude(family, VERSION_1, sourcePort, destinationPort);
  }

  /** Whether there is an address of either family. */
  #isAddress(from: number, end: number): boolean {
    return this.#ipv4(from, end, this.#source, 0) || this.#ipv6(from, end, this.#source);
  }

  #isWord(from: number, end: number, word: string): boolean {
    if (from + word.length > end) return false;
    for (let index = 0; index < word.length; index++) {
      if (this.#at(from + index) !== word.charCodeAt(index)) return false;
    }
    return true;
  }

  /** Where the next space is, or `end`. */
  #nextSpace(from: number, end: number): number {
    let at = from;
    while (at < end && this.#at(at) !== SPACE) at++;
    return at;
  }

  /** A plain decimal without leading zeroes, digits only, in `from..end`: into `#value`. */
  #decimal(from: number, end: number, mostDigits: number): number {
    const digits = end - from;
    if (digits < 1 || digits > mostDigits) return BAD;
    if (digits > 1 && this.#at(from) === ZERO) return BAD;
    let value = 0;
    for (let at = from; at < end; at++) {
      const digit = this.#at(at) - ZERO;
      if (digit < 0 || digit > 9) return BAD;
      value = value * 10 + digit;
    }
    this.#value = value;
    return value;
  }

  #port(from: number, end: number): number {
    const port = this.#decimal(from, end, 5);
    return port > 65_535 ? BAD : port;
  }

  /** Four decimals from 0 to 255 with dots between, and nothing else. */
  #ipv4(from: number, end: number, into: Uint8Array, offset: number): boolean {
    let start = from;
    for (let part = 0; part < 4; part++) {
      let stop = start;
      while (stop < end && this.#at(stop) !== DOT) stop++;
      if ((stop === end) !== (part === 3)) return false;
      const value = this.#decimal(start, stop, 3);
      if (value === BAD || value > 255) return false;
      into[offset + part] = value;
      start = stop + 1;
    }
    return true;
  }

  /** The text forms of RFC 4291, section 2.2, with at most one `::`; no zone. */
  #ipv6(from: number, end: number, into: Uint8Array): boolean {
    let filled = 0;
    let gap = BAD;
    let at = from;
    if (at < end && this.#at(at) === COLON) {
      // Only `::` may start an address.
      if (at + 1 >= end || this.#at(at + 1) !== COLON) return false;
      gap = 0;
      at += 2;
    }
    while (at < end) {
      if (filled > 14) return false;
      let stop = at;
      while (stop < end && this.#at(stop) !== COLON && this.#at(stop) !== DOT) stop++;
      if (stop < end && this.#at(stop) === DOT) {
        if (filled > 12 || !this.#ipv4(at, end, into, filled)) return false;
        filled += 4;
        break;
      }
      const group = this.#hexGroup(at, stop);
      if (group === BAD) return false;
      into[filled] = group >> 8;
      into[filled + 1] = group & 0xff;
      filled += 2;
      if (stop === end) break;
      at = stop + 1;
      if (at === end) return false;
      if (this.#at(at) === COLON) {
        if (gap !== BAD) return false;
        gap = filled;
        at++;
      }
    }
    if (gap === BAD) return filled === 16;
    // `::` stands for one group of zeroes at least.
    if (filled > 14) return false;
    const tail = filled - gap;
    for (let index = 1; index <= tail; index++) into[16 - index] = into[filled - index] as number;
    for (let index = gap; index < 16 - tail; index++) into[index] = 0;
    return true;
  }

  #hexGroup(from: number, end: number): number {
    if (end - from < 1 || end - from > 4) return BAD;
    let value = 0;
    for (let at = from; at < end; at++) {
      const byte = this.#at(at);
      // 0-9, then A-F and a-f without their difference of case.
      const letter = byte | 0x20;
      const digit = byte >= ZERO && byte <= 0x39
        ? byte - ZERO
        : letter >= 0x61 && letter <= 0x66
        ? letter - 0x57
        : BAD;
      if (digit === BAD) return BAD;
      value = value * 16 + digit;
    }
    return value;
  }

  // Version 2

  #version2(length: number): ActionCode {
    if (length < V2_FIXED) return this.#refuse(Refusal.incomplete);
    for (let index = 0; index < V2_SIGNATURE.length; index++) {
      if (this.#at(index) !== V2_SIGNATURE[index]) return this.#refuse(Refusal.not_proxy);
    }
    const versionCommand = this.#at(12);
    if (versionCommand >> 4 !== 2) return this.#refuse(Refusal.v2_version);
    const command = versionCommand & 0x0f;
    if (command > 1) return this.#refuse(Refusal.v2_command);
    if (length !== V2_FIXED + this.#u16(14)) return this.#refuse(Refusal.incomplete);
    if (command === 0) return this.#verdict.own(VERSION_2);

    const family = this.#at(13) >> 4;
    const transport = this.#at(13) & 0x0f;
    if (family > 3) return this.#refuse(Refusal.v2_family);
    if (transport > 2) return this.#refuse(Refusal.v2_transport);
    const block = family === 1 ? BLOCK_4 : family === 2 ? BLOCK_6 : family === 3 ? 216 : 0;
    if (length < V2_FIXED + block) return this.#refuse(Refusal.v2_short_address);
    if (family !== 0) {
      const refusal = this.#tlvs(V2_FIXED + block, length);
      if (refusal !== Refusal.none) return this.#refuse(refusal);
    }
    if (family === 0 || family === 3 || transport === 0) return this.#verdict.own(VERSION_2);

    return this.#addressBlock(V2_FIXED, family === 1 ? 4 : 6, VERSION_2);
  }

  /** Source, destination and both ports, in bytes. */
  #addressBlock(from: number, family: 4 | 6, version: number): ActionCode {
    const size = family === 4 ? 4 : 16;
    for (let index = 0; index < size; index++) {
      this.#verdict.setByte(CLIENT, index, this.#at(from + index));
      this.#verdict.setByte(DESTINATION, index, this.#at(from + size + index));
    }
    const ports = from + 2 * size;
    return this.#conclude(family, version, this.#u16(ports), this.#u16(ports + 2));
  }

  /** A peer without a header is the client. Its address and the one that it spoke to are all that came. */
  #bare(length: number): ActionCode {
    if (length === BLOCK_4) return this.#addressBlock(0, 4, VERSION_NONE);
    if (length === BLOCK_6) return this.#addressBlock(0, 6, VERSION_NONE);
    return this.#refuse(Refusal.decoder);
  }

  /** Walks the TLVs in `from..end`: each step is three bytes at least, and none passes the end. */
  #tlvs(from: number, end: number): RefusalCode {
    let checksum = BAD;
    let at = from;
    while (at < end) {
      if (end - at < TLV_HEAD) return Refusal.v2_tlv;
      const type = this.#at(at);
      const length = this.#u16(at + 1);
      const value = at + TLV_HEAD;
      at = value + length;
      if (at > end) return Refusal.v2_tlv;
      if (type === TLV_CRC32C) {
        if (length !== 4 || checksum !== BAD) return Refusal.v2_checksum;
        checksum = value;
      } else if (type === TLV_UNIQUE_ID) {
        if (length > UNIQUE_ID_LONGEST) return Refusal.v2_tlv;
      } else if (type === TLV_SSL) {
        if (!this.#sslTlvs(value, at)) return Refusal.v2_tlv;
      }
    }
    if (checksum !== BAD && this.#crc32c(end, checksum) !== this.#i32(checksum)) {
      return Refusal.v2_checksum;
    }
    return Refusal.none;
  }

  /** Client flags (one byte), the verification's result (four), then TLVs of their own. */
  #sslTlvs(from: number, end: number): boolean {
    let at = from + SSL_HEAD;
    while (at < end) {
      if (end - at < TLV_HEAD) return false;
      at += TLV_HEAD + this.#u16(at + 1);
    }
    return at === end;
  }

  /** CRC32C of the header, the four bytes at `zeroed` counting as zeroes. */
  #crc32c(end: number, zeroed: number): number {
    const table = this.#crcTable;
    let crc = -1;
    for (let at = 0; at < end; at++) {
      const byte = at >= zeroed && at < zeroed + 4 ? 0 : this.#at(at);
      crc = (table[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8);
    }
    return ~crc;
  }

  // Simple Proxy Protocol

  #spp(length: number): ActionCode {
    if (length >= 2 && (this.#at(0) !== 0x56 || this.#at(1) !== 0xec)) {
      return this.#refuse(Refusal.spp_magic);
    }
    if (length !== SPP_LENGTH) return this.#refuse(Refusal.spp_short);
    for (let index = 0; index < 16; index++) {
      this.#verdict.setByte(CLIENT, index, this.#at(2 + index));
      this.#verdict.setByte(DESTINATION, index, this.#at(18 + index));
    }
    return this.#conclude(6, VERSION_SPP, this.#u16(34), this.#u16(36));
  }

  // All versions

  /** Checks the client's address, IPv4-mapped as IPv4, and sets the source address of the connection. */
  #conclude(
    written: number,
    version: number,
    clientPort: number,
    destinationPort: number,
  ): ActionCode {
    const verdict = this.#verdict;
    let family = written;
    if (family === 6 && this.#isMapped(CLIENT)) {
      // HAProxy sends an IPv4 client of an IPv6 destination so: no IPv4 destination is to be told.
      const known = this.#isMapped(DESTINATION);
      for (let index = 0; index < 4; index++) {
        verdict.setByte(CLIENT, index, verdict.byte(CLIENT, 12 + index));
        verdict.setByte(DESTINATION, index, known ? verdict.byte(DESTINATION, 12 + index) : 0);
      }
      family = 4;
    }
    const refusal = family === 4 ? this.#judge4() : this.#judge6();
    if (refusal !== Refusal.none) return verdict.refuseClient(refusal, family, clientPort);
    return verdict.client(family, version, clientPort, destinationPort);
  }

  /** `::ffff:0:0/96` (RFC 4291, section 2.5.5.2). */
  #isMapped(field: AddressField): boolean {
    for (let index = 0; index < 10; index++) {
      if (this.#verdict.byte(field, index) !== 0) return false;
    }
    return this.#verdict.byte(field, 10) === 0xff && this.#verdict.byte(field, 11) === 0xff;
  }

  /**
   * Whether a client can have the IPv4 address (RFC 6890). 169.254.0.0/16 is one that neighbours of the
   * balancer can have, and IPv4 needs no scope to reach it; what depends on this host is judged there.
   */
  #judge4(): RefusalCode {
    const a = this.#verdict.byte(CLIENT, 0), b = this.#verdict.byte(CLIENT, 1);
    const c = this.#verdict.byte(CLIENT, 2), d = this.#verdict.byte(CLIENT, 3);
    if (a === 0) {
      return (b | c | d) === 0 ? Refusal.client_unspecified : Refusal.client_this_network;
    }
    if (a < 224) return Refusal.none;
    if (a < 240) return Refusal.client_multicast;
    return (a & b & c & d) === 0xff ? Refusal.client_broadcast : Refusal.client_reserved;
  }

  /** Whether a client can have the IPv6 address: a link-local one needs a link, which no header names. */
  #judge6(): RefusalCode {
    const first = this.#verdict.byte(CLIENT, 0);
    if (first === 0xff) return Refusal.client_multicast;
    if (first === 0xfe && (this.#verdict.byte(CLIENT, 1) & 0xc0) === 0x80) {
      return Refusal.client_link_local;
    }
    let any = 0;
    for (let index = 0; index < 16; index++) any |= this.#verdict.byte(CLIENT, index);
    return any === 0 ? Refusal.client_unspecified : Refusal.none;
  }

  #u16(index: number): number {
    return this.#at(index) << 8 | this.#at(index + 1);
  }

  #i32(index: number): number {
    return this.#u16(index) << 16 | this.#u16(index + 2);
  }
}
