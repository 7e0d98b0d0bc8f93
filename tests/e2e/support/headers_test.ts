import assert from "node:assert/strict";
import { addressBytes, bytes, concat, crc32c, spp, text, Tlv, tlv, v1, v2 } from "./headers.ts";

const CLIENT = { ip: "192.0.2.1", port: 4660 };
const SERVICE = { ip: "198.51.100.2", port: 443 };

function hex(data: Uint8Array): string {
  return [...data].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

Deno.test("v1: a line as in the specification's section 2.1", () => {
  assert.equal(text(v1(CLIENT, SERVICE)), "PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\n");
});

Deno.test("v2: the bytes of a TCP4 header", () => {
  assert.equal(
    hex(v2(CLIENT, SERVICE, { tlvs: [tlv(Tlv.noop, bytes("x"))] })),
    "0d0a0d0a000d0a515549540a2111" + "0010" + "c0000201c6336402123401bb" + "04000178",
  );
});

Deno.test("crc32c: the check value of RFC 3720", () => {
  assert.equal(crc32c(bytes("123456789")), 0xe3069283);
});

Deno.test("v2: a checksum over the header with the checksum's own bytes zeroed", () => {
  const header = v2(CLIENT, SERVICE, { checksum: true });
  const zeroed = concat(header.slice(0, -4), [0, 0, 0, 0]);
  assert.equal(hex(header.slice(-7, -4)), "030004");
  assert.equal(hex(header.slice(-4)), crc32c(zeroed).toString(16).padStart(8, "0"));
});

Deno.test("spp: 38 bytes with IPv4 mapped into IPv6", () => {
  assert.equal(
    hex(spp(CLIENT, SERVICE)),
    "56ec" + "00000000000000000000ffffc0000201" + "00000000000000000000ffffc6336402" +
      "123401bb",
  );
});

Deno.test("addressBytes: every form of an IPv6 address", () => {
  assert.equal(hex(addressBytes("::1")), "0".repeat(31) + "1");
  assert.equal(hex(addressBytes("2001:db8::a:b")), "20010db80000000000000000000a000b");
  assert.equal(hex(addressBytes("::ffff:192.0.2.1")), "00000000000000000000ffffc0000201");
  assert.equal(hex(addressBytes("1:2:3:4:5:6:7:8")), "00010002000300040005000600070008");
  assert.equal(concat([1], [2, 3]).length, 3);
});
