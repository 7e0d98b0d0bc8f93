import assert from "node:assert/strict";
import { addressHint, type Purpose } from "./address_hint.ts";
import { parseAddress } from "./address.ts";
import { scopeOf, setInterfaces } from "./scope.ts";
import { parseUpstream } from "./upstreams.ts";

const TABLE = "fe800000000000000000000000000001 0c 40 20 80     eth0\n" +
  "00000000000000000000000000000001 01 80 10 80       lo\n";

const HINTS: [text: string, purpose: Purpose, hint: string][] = [
  ["8443", "listen", "; did you mean 0.0.0.0:8443, or [::]:8443 for IPv6?"],
  [":8443", "listen", "; did you mean 0.0.0.0:8443, or [::]:8443 for IPv6?"],
  ["*:30-40", "listen", "; did you mean 0.0.0.0:30-40, or [::]:30-40 for IPv6?"],
  ["443", "upstream", "; did you mean 127.0.0.1:443, or [::1]:443 for IPv6?"],
  [":9100", "metrics", "; did you mean 127.0.0.1:9100, or [::1]:9100 for IPv6?"],
  ["localhost:80", "listen", "; did you mean 127.0.0.1:80, or [::1]:80 for IPv6?"],
  ["www.example.org:80", "listen", "; a host name cannot be listened on"],
  ["www.example.org:80", "metrics", "; a host name cannot be listened on"],
  ["::1:443", "listen", "; did you mean [::1]:443?"],
  ["2001:db8::1:443", "metrics", "; did you mean [2001:db8::1]:443?"],
  ["0.0.0.0", "listen", "; did you mean 0.0.0.0:8443?"],
  ["::", "listen", "; did you mean [::]:8443?"],
  ["[::1]", "listen", "; did you mean [::1]:8443?"],
  ["192.0.2.1:65536", "listen", "; a port is from 1 to 65535"],
  ["192.0.2.1:0", "upstream", "; a port is from 1 to 65535"],
  [
    "192.0.2.1:9-8",
    "listen",
    "; ports are from 1 to 65535, and a range goes from the lower to the higher",
  ],
  ["[fe80::1%eth9]:80", "listen", "; no interface named eth9 has an IPv6 address (ip -6 address)"],
  ["192.0.2.256:80", "listen", ""],
  ["", "listen", ""],
];

for (const [text, purpose, hint] of HINTS) {
  Deno.test(`addressHint: ${JSON.stringify(text)} for ${purpose}${hint || ": none"}`, () => {
    setInterfaces(() => TABLE);
    assert.equal(addressHint(text, purpose), hint);
  });
}

Deno.test("scopeOf: an interface's number, and its name as the kernel lists it", () => {
  setInterfaces(() => TABLE);
  assert.equal(scopeOf("7"), 7);
  assert.equal(scopeOf("eth0"), 12);
  assert.equal(scopeOf("eth9"), undefined);
  assert.equal(parseAddress("[fe80::1%eth0]:80")?.scope, 12);
  assert.equal(parseAddress("[fe80::1%eth9]:80"), undefined);
  for (const text of ["[fe80::1%eth0]:80", "fe80::1%eth0"]) {
    const upstream = parseUpstream(text, 6);
    assert(typeof upstream === "object" && "kind" in upstream && upstream.kind === "address");
    assert.equal(upstream.address.scope, 12);
  }
});
