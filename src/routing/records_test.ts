import assert from "node:assert/strict";
import fc from "fast-check";
import { LITTLE_ENDIAN } from "../config/options.ts";
import { ENDPOINT, REACH, Reach, REPLY, REPLY_QUERY, ROUTING, Routing } from "../native/layout.ts";
import type { Family, Present } from "./plan.ts";
import {
  decodeReach,
  decodeReplyRoute,
  decodeRouting,
  encodeReply,
  encodeRouting,
} from "./records.ts";

const u8 = fc.integer({ min: 0, max: 0xff });
const u32 = fc.integer({ min: 1, max: 0xffff_ffff });
const port = fc.integer({ min: 1, max: 0xffff });
const family = fc.constantFrom<Family>(4, 6);
const common = {
  table: u32,
  origin: u8,
  priority: fc.integer({ min: 0, max: 0xffff_ffff }),
  other: fc.constant(false),
};

function bytes(family: Family) {
  const length = family === 4 ? 4 : 16;
  return fc.array(u8, { minLength: length, maxLength: length });
}

const rule: fc.Arbitrary<Present> = family.chain((family) =>
  fc.record({
    kind: fc.constant("rule" as const),
    family: fc.constant(family),
    ...common,
    device: fc.stringMatching(/^[a-z][a-z0-9]{0,14}$/),
    from: fc.record({
      bytes: bytes(family),
      length: fc.integer({ min: 1, max: family === 4 ? 32 : 128 }),
    }, { noNullPrototype: true }),
    mark: u32,
    transport: fc.constantFrom<"tcp" | "udp">("tcp", "udp"),
    ports: fc.tuple(port, port).map(([one, other]) => ({
      first: Math.min(one, other),
      last: Math.max(one, other),
    })),
  }, {
    noNullPrototype: true,
    requiredKeys: ["kind", "family", "table", "origin", "priority", "other", "device"],
  })
);

const route: fc.Arbitrary<Present> = family.chain((family) =>
  fc.record({
    kind: fc.constant("route" as const),
    family: fc.constant(family),
    ...common,
    source: bytes(family),
  }, {
    noNullPrototype: true,
    requiredKeys: ["kind", "family", "table", "origin", "priority", "other"],
  })
);

Deno.test("decodeRouting: gives back what encodeRouting wrote", () => {
  fc.assert(fc.property(fc.array(fc.oneof(rule, route)), (entries) => {
    const records = new Uint8Array(entries.length * ROUTING.size);
    entries.forEach((entry, index) => records.set(encodeRouting(entry), index * ROUTING.size));
    assert.deepEqual(decodeRouting(records), entries);
  }));
});

Deno.test("encodeRouting: writes each field where the native core reads it", () => {
  const record = encodeRouting({
    kind: "rule",
    family: 4,
    from: { bytes: [192, 0, 2, 1], length: 24 },
    device: "eth0",
    mark: 0x8000_0001,
    transport: "udp",
    ports: { first: 53, last: 63 },
    table: 70_000,
  });
  const view = new DataView(record.buffer);
  const { address, device, port, last_port, table, priority, mark, size: _, ...small } = ROUTING;
  const values = Object.entries(small).map(([name, offset]) => [name, record[offset]]);
  assert.deepEqual(Object.fromEntries(values), {
    kind: Routing.rule,
    family: 4,
    origin: 123,
    ip_protocol: 17,
    source_length: 24,
    other: 0,
  });
  assert.deepEqual(
    [port, last_port].map((offset) => view.getUint16(offset, LITTLE_ENDIAN)),
    [53, 63],
  );
  assert.deepEqual(
    [table, priority, mark].map((offset) => view.getUint32(offset, LITTLE_ENDIAN)),
    [70_000, 0, 0x8000_0001],
  );
  assert.deepEqual([...record.subarray(address, address + 5)], [192, 0, 2, 1, 0]);
  assert.equal(new TextDecoder().decode(record.subarray(device, device + 5)), "eth0\0");
});

Deno.test("decodeRouting: a route to another device, or a rule for another protocol, is other", () => {
  const there = { family: 4, table: 1, origin: 3, priority: 0, other: false } as const;
  const elsewhere = encodeRouting({ kind: "route", ...there });
  elsewhere.set(new TextEncoder().encode("eth0"), ROUTING.device);
  assert.equal(decodeRouting(elsewhere)[0]?.other, true);
  const icmp = encodeRouting({ kind: "rule", device: "lo", ...there });
  icmp[ROUTING.ip_protocol] = 1;
  assert.equal(decodeRouting(icmp)[0]?.other, true);
});

Deno.test("decodeReach: tells the device, the router and the address here", () => {
  const record = new Uint8Array(REACH.size);
  assert.deepEqual(decodeReach(record), { kind: "none" });
  record[REACH.kind] = Reach.local;
  assert.deepEqual(decodeReach(record), { kind: "local" });
  record[REACH.kind] = Reach.remote;
  record.set(new TextEncoder().encode("eth0"), REACH.device);
  assert.deepEqual(decodeReach(record), { kind: "remote", device: "eth0" });
  record.set([4], REACH.gateway + ENDPOINT.family);
  record.set([192, 0, 2, 9], REACH.gateway + ENDPOINT.address);
  record.set([6], REACH.source + ENDPOINT.family);
  record.set([0xfe, 0x80], REACH.source + ENDPOINT.address);
  const remote = { kind: "remote", device: "eth0", gateway: "192.0.2.9", source: "fe80::" };
  assert.deepEqual(decodeReach(record), remote);
});

Deno.test("encodeReply, decodeReplyRoute: a reply, and the rule that decides it", () => {
  const rule = { kind: "rule", family: 4, device: "lo", mark: 7, table: 123 } as const;
  const query = encodeReply({ rule, source: [127, 0, 0, 1], port: 443, transport: "tcp" });
  const asked = new DataView(query.buffer);
  assert.equal(asked.getUint8(REPLY_QUERY.client + ENDPOINT.family), 4);
  assert.equal(asked.getUint16(REPLY_QUERY.source + ENDPOINT.port, LITTLE_ENDIAN), 443);
  assert.equal(asked.getUint32(REPLY_QUERY.ip_protocol, LITTLE_ENDIAN), 6);
  assert.equal(asked.getUint32(REPLY_QUERY.mark, LITTLE_ENDIAN), 7);

  const record = new Uint8Array(REPLY.size);
  assert.deepEqual(decodeReplyRoute(record), { isLocal: false, device: "" });
  const view = new DataView(record.buffer);
  view.setUint8(REPLY.kind, Reach.remote);
  view.setUint8(REPLY.ruled, 1);
  view.setUint32(REPLY.priority, 100, LITTLE_ENDIAN);
  view.setUint32(REPLY.lookup, 254, LITTLE_ENDIAN);
  record.set(new TextEncoder().encode("wg0"), REPLY.device);
  const expected = { isLocal: false, device: "wg0", rule: { priority: 100, table: 254 } };
  assert.deepEqual(decodeReplyRoute(record), expected);
});
