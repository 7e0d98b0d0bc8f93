import assert from "node:assert/strict";
import { nearest, unknownKey } from "./nearest.ts";

const KEYS = ["listen", "listen-addr", "log-level", "log-format", "mark", "ipv4", "ipv6"];

const MEANT: readonly (readonly [word: string, key: string | undefined])[] = [
  ["lissten", "listen"],
  ["lsiten", "listen"],
  ["listen_addr", "listen-addr"],
  ["loglevel", "log-level"],
  ["log-formats", "log-format"],
  ["marc", "mark"],
  ["ivp4", "ipv4"],
  ["ipv5", "ipv4"],
  ["x", undefined],
  ["", undefined],
  ["certificate", undefined],
];

for (const [word, key] of MEANT) {
  Deno.test(`nearest: ${JSON.stringify(word)} is ${key ?? "nothing known"}`, () => {
    assert.equal(nearest(word, KEYS), key);
  });
}

Deno.test("unknownKey: names the nearest key, or all where none is near", () => {
  assert.equal(unknownKey("marc", KEYS), "unknown key; did you mean mark?");
  assert.equal(
    unknownKey("tls", ["from", "header"]),
    "unknown key; the keys here are from, header",
  );
});
