import assert from "node:assert/strict";
import fc from "fast-check";
import type { Transport } from "./options.ts";
import { distinctPorts, overlaps, parsePortRange, parsePorts, type PortRange } from "./ranges.ts";

const PORTS: readonly (readonly [text: string, ports: readonly [number, number] | undefined])[] = [
  ["1", [1, 1]],
  ["65535", [65_535, 65_535]],
  ["30000-30999", [30_000, 30_999]],
  ["7-7", [7, 7]],
  ["0", undefined],
  ["0-9", undefined],
  ["65536", undefined],
  ["1-65536", undefined],
  ["8-7", undefined],
  ["", undefined],
  ["-", undefined],
  ["1-", undefined],
  ["-1", undefined],
  ["1-2-3", undefined],
  ["1 - 2", undefined],
  ["http", undefined],
];

for (const [text, ports] of PORTS) {
  Deno.test(`parsePorts: ${ports ? "takes" : "refuses"} ${JSON.stringify(text)}`, () => {
    assert.deepEqual(parsePorts(text), ports && { first: ports[0], last: ports[1] });
  });
}

const range = (text: string): PortRange =>
  parsePortRange(text) ?? assert.fail(`${text} is not taken`);

Deno.test("parsePortRange: an address with a port is a range of one", () => {
  assert.deepEqual(range("192.0.2.1:443"), {
    family: 4,
    bytes: [192, 0, 2, 1],
    port: 443,
    scope: 0,
    lastPort: 443,
    text: "192.0.2.1:443",
  });
});

Deno.test("parsePortRange: a range keeps its ends, its scope and its text", () => {
  const { port, lastPort, scope, family, text } = range("[fe80::1%3]:30000-30999");
  assert.deepEqual(
    { port, lastPort, scope, family, text },
    { port: 30_000, lastPort: 30_999, scope: 3, family: 6, text: "[fe80::1%3]:30000-30999" },
  );
});

for (
  const text of [
    "",
    "443",
    ":443",
    "0.0.0.0",
    "0.0.0.0:",
    "0.0.0.0:0",
    "0.0.0.0:9-8",
    "::1:443",
    "[::1]",
    "[127.0.0.1]:443",
    "localhost:443",
    "0.0.0.0:1-2-3",
    "0.0.0.0:1-65536",
  ]
) {
  Deno.test(`parsePortRange: refuses ${JSON.stringify(text)}`, () => {
    assert.equal(parsePortRange(text), undefined);
  });
}

Deno.test("distinctPorts: each once, in the order in which they are named", () => {
  const ranges = ["0.0.0.0:30-32", "[::]:30-32", "0.0.0.0:5", "192.0.2.1:31-33"].map(range);
  assert.deepEqual(distinctPorts(ranges), [30, 31, 32, 5, 33]);
});

/** The overlaps of `[transports, range]`, as `later over earlier`. */
function found(...claims: readonly (readonly [Transport[], string])[]): string[] {
  return overlaps(
    claims.map(([transports, text]) => ({ range: range(text), transports, owner: text })),
  ).map(({ claim, earlier }) => `${claim.owner} over ${earlier.owner}`);
}

const OVERLAPPING: readonly (readonly [one: string, other: string])[] = [
  ["192.0.2.1:25", "192.0.2.1:25"],
  ["0.0.0.0:25", "192.0.2.1:25"],
  ["192.0.2.1:25", "0.0.0.0:25"],
  ["[::]:25", "[2001:db8::1]:25"],
  ["[2001:db8:0::1]:25", "[2001:db8::1]:25"],
  ["0.0.0.0:20-30", "0.0.0.0:30-40"],
  ["0.0.0.0:20-30", "0.0.0.0:25"],
  ["0.0.0.0:25", "0.0.0.0:20-30"],
  ["[::ffff:192.0.2.1]:25", "192.0.2.1:25"],
];

for (const [one, other] of OVERLAPPING) {
  Deno.test(`overlaps: ${other} over ${one}`, () => {
    assert.deepEqual(found([["tcp"], one], [["tcp"], other]), [`${other} over ${one}`]);
  });
}

const APART: readonly (readonly [one: string, other: string])[] = [
  ["192.0.2.1:25", "192.0.2.2:25"],
  ["0.0.0.0:25", "0.0.0.0:26"],
  ["0.0.0.0:20-30", "0.0.0.0:31-40"],
  // As a mail host has them; the IPv6 socket leaves IPv4 to the other one.
  ["0.0.0.0:25", "[::]:25"],
  ["[fe80::1%2]:25", "[fe80::1%3]:25"],
];

for (const [one, other] of APART) {
  Deno.test(`overlaps: ${one} and ${other} are apart`, () => {
    assert.deepEqual(found([["tcp"], one], [["tcp"], other]), []);
  });
}

Deno.test("overlaps: TCP and UDP are apart, and both overlaps each of them", () => {
  const one = "0.0.0.0:53";
  assert.deepEqual(found([["tcp"], one], [["udp"], one]), []);
  assert.deepEqual(found([["tcp", "udp"], one], [["udp"], one]).length, 1);
});

Deno.test("overlaps: each claim is named once, with the first that it overlaps", () => {
  assert.deepEqual(
    found([["tcp"], "192.0.2.1:25"], [["tcp"], "192.0.2.2:25"], [["tcp"], "0.0.0.0:25"], [
      ["tcp"],
      "0.0.0.0:25",
    ]),
    ["0.0.0.0:25 over 192.0.2.1:25", "0.0.0.0:25 over 192.0.2.1:25"],
  );
});

Deno.test("overlaps: finds one exactly where two claims share an address and port", () => {
  const host = fc.constantFrom("0.0.0.0", "192.0.2.1", "192.0.2.2");
  const claim = fc.record({ host, first: fc.nat(5), more: fc.nat(2) });
  fc.assert(fc.property(claim, claim, (one, other) => {
    const texts = [one, other].map(({ host, first, more }) =>
      `${host}:${first + 1}-${first + 1 + more}`
    );
    const taken = ({ host, first, more }: typeof one) =>
      ["192.0.2.1", "192.0.2.2"].filter((one) => host === "0.0.0.0" || host === one)
        .flatMap((one) => Array.from({ length: more + 1 }, (_, next) => `${one}:${first + next}`));
    const shared = new Set(taken(one)).intersection(new Set(taken(other))).size > 0;
    const [first = "", second = ""] = texts;
    assert.equal(found([["tcp"], first], [["tcp"], second]).length, shared ? 1 : 0);
  }));
});
