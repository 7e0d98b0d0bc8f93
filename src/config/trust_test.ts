import assert from "node:assert/strict";
import fc from "fast-check";
import { parseIp } from "./address.ts";
import { Problem } from "./problem.ts";
import { contains, parseSubnet } from "./subnet.ts";
import { duplicates, type HeaderRule, longestFirst, ruleFor, type TrustRule } from "./trust.ts";

function rule(text: string, header: HeaderRule = "require"): TrustRule {
  const from = parseSubnet(text);
  if (from instanceof Problem) assert.fail(`${text} ${from.text}`);
  return { from, header };
}

const bytesOf = (text: string) => parseIp(text)?.bytes ?? assert.fail(text);

Deno.test("ruleFor: the longest prefix that holds the peer counts, in whatever order they stand", () => {
  const rules = longestFirst([
    rule("10.0.0.0/8", "optional"),
    rule("10.1.2.3", "skip"),
    rule("10.1.0.0/16", "require"),
    rule("2001:db8::/32", "skip"),
  ]);
  const headerFor = (peer: string) => ruleFor(rules, bytesOf(peer))?.header;
  assert.equal(headerFor("10.1.2.3"), "skip");
  assert.equal(headerFor("::ffff:10.1.2.3"), "skip");
  assert.equal(headerFor("10.1.2.4"), "require");
  assert.equal(headerFor("10.2.0.1"), "optional");
  assert.equal(headerFor("2001:db8::1"), "skip");
  assert.equal(headerFor("192.0.2.1"), undefined);
  assert.equal(headerFor("::1"), undefined);
});

Deno.test("ruleFor: is the longest of those that hold the peer, for all rules and peers", () => {
  const subnet = fc.tuple(fc.nat(3), fc.nat(3), fc.constantFrom(8, 16, 24))
    .map(([a, b, prefix]) => rule(`10.${prefix > 8 ? a : 0}.${prefix > 16 ? b : 0}.0/${prefix}`));
  fc.assert(fc.property(fc.array(subnet), fc.nat(3), fc.nat(3), (rules, a, b) => {
    const peer = [10, a, b, 1];
    const prefixes = rules.filter(({ from }) => contains(from, peer)).map(({ from }) =>
      from.prefix
    );
    const expected = prefixes.length === 0 ? undefined : Math.max(...prefixes);
    assert.equal(ruleFor(longestFirst(rules), peer)?.from.prefix, expected);
  }));
});

Deno.test("duplicates: the same subnet twice, however it is written", () => {
  const rules = [
    rule("10.0.0.0/8"),
    rule("10.0.0.0/16"),
    rule("::ffff:10.0.0.0/104", "skip"),
    rule("2001:db8::1"),
    rule("2001:DB8:0::1/128", "optional"),
  ];
  assert.deepEqual(duplicates(rules), [2, 4]);
});
