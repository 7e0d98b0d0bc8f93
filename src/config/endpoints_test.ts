import assert from "node:assert/strict";
import { parseDestination } from "./destinations.ts";
import { isRange, mergePorts, networkOf, upstreamEndpoints } from "./endpoints.ts";
import { Problem } from "./problem.ts";
import { parsePortRange, type PortRange } from "./ranges.ts";
import { NONE, parseUpstream, type Upstream } from "./upstreams.ts";

const ranges = (texts: string) =>
  texts.split(" ").map((text): PortRange => parsePortRange(text) ?? assert.fail(text));

function upstream(text: string, family: 4 | 6): Upstream {
  const parsed = parseUpstream(text, family);
  assert(parsed !== NONE && !(parsed instanceof Problem), text);
  return parsed;
}

/** The texts of where these addresses lead. */
function led(listen: string, ipv4: string, ipv6?: string): string[] {
  return upstreamEndpoints({
    listen: ranges(listen),
    ipv4: upstream(ipv4, 4),
    ...(ipv6 !== undefined && { ipv6: upstream(ipv6, 6) }),
  }).map(({ text }) => text);
}

Deno.test("upstreamEndpoints: the port that was listened on, where none is named", () => {
  const mail = "0.0.0.0:25 [::]:25 0.0.0.0:465 0.0.0.0:587";
  assert.deepEqual(led(mail, "127.0.0.1"), ["127.0.0.1:25", "127.0.0.1:465", "127.0.0.1:587"]);
  assert.deepEqual(led(mail, "127.0.0.1", "::1").slice(3), ["[::1]:25", "[::1]:465", "[::1]:587"]);
});

Deno.test("upstreamEndpoints: one port, a range, and a link's address", () => {
  assert.deepEqual(led("0.0.0.0:1-9", "127.0.0.1:443"), ["127.0.0.1:443"]);
  assert.deepEqual(led("0.0.0.0:1-9", "127.0.0.1:11-19"), ["127.0.0.1:11-19"]);
  assert.deepEqual(led("0.0.0.0:1-9", "127.0.0.1"), ["127.0.0.1:1-9"]);
  assert.deepEqual(led("0.0.0.0:80", "127.0.0.1", "[fe80::1%2]").at(-1), "[fe80::1%2]:80");
});

Deno.test("upstreamEndpoints: what TPROXY hands over may go to any port, where none is named", () => {
  const transparent = (ipv4: string) =>
    upstreamEndpoints({
      listen: ranges("0.0.0.0:1080"),
      ipv4: upstream(ipv4, 4),
      transparent: true,
    }).map(({ text, port, lastPort }) => [text, port, lastPort]);
  assert.deepEqual(transparent("127.0.0.1"), [["127.0.0.1:1-65535", 1, 65_535]]);
  assert.deepEqual(transparent("127.0.0.1:9"), [["127.0.0.1:9", 9, 9]]);
});

Deno.test("upstreamEndpoints: a name has none", () => {
  assert.deepEqual(led("0.0.0.0:80", "mail.internal:25"), []);
});

Deno.test("isRange: more ports than one", () => {
  const [one] = upstreamEndpoints({ listen: ranges("0.0.0.0:1"), ipv4: upstream("127.0.0.1", 4) });
  const [many] = upstreamEndpoints({
    listen: ranges("0.0.0.0:1-2"),
    ipv4: upstream("127.0.0.1", 4),
  });
  assert(one && many);
  assert.deepEqual([isRange(one), isRange(many)], [false, true]);
});

Deno.test("mergePorts: what touches or overlaps is one", () => {
  const merged = (texts: string) =>
    mergePorts(ranges(texts)).map(({ first, last }) => `${first}-${last}`).join(" ");
  assert.equal(merged("0.0.0.0:5-9 [::]:1-4 0.0.0.0:11-12"), "1-9 11-12");
  assert.equal(merged("0.0.0.0:1-9 [::]:3-4 [::]:9-20"), "1-20");
});

Deno.test("networkOf: a destination's addresses in their own family", () => {
  const network = (text: string) => {
    const parsed = parseDestination(text);
    assert(!(parsed instanceof Problem));
    return networkOf(parsed);
  };
  assert.deepEqual(network("10.0.0.5:22"), { family: 4, bytes: [10, 0, 0, 5], prefix: 32 });
  assert.deepEqual(network("127.0.0.0/8:1-9"), { family: 4, bytes: [127, 0, 0, 0], prefix: 8 });
  const six = network("[2001:db8::/32]:443");
  assert.deepEqual([six.family, six.prefix, six.bytes.slice(0, 4)], [6, 32, [0x20, 1, 0x0d, 0xb8]]);
});
