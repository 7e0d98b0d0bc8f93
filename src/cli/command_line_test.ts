import assert from "node:assert/strict";
import { parseArguments } from "./arguments.ts";
import type { Options } from "../config/options.ts";
import { commandLine, quote } from "./command_line.ts";

function optionsOf(args: readonly string[]): Options {
  const request = parseArguments(args, "1.2.3");
  assert(request.kind === "run" || request.kind === "doctor");
  return request.options;
}

const LINES = [
  "",
  " -4 127.0.0.1:443",
  " -6 [::1]:22",
  " -4 127.0.0.1:22 -6 [::1]:443 -l [::]:80 -p both -m 7 --table 9",
  " -a /etc/mmproxy/subnets --listeners 4 --connect-timeout 1 --auto-routes --sandbox on",
];

for (const line of LINES) {
  Deno.test(`commandLine: mmproxy doctor${line} comes back as it was`, () => {
    const args = line.split(" ").filter(Boolean);
    const again = commandLine("doctor", optionsOf(args));
    assert.equal(again.replaceAll("'", ""), `mmproxy doctor${line}`);
    assert.deepEqual(optionsOf(again.replaceAll("'", "").split(" ").slice(1)), optionsOf(args));
  });
}

Deno.test("commandLine: routes up leaves out what it does not heed", () => {
  const options = optionsOf(["-4", "127.0.0.1:22", "-a", "/etc/subnets", "-m", "7"]);
  assert.equal(commandLine("routes up", options), "mmproxy routes up -4 127.0.0.1:22 -m 7");
});

Deno.test("quote: only what a shell would read otherwise", () => {
  assert.equal(quote("/etc/a-b_c.d"), "/etc/a-b_c.d");
  assert.equal(quote("[::1]:22"), "'[::1]:22'");
  assert.equal(quote("it's here"), `'it'\\''s here'`);
  assert.equal(quote("$(boom)"), "'$(boom)'");
  assert.equal(quote(""), "''");
});
