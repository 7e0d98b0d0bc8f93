import assert from "node:assert/strict";
import { isAddressed } from "./host.ts";

const ADDRESSED = [
  undefined,
  "127.0.0.1",
  "127.0.0.1:9100",
  "192.0.2.1:80",
  "[::1]:9100",
  "[2001:db8::1]",
  "[::ffff:192.0.2.1]:9100",
  "localhost",
  "localhost:9100",
  "page.localhost:9100",
];
const NAMED = [
  "",
  "example.org",
  "example.org:9100",
  "127.0.0.1.example.org",
  "localhost.example.org:9100",
  "notlocalhost",
  "127.0.0.1:9100@example.org",
  "[::1].example.org",
  "[example.org]:80",
  "0x7f.1",
];

for (const host of ADDRESSED) {
  Deno.test(`isAddressed: ${host}`, () => assert.equal(isAddressed(host), true));
}
for (const host of NAMED) {
  Deno.test(`isAddressed: not ${JSON.stringify(host)}`, () =>
    assert.equal(isAddressed(host), false));
}
