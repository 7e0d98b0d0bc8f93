import assert from "node:assert/strict";
import { addressHint } from "./address_hint.ts";
import { Problem } from "./problem.ts";
import { parseUpstream, type Upstream, upstreamPort } from "./upstreams.ts";

function upstream(text: string, family: 4 | 6 = 4): Upstream | "none" {
  const parsed = parseUpstream(text, family);
  if (parsed instanceof Problem) assert.fail(`${text}: ${parsed.text}`);
  return parsed;
}

const LOOPBACK6 = [...new Array(15).fill(0), 1];

const ADDRESSES: readonly (readonly [
  text: string,
  family: 4 | 6,
  bytes: readonly number[],
  ports: "same" | readonly [number, number],
  scope?: number,
])[] = [
  ["127.0.0.1", 4, [127, 0, 0, 1], "same"],
  ["127.0.0.1:443", 4, [127, 0, 0, 1], [443, 443]],
  ["127.0.0.1:30000-30999", 4, [127, 0, 0, 1], [30_000, 30_999]],
  ["::1", 6, LOOPBACK6, "same"],
  ["[::1]", 6, LOOPBACK6, "same"],
  ["[::1]:443", 6, LOOPBACK6, [443, 443]],
  ["[::1]:1-9", 6, LOOPBACK6, [1, 9]],
  ["[fe80::1%3]:443", 6, [0xfe, 0x80, ...new Array(13).fill(0), 1], [443, 443], 3],
  ["fe80::1%3", 6, [0xfe, 0x80, ...new Array(13).fill(0), 1], "same", 3],
];

for (const [text, family, bytes, ports, scope = 0] of ADDRESSES) {
  Deno.test(`parseUpstream: takes ${text}`, () => {
    assert.deepEqual(upstream(text, family), {
      kind: "address",
      address: { family, bytes, scope },
      ports: ports === "same" ? ports : { first: ports[0], last: ports[1] },
      text,
    });
  });
}

const NAMES: readonly (readonly [text: string, host: string, ports: Upstream["ports"]])[] = [
  ["mail.internal", "mail.internal", "same"],
  ["Mail.Internal:25", "mail.internal", { first: 25, last: 25 }],
  ["localhost:80-89", "localhost", { first: 80, last: 89 }],
  ["a.", "a.", "same"],
  ["1and1.example", "1and1.example", "same"],
  ["_sip.example", "_sip.example", "same"],
  ["nonesuch", "nonesuch", "same"],
];

for (const [text, host, ports] of NAMES) {
  for (const family of [4, 6] as const) {
    Deno.test(`parseUpstream: takes the name ${text} for IPv${family}`, () => {
      assert.deepEqual(upstream(text, family), { kind: "name", host, ports, text });
    });
  }
}

Deno.test("parseUpstream: none is not an upstream", () => {
  assert.equal(upstream("none"), "none");
  assert.equal(upstream("NONE", 6), "none");
});

const FORM4 =
  "expected an IPv4 address or a host name, with or without a port or a range of ports, " +
  "for example 127.0.0.1:443";
const FORM6 = FORM4.replace("an IPv4", "an IPv6").replace("127.0.0.1:443", "[::1]:443");
const UNIX =
  "a unix socket cannot be an upstream, because a unix peer has no address to take the " +
  "client's place: name an IP address and port";

const WRONG: readonly (readonly [text: string, family: 4 | 6, problem: string])[] = [
  ["", 4, FORM4],
  [" 127.0.0.1", 4, FORM4],
  ["127.0.0.1:", 4, FORM4],
  ["127.0.0.1:0", 4, FORM4],
  ["127.0.0.1:9-8", 4, FORM4],
  ["127.0.0.1:http", 4, FORM4],
  ["127.0.0.256:25", 4, FORM4],
  ["127.1", 4, FORM4],
  ["[127.0.0.1]:25", 4, FORM4],
  ["[localhost]:25", 4, FORM4],
  ["-a.example:25", 4, FORM4],
  ["a..example:25", 4, FORM4],
  [`${"a".repeat(64)}.example`, 4, FORM4],
  ["[::1]x", 6, FORM6],
  ["[::1", 6, FORM6],
  ["[::1]:", 6, FORM6],
  ["[::1]443", 6, FORM6],
  ["::1%eth9", 6, FORM6],
  ["2001:db8::zz", 6, FORM6],
  ["::1", 4, `${FORM4}: this one is IPv6, which is for ipv6`],
  ["127.0.0.1:443", 6, `${FORM6}: this one is IPv4, which is for ipv4`],
  ["[::ffff:127.0.0.1]:443", 6, `${FORM6}: this one is IPv4, which is for ipv4`],
  ["0.0.0.0:443", 4, `${FORM4}: 0.0.0.0:443 is not the address of a server`],
  ["[::]:443", 6, `${FORM6}: [::]:443 is not the address of a server`],
  ["::1:443", 6, `${FORM6}: with a port, the address stands in brackets`],
  ["unix:/run/app.sock", 4, UNIX],
  ["/run/app.sock", 6, UNIX],
  ["./app.sock", 4, UNIX],
  ["@app", 4, UNIX],
];

for (const [text, family, problem] of WRONG) {
  Deno.test(`parseUpstream: refuses ${JSON.stringify(text)} for IPv${family}`, () => {
    const hint = problem === FORM4 || problem === FORM6 ? addressHint(text, "upstream") : "";
    assert.deepEqual(parseUpstream(text, family), new Problem(problem + hint));
  });
}

Deno.test("upstreamPort: the listened one, a single one for all, or one to one", () => {
  assert.equal(upstreamPort("same", 587, 3), 587);
  assert.equal(upstreamPort({ first: 25, last: 25 }, 587, 3), 25);
  assert.equal(upstreamPort({ first: 30_000, last: 30_009 }, 587, 3), 30_003);
});
