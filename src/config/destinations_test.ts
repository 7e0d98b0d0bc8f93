import assert from "node:assert/strict";
import { parseIp } from "./address.ts";
import { type Destination, isAllowed, parseDestination } from "./destinations.ts";
import { Problem } from "./problem.ts";

function destination(text: string): Destination {
  const parsed = parseDestination(text);
  if (parsed instanceof Problem) assert.fail(`${text}: ${parsed.text}`);
  return parsed;
}

const JUDGED: readonly (readonly [entry: string, allowed: string[], refused: string[]])[] = [
  ["127.0.0.0/8:1024-65535", ["127.0.0.1 1024", "127.255.0.1 65535"], [
    "127.0.0.1 1023",
    "128.0.0.1 2000",
    "::1 2000",
  ]],
  ["10.0.0.5:22", ["10.0.0.5 22", "::ffff:10.0.0.5 22"], ["10.0.0.5 23", "10.0.0.4 22"]],
  ["[2001:db8::/32]:443", ["2001:db8::1 443", "2001:db8:ffff::1 443"], [
    "2001:db9::1 443",
    "2001:db8::1 80",
    "192.0.2.1 443",
  ]],
  ["[2001:db8::1]:1-9", ["2001:db8::1 9"], ["2001:db8::2 9", "2001:db8::1 10"]],
];

for (const [entry, allowed, refused] of JUDGED) {
  Deno.test(`isAllowed: ${entry} allows what it says, and nothing else`, () => {
    const judge = (text: string) => {
      const [ip = "", port] = text.split(" ");
      return isAllowed([destination(entry)], parseIp(ip)?.bytes ?? [], Number(port));
    };
    assert.deepEqual(allowed.filter((text) => !judge(text)), []);
    assert.deepEqual(refused.filter(judge), []);
  });
}

Deno.test("isAllowed: one entry of several is enough, and none allows nothing", () => {
  const entries = ["10.0.0.5:22", "10.0.0.6:80"].map(destination);
  assert.ok(isAllowed(entries, [10, 0, 0, 6], 80));
  assert.ok(!isAllowed(entries, [10, 0, 0, 6], 22));
  assert.ok(!isAllowed([], [10, 0, 0, 6], 80));
});

const FORM = /^expected an address or subnet with a port or a range of ports, for example /;
const WRONG: readonly (readonly [entry: string, problem: RegExp])[] = [
  ["", FORM],
  ["10.0.0.0/8", FORM],
  ["10.0.0.5", FORM],
  ["10.0.0.5:0", FORM],
  ["10.0.0.5:9-8", FORM],
  ["10.0.0.5:http", FORM],
  ["2001:db8::/32:443", FORM],
  ["[2001:db8::/32]", FORM],
  ["[10.0.0.5]:22", FORM],
  ["10.0.0.5/8:22", /^10\.0\.0\.5\/8 has host bits set: the subnet is 10\.0\.0\.0\/8$/],
  ["host.internal:22", /^host\.internal is not an IP address or subnet/],
  ["[2001:db8::/129]:1", /^2001:db8::\/129 needs a prefix length from 0 to 128$/],
];

for (const [entry, problem] of WRONG) {
  Deno.test(`parseDestination: refuses ${JSON.stringify(entry)}`, () => {
    const parsed = parseDestination(entry);
    assert.ok(parsed instanceof Problem, "is taken");
    assert.match(parsed.text, problem);
  });
}
