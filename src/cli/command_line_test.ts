import assert from "node:assert/strict";
import { parseArguments } from "./arguments.ts";
import type { ProxyConfig } from "../config/model.ts";
import { commandLine, quote } from "./command_line.ts";

function configOf(args: readonly string[]): ProxyConfig {
  const request = parseArguments(args, "1.2.3");
  assert(request.kind === "run" || request.kind === "doctor");
  assert(request.setup.kind === "flags");
  return request.setup.config;
}

const LINES = [
  "",
  " -4 127.0.0.1:443",
  " -6 [::1]:22",
  " -4 127.0.0.1 -l 0.0.0.0:25 -l [::]:25 -l 0.0.0.0:30000-30999 --workers auto",
  " -4 127.0.0.1:22 -6 [::1]:443 -l [::]:80 -p both -m 7 --table 9",
  " -a /etc/mmproxy/subnets --workers 4 --connect-timeout 1 --auto-routes --sandbox on",
];

for (const line of LINES) {
  Deno.test(`commandLine: mmproxy doctor${line} comes back as it was`, () => {
    const args = line.split(" ").filter(Boolean);
    const again = commandLine("doctor", configOf(args));
    assert.equal(again.replaceAll("'", ""), `mmproxy doctor${line}`);
    assert.deepEqual(configOf(again.replaceAll("'", "").split(" ").slice(1)), configOf(args));
  });
}

Deno.test("commandLine: routes up leaves out what it does not heed", () => {
  const config = configOf(["-4", "127.0.0.1:22", "-a", "/etc/subnets", "-m", "7"]);
  assert.equal(commandLine("routes up", config), "mmproxy routes up -4 127.0.0.1:22 -m 7");
});

Deno.test("commandLine: with a file it names the file, and what is to be different", () => {
  const config = { ...configOf(["-m", "7"]), file: "/etc/mm proxy.toml" };
  assert.equal(commandLine("doctor", config), "mmproxy doctor --config '/etc/mm proxy.toml'");
  assert.equal(
    commandLine("routes up", config, { table: 9 }),
    "mmproxy routes up --config '/etc/mm proxy.toml' --table 9",
  );
});

Deno.test("quote: only what a shell would read otherwise", () => {
  assert.equal(quote("/etc/a-b_c.d"), "/etc/a-b_c.d");
  assert.equal(quote("[::1]:22"), "'[::1]:22'");
  assert.equal(quote("it's here"), `'it'\\''s here'`);
  assert.equal(quote("$(boom)"), "'$(boom)'");
  assert.equal(quote(""), "''");
});
