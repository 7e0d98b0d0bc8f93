import assert from "node:assert/strict";
import {
  Action,
  Carrier,
  HEADER_OFFSET,
  Refusal,
  SCRATCH_SIZE,
  VERDICT,
} from "../native/layout.ts";
import { createDecoder, warmUp } from "./proxy_header.ts";
import { formatAddress, parseIp } from "../config/address.ts";

const region = new ArrayBuffer(SCRATCH_SIZE);
const decode = createDecoder(region);
const record = new DataView(region);
const LITTLE = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** The verdict on a header, in words: `client 192.0.2.1:80 v2`, `own v1`, or a reason. */
function verdictOn(header: Uint8Array, carrier: number = Carrier.stream): string {
  const bytes = new Uint8Array(region, HEADER_OFFSET).fill(0);
  bytes.set(header);
  const action = decode(header.length, carrier);
  const version = record.getUint8(VERDICT.version);
  if (action === Action.own) return `own v${version}`;
  if (action === Action.drop) {
    const code = record.getUint8(VERDICT.refusal);
    return Object.entries(Refusal).find(([, value]) => value === code)?.[0] ?? `reason ${code}`;
  }
  const address = (offset: number, port: number) =>
    formatAddress(
      record.getUint8(VERDICT.family),
      new Uint8Array(region, offset, 16),
      record.getUint16(port, LITTLE),
    );
  const client = address(VERDICT.client_address, VERDICT.client_port);
  return `client ${client} to ${
    address(VERDICT.destination_address, VERDICT.destination_port)
  } v${version}`;
}

const text = (line: string) => new TextEncoder().encode(line);
const hex = (digits: string) =>
  Uint8Array.from(digits.match(/[0-9a-f]{2}/g) ?? [], (pair) => parseInt(pair, 16));

const SIGNATURE = "0d0a0d0a000d0a515549540a";
const V4 = "c0000201 c6336401 dc04 01bb"; // 192.0.2.1:56324 to 198.51.100.1:443
const V6 = "20010db8000000000000000000000001 20010db8000000000000000000000002 dc04 01bb";
const CLIENT4 = "client 192.0.2.1:56324 to 198.51.100.1:443";
const CLIENT6 = "client [2001:db8::1]:56324 to [2001:db8::2]:443";
const FULL_V6 = "2001:0db8:ffff:ffff:ffff:ffff:ffff:ffff";

/** A version 2 header: command and family as two bytes of hex, and the rest with its length before. */
function v2(head: string, rest = ""): Uint8Array {
  const body = hex(rest);
  const length = body.length.toString(16).padStart(4, "0");
  return hex(SIGNATURE + head + length + rest);
}

/** A TLV with its length. */
function tlv(type: string, value = ""): string {
  return type + hex(value).length.toString(16).padStart(4, "0") + value;
}

/** CRC32C bit by bit: slow, and nothing like the decoder's table. */
function withChecksum(header: Uint8Array, at: number): Uint8Array {
  let crc = 0xffffffff;
  for (const byte of header) {
    for (let bit = 0; bit < 8; bit++) {
      const low = (crc ^ (byte >> bit)) & 1;
      crc = (crc >>> 1) ^ (low ? 0x82f63b78 : 0);
    }
  }
  new DataView(header.buffer).setUint32(at, ~crc);
  return header;
}

function withByte(header: Uint8Array, at: number, value: number): Uint8Array {
  header[at] = value;
  return header;
}

function reversed(header: Uint8Array, from: number, to: number): Uint8Array {
  header.subarray(from, to).reverse();
  return header;
}

type Row = [name: string, header: Uint8Array, verdict: string];

const VERSION_1: Row[] = [
  ["T1 TCP4", text("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"), `${CLIENT4} v1`],
  ["T1 TCP6", text("PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"), `${CLIENT6} v1`],
  ["T1 two spaces", text("PROXY TCP4  192.0.2.1 198.51.100.1 1 2\r\n"), "v1_syntax"],
  ["T1 a trailing space", text("PROXY TCP4 192.0.2.1 198.51.100.1 1 2 \r\n"), "v1_syntax"],
  ["T1 a field too many", text("PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n"), "v1_syntax"],
  ["T1 a field too few", text("PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n"), "v1_syntax"],
  ["T1 no fields", text("PROXY TCP4 \r\n"), "v1_syntax"],
  ["T1 no source", text("PROXY TCP4  198.51.100.1 1 2\r\n"), "v1_syntax"],
  ["T1 no destination port", text("PROXY TCP4 192.0.2.1 198.51.100.1 1 \r\n"), "v1_syntax"],
  ["T1 a tab", text("PROXY TCP4\t192.0.2.1 198.51.100.1 1 2\r\n"), "v1_protocol"],
  ["T1 lower case", text("PROXY tcp4 192.0.2.1 198.51.100.1 1 2\r\n"), "v1_protocol"],
  ["T1 UDP4", text("PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n"), "v1_protocol"],
  ["T1 no protocol", text("PROXY \r\n"), "v1_protocol"],
  [
    "T2 the highest IPv4",
    text("PROXY TCP4 223.255.255.255 0.0.0.0 1 2\r\n"),
    "client 223.255.255.255:1 to 0.0.0.0:2 v1",
  ],
  ["T2 a leading zero", text("PROXY TCP4 192.0.02.1 198.51.100.1 1 2\r\n"), "v1_address"],
  ["T2 256", text("PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n"), "v1_address"],
  ["T2 three parts", text("PROXY TCP4 192.0.2 198.51.100.1 1 2\r\n"), "v1_address"],
  ["T2 five parts", text("PROXY TCP4 192.0.2.1.1 198.51.100.1 1 2\r\n"), "v1_address"],
  ["T2 an empty part", text("PROXY TCP4 192..2.1 198.51.100.1 1 2\r\n"), "v1_address"],
  [
    "T2 IPv6 to IPv4 under TCP4, as nginx writes it",
    text("PROXY TCP4 ::1 198.51.100.1 1 2\r\n"),
    "v1_mixed_families",
  ],
  [
    "T2 IPv6 to IPv4 under TCP6",
    text("PROXY TCP6 2001:db8::1 198.51.100.1 1 2\r\n"),
    "v1_mixed_families",
  ],
  ["T2 IPv4 to IPv6 under TCP4", text("PROXY TCP4 192.0.2.1 ::1 1 2\r\n"), "v1_mixed_families"],
  ["T2 both IPv6 under TCP4", text("PROXY TCP4 ::1 ::2 1 2\r\n"), "v1_mixed_families"],
  ["T2 IPv6 under TCP4 to nothing", text("PROXY TCP4 ::1 x 1 2\r\n"), "v1_address"],
  ["T2 a bad destination", text("PROXY TCP4 192.0.2.1 x 1 2\r\n"), "v1_address"],
  ["T2 IPv4 under TCP6", text("PROXY TCP6 192.0.2.1 ::2 1 2\r\n"), "v1_mixed_families"],
  ["T2 two ::", text("PROXY TCP6 2001::db8::1 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 :: for nothing", text("PROXY TCP6 1:2:3:4::5:6:7:8 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 seven groups", text("PROXY TCP6 1:2:3:4:5:6:7 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 nine groups", text("PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 five digits", text("PROXY TCP6 2001:0db80::1 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 a lone colon first", text("PROXY TCP6 :1:2:3:4:5:6:7 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 a lone colon last", text("PROXY TCP6 1:2:3:4:5:6:7: 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 a lone colon behind all", text("PROXY TCP6 1:2:3:4:5:6:7:8: ::2 1 2\r\n"), "v1_address"],
  ["T2 a lone colon behind ::", text("PROXY TCP6 2001::1: 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 three colons", text("PROXY TCP6 2001:::1 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 a zone", text("PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n"), "v1_address"],
  ["T2 not hexadecimal", text("PROXY TCP6 2001:db8::g 2001:db8::2 1 2\r\n"), "v1_address"],
  [
    "T2 upper case",
    text("PROXY TCP6 2001:DB8::A 2001:db8:: 1 2\r\n"),
    "client [2001:db8::a]:1 to [2001:db8::]:2 v1",
  ],
  [
    "T2 all eight groups",
    text("PROXY TCP6 1:2:3:4:5:6:7:8 ::1 1 2\r\n"),
    "client [1:2:3:4:5:6:7:8]:1 to [::1]:2 v1",
  ],
  [
    "T2 a dotted tail",
    text("PROXY TCP6 2001:db8::192.0.2.1 ::2 1 2\r\n"),
    "client [2001:db8::c000:201]:1 to [::2]:2 v1",
  ],
  ["T2 a dotted tail in the middle", text("PROXY TCP6 ::192.0.2.1:5 ::2 1 2\r\n"), "v1_address"],
  [
    "T2 a dotted tail behind six groups",
    text("PROXY TCP6 1:2:3:4:5:6:192.0.2.1 1:2:3:4:5:6:7:: 1 2\r\n"),
    "client [1:2:3:4:5:6:c000:201]:1 to [1:2:3:4:5:6:7:0]:2 v1",
  ],
  [
    "T2 a dotted tail behind seven groups",
    text("PROXY TCP6 1:2:3:4:5:6:7:192.0.2.1 ::2 1 2\r\n"),
    "v1_address",
  ],
  [
    "T2 a dotted tail and :: for nothing",
    text("PROXY TCP6 1:2:3:4:5:6::192.0.2.1 ::2 1 2\r\n"),
    "v1_address",
  ],
  [
    "T2 a dotted tail with a leading zero",
    text("PROXY TCP6 ::192.0.02.1 ::2 1 2\r\n"),
    "v1_address",
  ],
  [
    "T3 the highest port",
    text("PROXY TCP4 192.0.2.1 198.51.100.1 65535 0\r\n"),
    "client 192.0.2.1:65535 to 198.51.100.1:0 v1",
  ],
  ["T3 65536", text("PROXY TCP4 192.0.2.1 198.51.100.1 65536 1\r\n"), "v1_port"],
  ["T3 a leading zero", text("PROXY TCP4 192.0.2.1 198.51.100.1 080 1\r\n"), "v1_port"],
  ["T3 a sign", text("PROXY TCP4 192.0.2.1 198.51.100.1 +80 1\r\n"), "v1_port"],
  ["T3 six digits", text("PROXY TCP4 192.0.2.1 198.51.100.1 1 100000\r\n"), "v1_port"],
  [
    "T4 the longest TCP6 line, 104 bytes",
    text(`PROXY TCP6 ${FULL_V6} ${FULL_V6} 65535 65535\r\n`),
    "client [2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535 " +
    "to [2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535 v1",
  ],
  ["T4 107 bytes", text(`PROXY UNKNOWN ${"x".repeat(91)}\r\n`), "own v1"],
  ["T4 108 bytes", text(`PROXY UNKNOWN ${"x".repeat(92)}\r\n`), "v1_too_long"],
  ["T5 no CRLF", text("PROXY TCP4 192.0.2.1 198.51.100.1 1 2"), "incomplete"],
  ["T5 only LF", text("PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n"), "incomplete"],
  ["T5 only CR", text("PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r"), "incomplete"],
  ["T5 a LF inside", text("PROXY TCP4 192.0.2.1\n198.51.100.1 1 2\r\n"), "v1_lone_line_end"],
  ["T5 a CR inside", text("PROXY TCP4 192.0.2.1 198.51.100.1 1\r2\r\n"), "v1_lone_line_end"],
  ["T6 UNKNOWN", text("PROXY UNKNOWN\r\n"), "own v1"],
  ["T6 UNKNOWN with addresses", text("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), "own v1"],
  ["T6 UNKNOWN with nonsense", text("PROXY UNKNOWN \0\xff \r \n\r\n"), "own v1"],
  ["T6 UNKNOWNX", text("PROXY UNKNOWNX\r\n"), "v1_protocol"],
  ["T6 UNKNOWN and a CR", text("PROXY UNKNOWN\r\r\n"), "v1_protocol"],
  ["T7 HTTP", text("GET / HTTP/1.1\r\n"), "not_proxy"],
  ["T7 TLS", hex("1603010200010001fc0303"), "not_proxy"],
  ["T7 PROXY alone", text("PROXY"), "not_proxy"],
  ["T7 nothing", new Uint8Array(), "incomplete"],
  ["T7 PROXY and a space", text("PROXY "), "incomplete"],
  ["T8 two lines are not one header", text("PROXY UNKNOWN\r\nGET /\r\n"), "v1_syntax"],
  [
    "policy: IPv4-mapped is IPv4",
    text("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 56324 443\r\n"),
    `${CLIENT4} v1`,
  ],
  [
    "policy: port 0",
    text("PROXY TCP4 192.0.2.1 198.51.100.1 0 443\r\n"),
    "client 192.0.2.1:0 to 198.51.100.1:443 v1",
  ],
  ["policy: 0.0.0.0", text("PROXY TCP4 0.0.0.0 198.51.100.1 1 2\r\n"), "client_unspecified"],
  ["policy: IPv4 multicast", text("PROXY TCP4 224.0.0.1 198.51.100.1 1 2\r\n"), "client_multicast"],
  [
    "policy: broadcast",
    text("PROXY TCP4 255.255.255.255 198.51.100.1 1 2\r\n"),
    "client_broadcast",
  ],
  ["policy: ::", text("PROXY TCP6 :: 2001:db8::2 1 2\r\n"), "client_unspecified"],
  ["policy: IPv6 multicast", text("PROXY TCP6 ff02::1 2001:db8::2 1 2\r\n"), "client_multicast"],
  ["policy: mapped multicast", text("PROXY TCP6 ::ffff:239.1.1.1 ::1 1 2\r\n"), "client_multicast"],
  [
    "policy: almost mapped is IPv6",
    text("PROXY TCP6 ::1:ffff:192.0.2.1 ::ffff:198.51.100.1 1 2\r\n"),
    "client [::1:ffff:c000:201]:1 to [::ffff:c633:6401]:2 v1",
  ],
  ["policy: mapped 0.0.0.0", text("PROXY TCP6 ::ffff:0.0.0.0 ::1 1 2\r\n"), "client_unspecified"],
  [
    "policy: IPv4-mapped to an IPv6 destination",
    text("PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n"),
    "client 192.0.2.1:1 to 0.0.0.0:2 v1",
  ],
  [
    "policy: loopback is allowed",
    text("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"),
    "client 127.0.0.1:1 to 127.0.0.1:2 v1",
  ],
];

const VERSION_2: Row[] = [
  ["B1 another signature", hex("0d0a0d0a000d0a515549540b 2111 0000"), "not_proxy"],
  ["B1 version 1", v2("1111", V4), "v2_version"],
  ["B1 version 3", v2("3111", V4), "v2_version"],
  ["B2 LOCAL", v2("2000"), "own v2"],
  ["B2 LOCAL with a family and TLVs but no addresses", v2("2011", tlv("ea", "01")), "own v2"],
  ["B2 LOCAL with an unknown family", v2("20ff", "010203"), "own v2"],
  ["B2 LOCAL with a broken TLV", v2("2011", "04ffff"), "own v2"],
  ["B2 LOCAL with a bad checksum", v2("2011", V4 + tlv("03", "01020304")), "own v2"],
  ["B3 PROXY", v2("2111", V4), `${CLIENT4} v2`],
  ["B3 command 2", v2("2211", V4), "v2_command"],
  ["B3 command 15", v2("2f11", V4), "v2_command"],
  ["B4 family 4", v2("2141", V4), "v2_family"],
  ["B4 transport 3", v2("2113", V4), "v2_transport"],
  ["B4 UNSPEC", v2("2100"), "own v2"],
  ["B4 UNSPEC with bytes", v2("2100", "ffffff"), "own v2"],
  ["B4 unix", v2("2131", "61".repeat(216)), "own v2"],
  ["B4 a transport that says nothing", v2("2110", V4), "own v2"],
  ["B4 a transport that says nothing, and a broken TLV", v2("2110", V4 + "ee"), "v2_tlv"],
  ["B4 datagrams", v2("2112", V4), `${CLIENT4} v2`],
  ["B4 IPv6", v2("2121", V6), `${CLIENT6} v2`],
  ["B5 a length past the bytes", hex(`${SIGNATURE} 2111 000d ${V4}`), "incomplete"],
  ["B5 a length short of the bytes", hex(`${SIGNATURE} 2111 000c ${V4} 00`), "incomplete"],
  ["B5 cut inside the fixed part", hex(`${SIGNATURE} 2111 00`), "incomplete"],
  ["B6 IPv4 with 11 bytes", v2("2111", V4.slice(0, -2)), "v2_short_address"],
  ["B6 IPv6 with IPv4's block", v2("2121", V4), "v2_short_address"],
  ["B6 unix with 215 bytes", v2("2131", "61".repeat(215)), "v2_short_address"],
  ["B6 no block at all", v2("2111"), "v2_short_address"],
  ["B7 a TLV", v2("2111", V4 + tlv("ee", "0102")), `${CLIENT4} v2`],
  ["B7 an empty TLV", v2("2111", V4 + tlv("ee")), `${CLIENT4} v2`],
  ["B7 one byte of a TLV", v2("2111", V4 + "ee"), "v2_tlv"],
  ["B7 two bytes of a TLV", v2("2111", V4 + "ee00"), "v2_tlv"],
  ["B7 a TLV past the end", v2("2111", V4 + "ee000301 02"), "v2_tlv"],
  ["B7 a TLV of 65,535 bytes", v2("2111", V4 + "eeffff"), "v2_tlv"],
  ["B7 not UTF-8", v2("2111", V4 + tlv("02", "fffe80")), `${CLIENT4} v2`],
  ["B7 a unix TLV past the end", v2("2131", "61".repeat(216) + "ee0001"), "v2_tlv"],
  ["B8 a good checksum", withChecksum(v2("2111", V4 + tlv("03", "00000000")), 31), `${CLIENT4} v2`],
  [
    "B8 a good checksum between others",
    withChecksum(v2("2121", V6 + tlv("04") + tlv("03", "00000000") + tlv("ee", "05")), 58),
    `${CLIENT6} v2`,
  ],
  ["B8 a bad checksum", v2("2111", V4 + tlv("03", "01020304")), "v2_checksum"],
  [
    "B8 a good checksum of another address",
    withByte(withChecksum(v2("2111", V4 + tlv("03", "00000000")), 31), 16, 0xcb),
    "v2_checksum",
  ],
  [
    "B8 a good checksum with its bytes reversed",
    reversed(withChecksum(v2("2111", V4 + tlv("03", "00000000")), 31), 31, 35),
    "v2_checksum",
  ],
  [
    "B8 unix with a bad checksum",
    v2("2131", "61".repeat(216) + tlv("03", "01020304")),
    "v2_checksum",
  ],
  ["B8 three bytes", v2("2111", V4 + tlv("03", "010203")), "v2_checksum"],
  [
    "B8 a good checksum and a fifth byte",
    withChecksum(v2("2111", V4 + tlv("03", "0000000000")), 31),
    "v2_checksum",
  ],
  [
    "B8 a second checksum, though good",
    withChecksum(v2("2111", V4 + tlv("03", "00000000") + tlv("03", "00000000")), 38),
    "v2_checksum",
  ],
  ["B9 NOOP", v2("2111", V4 + tlv("04", "000000")), `${CLIENT4} v2`],
  ["B9 a unique id of 128 bytes", v2("2111", V4 + tlv("05", "61".repeat(128))), `${CLIENT4} v2`],
  ["B9 a unique id of 129 bytes", v2("2111", V4 + tlv("05", "61".repeat(129))), "v2_tlv"],
  [
    "B9 ALPN, AUTHORITY, NETNS",
    v2("2111", V4 + tlv("01", "6832") + tlv("02", "61") + tlv("30", "62")),
    `${CLIENT4} v2`,
  ],
  [
    "B10 SSL with sub-TLVs",
    v2("2111", V4 + tlv("20", "0100000000" + tlv("21", "544c53") + tlv("22", "61"))),
    `${CLIENT4} v2`,
  ],
  ["B10 SSL without its head", v2("2111", V4 + tlv("20", "01000000")), "v2_tlv"],
  [
    "B10 a sub-TLV past the SSL TLV",
    v2("2111", V4 + tlv("20", "0100000000" + "210003aa") + tlv("ee", "0102")),
    "v2_tlv",
  ],
  ["B10 half a sub-TLV", v2("2111", V4 + tlv("20", "0100000000" + "2100")), "v2_tlv"],
  [
    "policy: IPv4-mapped is IPv4",
    v2("2121", "00000000000000000000ffffc0000201 00000000000000000000ffffc6336401 dc04 01bb"),
    `${CLIENT4} v2`,
  ],
  ["policy: ::", v2("2121", "00".repeat(36)), "client_unspecified"],
  ["policy: multicast", v2("2111", "e0000001 c6336401 dc04 01bb"), "client_multicast"],
  ["policy: broadcast", v2("2111", "ffffffff c6336401 dc04 01bb"), "client_broadcast"],
  ["policy: IPv6 multicast", v2("2121", `ff02${V6.slice(4)}`), "client_multicast"],
  [
    "policy: mapped broadcast",
    v2("2121", `00000000000000000000ffffffffffff ${V6.slice(33)}`),
    "client_broadcast",
  ],
  [
    "policy: IPv4-mapped to an IPv6 destination, as HAProxy sends it",
    v2("2121", `00000000000000000000ffffc0000201 ${V6.slice(33)}`),
    "client 192.0.2.1:56324 to 0.0.0.0:443 v2",
  ],
];

const SPP: Row[] = [
  ["IPv6", hex(`56ec ${V6}`), `${CLIENT6} v3`],
  [
    "IPv4-mapped",
    hex("56ec 00000000000000000000ffffc0000201 00000000000000000000ffffc6336401 dc04 01bb"),
    `${CLIENT4} v3`,
  ],
  ["37 bytes", hex(`56ec ${V6}`).subarray(0, 37), "spp_short"],
  ["39 bytes", hex(`56ec ${V6} 00`), "spp_short"],
  ["nothing", new Uint8Array(), "spp_short"],
  ["another magic", hex(`56ed ${V6}`), "spp_magic"],
  ["a version 2 header", v2("2111", V4), "spp_magic"],
  ["an unspecified client", hex(`56ec ${"00".repeat(36)}`), "client_unspecified"],
  ["a multicast client", hex(`56ec ff02${V6.slice(4)}`), "client_multicast"],
  ["one byte", hex("56"), "spp_short"],
];

/** Addresses at the edges of what no client can have: the address, and the reason or none. */
const EDGES: readonly (readonly [address: string, refusal?: string])[] = [
  ["0.0.0.0", "client_unspecified"],
  ["0.0.0.1", "client_this_network"],
  ["0.255.255.255", "client_this_network"],
  ["1.0.0.0"],
  // What these are depends on the peer and on this host, which the decoder does not know.
  ["127.0.0.1"],
  ["127.255.255.255"],
  // IPv4 needs no scope: a neighbour of the balancer can have it (docs/trust.md).
  ["169.254.0.1"],
  ["223.255.255.255"],
  ["224.0.0.0", "client_multicast"],
  ["239.255.255.255", "client_multicast"],
  ["240.0.0.0", "client_reserved"],
  ["255.255.255.254", "client_reserved"],
  ["255.0.255.255", "client_reserved"],
  ["255.255.255.255", "client_broadcast"],
  ["::", "client_unspecified"],
  ["::1"],
  ["::7f00:1"],
  ["fe7f:ffff::1"],
  ["fe80::1", "client_link_local"],
  ["febf:ffff::1", "client_link_local"],
  ["fec0::1"],
  ["feff::1"],
  ["ff00::", "client_multicast"],
  ["ff02::1", "client_multicast"],
];

/** The address in every form of header that has room for it. */
function everyForm(address: string): [header: Uint8Array, carrier: number][] {
  const { family, bytes } = parseIp(address) ?? assert.fail(address);
  const digits = (list: readonly number[]) =>
    list.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const mapped = "0".repeat(20) + "ffff";
  const wide = (family === 4 ? mapped : "") + digits(bytes);
  const destination = `${mapped}c6336401`;
  const ports = "dc04 01bb";
  const forms: [Uint8Array, number][] = [
    [v2("2121", `${wide} ${destination} ${ports}`), Carrier.stream],
    [v2("2122", `${wide} ${destination} ${ports}`), Carrier.datagram],
    [hex(`56ec ${wide} ${destination} ${ports}`), Carrier.spp],
  ];
  return family === 6
    ? [...forms, [text(`PROXY TCP6 ${address} 2001:db8::2 56324 443\r\n`), Carrier.stream]]
    : [
      ...forms,
      [v2("2111", `${digits(bytes)} c6336401 ${ports}`), Carrier.stream],
      [text(`PROXY TCP4 ${address} 198.51.100.1 56324 443\r\n`), Carrier.stream],
      [text(`PROXY TCP6 ::ffff:${address} ::1 56324 443\r\n`), Carrier.stream],
    ];
}

for (const [address, refusal] of EDGES) {
  Deno.test(`createDecoder: a client ${address} is ${refusal ?? "taken"} in every form`, () => {
    for (const [header, carrier] of everyForm(address)) {
      const verdict = verdictOn(header, carrier);
      if (refusal === undefined) assert.match(verdict, /^client /);
      else assert.equal(verdict, refusal);
      // Refused or not, the log can say whom the header names.
      const named = formatAddress(
        record.getUint8(VERDICT.family),
        new Uint8Array(region, VERDICT.client_address, 16),
        record.getUint16(VERDICT.client_port, LITTLE),
      );
      assert.equal(named, address.includes(":") ? `[${address}]:56324` : `${address}:56324`);
    }
  });
}

for (const [name, header, verdict] of VERSION_1) {
  Deno.test(`createDecoder: version 1, ${name}`, () => assert.equal(verdictOn(header), verdict));
}
for (const [name, header, verdict] of VERSION_2) {
  Deno.test(`createDecoder: version 2, ${name}`, () => assert.equal(verdictOn(header), verdict));
}
for (const [name, header, verdict] of SPP) {
  Deno.test(`createDecoder: Simple Proxy Protocol, ${name}`, () => {
    assert.equal(verdictOn(header, Carrier.spp), verdict);
  });
}

Deno.test("createDecoder: G5 what carries a header decides, not its bytes", () => {
  assert.equal(verdictOn(hex(`56ec ${V6}`), Carrier.datagram), "not_proxy");
  assert.equal(verdictOn(v2("2112", V4), Carrier.datagram), `${CLIENT4} v2`);
  const line = text("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n");
  assert.equal(verdictOn(line, Carrier.datagram), `${CLIENT4} v1`);
});

Deno.test("createDecoder: G4 a header cut short by the datagram's end is refused", () => {
  const whole = v2("2112", V4 + tlv("ee", "0102"));
  for (let length = 0; length < whole.length; length++) {
    assert.equal(verdictOn(whole.subarray(0, length), Carrier.datagram), "incomplete");
  }
});

Deno.test("createDecoder: G9 the longest header, 65,551 bytes, is decoded", () => {
  const value = "00".repeat(65_535 - 12 - 3);
  const longest = v2("2111", V4 + tlv("04", value));
  assert.equal(longest.length, 65_551);
  assert.equal(verdictOn(longest), `${CLIENT4} v2`);
});

Deno.test("createDecoder: a length beyond any header is refused", () => {
  for (const length of [65_552, 0xffff_ffff, -1]) {
    new Uint8Array(region).fill(0);
    assert.equal(decode(length, Carrier.stream), Action.drop);
    assert.equal(record.getUint8(VERDICT.refusal), Refusal.incomplete);
  }
});

Deno.test("createDecoder: a region that is too small is refused", () => {
  assert.throws(() => createDecoder(new ArrayBuffer(100)), RangeError);
});

/** What is left on the heap by each of 100 rounds of 10,000 calls, in bytes, in ascending order. */
function heapGrowth(call: (index: number) => void): number[] {
  return Array.from({ length: 100 }, () => {
    const before = Deno.memoryUsage().heapUsed;
    for (let index = 0; index < 10_000; index++) call(index);
    return Deno.memoryUsage().heapUsed - before;
  }).sort((a, b) => a - b);
}

Deno.test("createDecoder: a million headers, accepted and refused, allocate nothing", () => {
  const headers = [
    ...[...VERSION_1, ...VERSION_2].map(([, header]) => ({ header, carrier: Carrier.stream })),
    ...SPP.map(([, header]) => ({ header, carrier: Carrier.spp })),
  ];
  const bytes = new Uint8Array(region, HEADER_OFFSET);
  const kept: unknown[] = [undefined];
  // The smallest object has 16 bytes: one for each of 10,000 headers would leave 160,000. Some rounds
  // hold what the engine compiles; three in four must not.
  const allocating = heapGrowth((index) => kept[0] = { index });
  assert.ok(allocating[75]! > 160_000, `An object a call shows as ${allocating[75]} bytes`);
  const decoding = heapGrowth((index) => {
    const { header, carrier } = headers[index % headers.length]!;
    bytes.set(header);
    decode(header.length, carrier);
  });
  assert.ok(decoding[75]! < 1_000, `10,000 headers left ${decoding[75]} bytes`);
});

Deno.test("warmUp: every sample is a header that is accepted", () => {
  const accepted = new Set<number>();
  warmUp(region, (length, carrier) => {
    const action = decode(length, carrier);
    accepted.add(action);
    return action;
  });
  assert.deepEqual(accepted, new Set([Action.client, Action.own]));
});
