import assert from "node:assert/strict";
import fc from "fast-check";
import { formatAddress, isLoopback, isMapped, parseAddress, parseIp } from "./address.ts";

const V6_LOOPBACK = [...new Array(15).fill(0), 1];
const MAPPED = [...new Array(10).fill(0), 0xff, 0xff, 192, 0, 2, 1];

const byte = fc.nat(255);
const port = fc.integer({ min: 1, max: 65_535 });
const ipv4 = fc.array(byte, { minLength: 4, maxLength: 4 });
/** Eight groups, zero often enough that there are runs to compress. */
const groups = fc.array(fc.oneof(fc.constant(0), fc.nat(0xffff)), { minLength: 8, maxLength: 8 });
const toBytes = (groups: number[]) => groups.flatMap((group) => [group >> 8, group & 0xff]);
const hex = (groups: number[]) => groups.map((group) => group.toString(16)).join(":");

Deno.test("parseIp: reads both families into bytes in network order", () => {
  assert.deepEqual(parseIp("192.0.2.255"), { family: 4, bytes: [192, 0, 2, 255] });
  assert.deepEqual(parseIp("::1"), { family: 6, bytes: V6_LOOPBACK });
  assert.deepEqual(parseIp("::ffff:192.0.2.1"), { family: 6, bytes: MAPPED });
  assert.deepEqual(parseIp("::FFFF:C000:0201"), { family: 6, bytes: MAPPED });
});

for (
  const text of [
    ..."|10.1|1.2.3|1.2.3.4.5|256.0.0.1|010.0.0.1|0x0a.0.0.1|1.2.3.4 | 1.2.3.4|1.2.3.-4".split("|"),
    ...":::|1::2::3|12345::|00001::|1:2:3:4:5:6:7|1:2:3:4:5:6:7:8:9|::g|[::1]|fe80::1%3".split("|"),
    "::ffff:010.0.0.1",
    "::ffff:0x0a.0.0.1",
    "::ffff:1.2.3.08",
    "::ffff:300.0.0.1",
    "::ffff:10.1",
    // IPv4-compatible, deprecated: not to be mistaken for the mapped form.
    "::192.0.2.1",
  ]
) {
  Deno.test(`parseIp: refuses ${JSON.stringify(text)}`, () => {
    assert.equal(parseIp(text), undefined);
  });
}

Deno.test("parseAddress: reads address, port and interface, and keeps the text", () => {
  assert.deepEqual(parseAddress("192.0.2.1:65535"), {
    family: 4,
    bytes: [192, 0, 2, 1],
    port: 65_535,
    scope: 0,
    text: "192.0.2.1:65535",
  });
  const zoned = parseAddress("[fe80::1%12]:53");
  assert.equal(zoned?.scope, 12);
  assert.equal(zoned?.port, 53);
  assert.deepEqual(zoned?.bytes, [0xfe, 0x80, ...new Array(13).fill(0), 1]);
});

for (
  const text of [
    "192.0.2.1",
    "192.0.2.1:",
    "192.0.2.1:0",
    "192.0.2.1:65536",
    "192.0.2.1:1e3",
    "192.0.2.1:-1",
    ":443",
    "::1",
    "::1:443",
    "2001:db8::1:443",
    "[::1]",
    "[::1]443",
    "[192.0.2.1]:443",
    "[fe80::1%eth0]:443",
    "[fe80::1%]:443",
    "localhost:443",
    "192.0.2.1:443\n",
  ]
) {
  Deno.test(`parseAddress: refuses ${JSON.stringify(text)}`, () => {
    assert.equal(parseAddress(text), undefined);
  });
}

Deno.test("formatAddress: leaves out what is not there, and puts IPv6 in brackets for a port", () => {
  const v4 = Uint8Array.of(192, 0, 2, 1);
  const v6 = Uint8Array.from(V6_LOOPBACK);
  assert.equal(formatAddress(4, v4), "192.0.2.1");
  assert.equal(formatAddress(4, v4, 0), "192.0.2.1:0");
  assert.equal(formatAddress(6, v6), "::1");
  assert.equal(formatAddress(6, v6, 80), "[::1]:80");
  assert.equal(formatAddress(6, v6, 80, 3), "[::1%3]:80");
});

Deno.test("formatAddress: takes the first 4 of 16 bytes for IPv4", () => {
  assert.equal(formatAddress(4, new Uint8Array(16).fill(7)), "7.7.7.7");
});

Deno.test("formatAddress: compresses IPv6 as URLs do (RFC 5952)", () => {
  fc.assert(fc.property(groups, (groups) => {
    const { hostname } = new URL(`http://[${hex(groups)}]/`);
    assert.equal(`[${formatAddress(6, Uint8Array.from(toBytes(groups)))}]`, hostname);
  }));
});

Deno.test("parseAddress: reads back every IPv4 address that formatAddress writes", () => {
  fc.assert(fc.property(ipv4, port, (bytes, port) => {
    const text = formatAddress(4, Uint8Array.from(bytes), port);
    assert.deepEqual(parseAddress(text), { family: 4, bytes, port, scope: 0, text });
  }));
});

Deno.test("parseAddress: reads back every IPv6 address that formatAddress writes", () => {
  fc.assert(fc.property(groups, port, fc.nat(999_999_999), (groups, port, scope) => {
    const bytes = toBytes(groups);
    const text = formatAddress(6, Uint8Array.from(bytes), port, scope);
    assert.deepEqual(parseAddress(text), { family: 6, bytes, port, scope, text });
  }));
});

Deno.test("parseIp: reads every way to write an IPv6 address alike", () => {
  fc.assert(fc.property(groups, (groups) => {
    const bytes = toBytes(groups);
    const padded = groups.map((group) => group.toString(16).padStart(4, "0")).join(":");
    const tailed = `${hex(groups.slice(0, 6))}:${bytes.slice(12).join(".")}`;
    for (const text of [hex(groups), padded, padded.toUpperCase(), tailed]) {
      assert.deepEqual(parseIp(text)?.bytes, bytes, text);
    }
  }));
});

Deno.test("isMapped: holds for ::ffff:0:0/96 alone", () => {
  assert.equal(isMapped(MAPPED), true);
  assert.equal(isMapped(V6_LOOPBACK), false);
  assert.equal(isMapped([1, ...MAPPED.slice(1)]), false);
  assert.equal(isMapped([...MAPPED.slice(0, 10), 0xff, 0xfe, 192, 0, 2, 1]), false);
});

Deno.test("isLoopback: 127.0.0.0/8 and ::1, also mapped, and nothing else", () => {
  const isLocal = (text: string) => {
    const address = parseAddress(text) ?? assert.fail(text);
    return isLoopback(address);
  };
  for (const text of ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"]) {
    assert.ok(isLocal(text), text);
  }
  for (const text of ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::2]:1", "[::ffff:192.0.2.1]:1"]) {
    assert.ok(!isLocal(text), text);
  }
});
