import assert from "node:assert/strict";
import fc from "fast-check";
import {
  bytes,
  concat,
  sslTlv,
  tlv,
  v1,
  v2,
  v2Local,
  v2Raw,
} from "../../tests/e2e/support/headers.ts";
import { readTlvs, type Tlvs } from "./tlvs.ts";

const CLIENT = { ip: "192.0.2.1", port: 56_324 };
const CLIENT6 = { ip: "2001:db8::1", port: 56_324 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
const BALANCER6 = { ip: "2001:db8::2", port: 443 };

const UNIX = 0x31;
const PROXY = 1;
const VPC_ENDPOINT = "vpce-08d2bf15fac5001c9";

/** The words of each case are its name. */
const CASES: readonly (readonly [string, readonly Uint8Array[], Tlvs])[] = [
  ["none", [], {}],
  ["ALPN and authority", [tlv(0x01, bytes("h2")), tlv(0x02, bytes("www.example.org"))], {
    alpn: "h2",
    authority: "www.example.org",
  }],
  ["an authority of 255 bytes", [tlv(0x02, bytes("a".repeat(255)))], {
    authority: "a".repeat(255),
  }],
  ["an authority in UTF-8", [tlv(0x02, bytes("bücher.example"))], { authority: "bücher.example" }],
  ["an authority that is no UTF-8", [tlv(0x02, Uint8Array.of(0x62, 0xfc))], {
    authority: "0x62fc",
  }],
  ["an authority with a line feed", [tlv(0x02, bytes("a\nb"))], { authority: "0x610a62" }],
  ["an authority that turns the writing round", [tlv(0x02, bytes("a\u202eb"))], {
    authority: "0x61e280ae62",
  }],
  ["an empty authority", [tlv(0x02, new Uint8Array())], { authority: "" }],
  [
    "checksum and padding, which are mute",
    [tlv(0x03, new Uint8Array(4)), tlv(0x04, bytes("x"))],
    {},
  ],
  ["a unique id", [tlv(0x05, Uint8Array.of(0, 1, 0xfe, 0xff))], { unique_id: "0001feff" }],
  ["a network namespace", [tlv(0x30, bytes("blue"))], { netns: "blue" }],
  [
    "TLS without a certificate",
    [sslTlv(tlv(0x21, bytes("TLSv1.3")), tlv(0x23, bytes("TLS_AES_128_GCM_SHA256")))],
    { tls: { version: "TLSv1.3", cipher: "TLS_AES_128_GCM_SHA256" } },
  ],
  [
    "TLS with a verified certificate",
    [tlv(
      0x20,
      concat(
        [0x07, 0, 0, 0, 0],
        tlv(0x22, bytes("alice")),
        tlv(0x24, bytes("RSA-SHA256")),
        tlv(0x25, bytes("RSA2048")),
        tlv(0x26, bytes("X25519")),
        tlv(0x27, bytes("rsa_pss_rsae_sha256")),
        tlv(0x28, Uint8Array.of(0x30, 0x82)),
        tlv(0x29, bytes("later")),
      ),
    )],
    {
      tls: {
        cn: "alice",
        signature_algorithm: "RSA-SHA256",
        key_algorithm: "RSA2048",
        group: "X25519",
        signature_scheme: "rsa_pss_rsae_sha256",
        client_certificate: "MII=",
        client_verified: true,
        other_tlvs: { "0x29": "later" },
      },
    },
  ],
  ["TLS with a certificate that failed", [tlv(0x20, Uint8Array.of(0x03, 0, 0, 0, 1))], {
    tls: { client_verified: false },
  }],
  ["a TLS TLV that is too short", [tlv(0x20, Uint8Array.of(1))], {
    other_tlvs: { "0x20": "0x01" },
  }],
  ["an AWS VPC endpoint", [tlv(0xea, concat([1], bytes(VPC_ENDPOINT)))], {
    aws_vpc_endpoint: VPC_ENDPOINT,
  }],
  ["another AWS sub-type", [tlv(0xea, Uint8Array.of(2, 0x41))], {
    other_tlvs: { "0xea": "0x0241" },
  }],
  ["an Azure private endpoint, little-endian", [tlv(0xee, Uint8Array.of(1, 0xc4, 0x21, 0, 0x20))], {
    azure_private_endpoint: 0x200021c4,
  }],
  ["an Azure TLV of another length", [tlv(0xee, Uint8Array.of(1, 2))], {
    other_tlvs: { "0xee": "0x0102" },
  }],
  [
    "a Google PSC connection, big-endian",
    [tlv(0xe0, Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0xc0, 0xa8, 0x64, 2))],
    { gcp_psc_connection: "18446744072646845442" },
  ],
  ["others", [tlv(0xf0, bytes("text")), tlv(0xf1, Uint8Array.of(0))], {
    other_tlvs: { "0xf0": "text", "0xf1": "0x00" },
  }],
];

for (const [name, tlvs, expected] of CASES) {
  Deno.test(`readTlvs: ${name}`, () => {
    assert.deepEqual(readTlvs(v2(CLIENT, BALANCER, { tlvs: [...tlvs] })), expected);
  });
}

const AUTHORITY = tlv(0x02, bytes("example.org"));

Deno.test("readTlvs: behind the addresses of every family", () => {
  const expected = { authority: "example.org" };
  assert.deepEqual(readTlvs(v2(CLIENT6, BALANCER6, { tlvs: [AUTHORITY] })), expected);
  assert.deepEqual(readTlvs(v2Raw(PROXY, 0, AUTHORITY)), expected, "UNSPEC");
  const unix = v2Raw(PROXY, UNIX, concat(new Uint8Array(216), AUTHORITY));
  assert.deepEqual(readTlvs(unix), expected, "unix");
});

Deno.test("readTlvs: B2, LOCAL has none, whatever it holds", () => {
  assert.deepEqual(readTlvs(v2Local(AUTHORITY, 0x11)), {});
});

Deno.test("readTlvs: version 1 has none", () => {
  assert.deepEqual(readTlvs(v1(CLIENT, BALANCER).subarray(0, 12)), {});
});

Deno.test("readTlvs: a truncated TLV is omitted, except for the complete parts of the TLS TLV", () => {
  const header = v2(CLIENT, BALANCER, {
    tlvs: [AUTHORITY, sslTlv(tlv(0x21, bytes("TLSv1.3")), tlv(0x28, new Uint8Array(9000)))],
  });
  const expected = { authority: "example.org", tls: { version: "TLSv1.3" } };
  assert.deepEqual(readTlvs(header.subarray(0, 4096)), expected);
  const cut = v2(CLIENT, BALANCER, { tlvs: [AUTHORITY, tlv(0x01, bytes("h2"))] });
  assert.deepEqual(readTlvs(cut.subarray(0, -1)), { authority: "example.org" });
});

Deno.test("readTlvs: B7, any bytes end, and what they say is printable", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), (body) => {
    const said = JSON.stringify(readTlvs(v2Raw(PROXY, 0, body)));
    // deno-lint-ignore no-control-regex
    assert.doesNotMatch(said, /[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]/);
  }));
});
