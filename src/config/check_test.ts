import assert from "node:assert/strict";
import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import { loadConfig, summary } from "./check.ts";
import { ConfigError } from "./mistakes.ts";

/** Reads from these files, as the native core does. */
function reader(files: Record<string, string | Uint8Array>) {
  return (path: string): Uint8Array => {
    const content = files[path];
    if (content === undefined) {
      throw new NativeError(Status.system, `Cannot read ${path}: no such file`);
    }
    return typeof content === "string" ? new TextEncoder().encode(content) : content;
  };
}

function mistakesOf(files: Record<string, string | Uint8Array>): string[] {
  try {
    loadConfig("/m.toml", reader(files));
  } catch (error) {
    assert(error instanceof ConfigError);
    return error.message.split("\n");
  }
  return assert.fail("is taken");
}

const ONE = `[[listener]]\nlisten = "0.0.0.0:8443"\nipv4 = "127.0.0.1:443"\n`;
const TWO = `${ONE}[[listener]]
name = "dns"
listen = ["0.0.0.0:53", "[::]:53-55"]
protocol = "both"
ipv4 = "192.0.2.1"
`;

const SUMMARIES: readonly (readonly [text: string, summary: string])[] = [
  [ONE, "1 listener on 1 TCP port, 1 worker, no metrics"],
  [
    `workers = "auto"\n${ONE}protocol = "udp"`,
    "1 listener on 1 UDP port, a worker for each processor, no metrics",
  ],
  [
    `workers = 2\nmetrics-addr = "127.0.0.1:9100"\n${TWO}`,
    "2 listeners on 5 TCP ports and 4 UDP ports, 2 workers, metrics on 127.0.0.1:9100",
  ],
];

for (const [text, expected] of SUMMARIES) {
  Deno.test(`summary: ${expected}`, () => {
    assert.equal(summary(loadConfig("/m.toml", reader({ "/m.toml": text }))), expected);
  });
}

Deno.test("loadConfig: says every mistake of the configuration, by the file's name", () => {
  assert.deepEqual(mistakesOf({ "/m.toml": `workers = 0\nx = 1\n${ONE}` }), [
    '/m.toml, line 1: workers = 0: expected a whole number from 1 to 1024, or "auto"',
    "/m.toml, line 2: x = 1: unknown key; the keys here are workers, listeners, metrics-addr, log-level, " +
    "log-format, color, auto-routes, table, sandbox, offload, drain-timeout, shutdown-delay, control, upgrade-drain, " +
    "take-over, resolve-interval, watch, defaults, listener",
  ]);
});

Deno.test("loadConfig: says every wrong line of every subnet file, each file once", () => {
  const text = `[defaults]\nallowed-subnets = "/a"\n${TWO}[[listener]]
listen = "0.0.0.0:1"
ipv4 = "192.0.2.1"
allowed-subnets = "/b"
[[listener]]
listen = "0.0.0.0:2"
ipv4 = "192.0.2.1"
allowed-subnets = "/c"
`;
  assert.deepEqual(mistakesOf({ "/m.toml": text, "/a": "192.0.2.1\nx\ny # z", "/c": "# none" }), [
    '/a, line 2: "x" is not an IP address or subnet, for example 192.0.2.0/24',
    '/a, line 3: "y" is not an IP address or subnet, for example 192.0.2.0/24',
    "Cannot read /b: no such file",
    "/c: has no subnet: add a line such as 192.0.2.0/24",
  ]);
});

Deno.test("loadConfig: a file that cannot be read, or is not text, is a mistake", () => {
  assert.deepEqual(mistakesOf({}), ["Cannot read /m.toml: no such file"]);
  assert.deepEqual(mistakesOf({ "/m.toml": Uint8Array.of(0x61, 0xff) }), ["/m.toml: is not UTF-8"]);
});
