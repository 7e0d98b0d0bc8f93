import assert from "node:assert/strict";
import fc from "fast-check";
import { readConfig } from "../config/file.ts";
import type { ProxyConfig } from "../config/model.ts";
import { PROXY } from "../config/schema.ts";
import { parseArguments } from "./arguments.ts";
import { ROWS } from "./options.ts";
import { readConfiguration } from "./setup.ts";

/** Options by their long names; `true` is a flag without a value. */
type Given = Record<string, string | number | true | readonly string[]>;

function fromFlags(given: Given): ProxyConfig {
  const words = Object.entries(given).flatMap(([name, value]) =>
    value === true ? [`--${name}`] : [value].flat().flatMap((value) => [`--${name}`, `${value}`])
  );
  const request = parseArguments(words, "0");
  assert(request.kind === "run" && request.setup.kind === "flags");
  return request.setup.config;
}

/** The file that says the same, its keys in this order, as many under `[defaults]` as requested. */
function fileOf(given: Given, order: readonly number[], inDefaults: number): string {
  const named = "ipv4" in given || "ipv6" in given || given.upstream === "destination";
  // What the command line has by default, a file says.
  const upstreams = named ? {} : { ipv4: "127.0.0.1:443", ipv6: "[::1]:443" };
  const all = Object.entries({ "listen-addr": "0.0.0.0:8443", ...upstreams, ...given });
  const shuffled = all.toSorted((one, other) =>
    (order[all.indexOf(one)] ?? 0) - (order[all.indexOf(other)] ?? 0)
  );
  const lines = shuffled.map(([name, value]) => ({
    name,
    text: `${name} = ${JSON.stringify(value)}`,
  }));
  const isProxys = ({ name }: { name: string }) => Object.hasOwn(PROXY, name);
  const listener = lines.filter((line) => !isProxys(line)).map(({ text }) => text);
  return [
    ...lines.filter(isProxys).map(({ text }) => text),
    "[defaults]",
    ...listener.slice(0, inDefaults),
    "[[listener]]",
    ...listener.slice(inDefaults),
  ].join("\n");
}

const port = fc.integer({ min: 1, max: 65_535 });
const address4 = fc.tuple(fc.constantFrom("127.0.0.1", "192.0.2.7"), port)
  .map(([ip, port]) => `${ip}:${port}`);
/** Three addresses of one port each, apart. */
const several = fc.uniqueArray(fc.integer({ min: 1, max: 9_999 }), { minLength: 2, maxLength: 3 })
  .map((ports) => ports.map((port) => `192.0.2.7:${port}`));
/** A range, and as many ports of the upstream, which need not be the same ones. */
const RANGES: Given[] = [
  { "listen-addr": "0.0.0.0:30000-30999", ipv4: "127.0.0.1:40000-40999", ipv6: "none" },
  { "listen-addr": ["192.0.2.7:25", "[2001:db8::7]:25"], ipv4: "127.0.0.1", ipv6: "::1" },
  { "listen-addr": "0.0.0.0:25", ipv4: "mail.internal:2525" },
  { "listen-addr": "0.0.0.0:25", ipv6: "mail.internal", workers: "auto" },
  { "listen-addr": "0.0.0.0:1080", ipv4: "127.0.0.1", transparent: true, protocol: "both" },
  {
    "listen-addr": "0.0.0.0:1080",
    upstream: "destination",
    "allowed-destinations": ["10.0.0.5:22", "[2001:db8::/32]:443"],
    ipv4: "127.0.0.1:9",
  },
];
const address6 = fc.tuple(fc.constantFrom("::1", "2001:db8::7", "fe80::1%2"), port)
  .map(([ip, port]) => `[${ip}]:${port}`);
const seconds = fc.integer({ min: 3, max: 4_000_000 });

const options = fc.record({
  "allowed-subnets": fc.constantFrom("/etc/mmproxy/subnets", "./a b", 'ü"\\'),
  "close-after": seconds,
  protocol: fc.constantFrom("tcp", "udp", "both"),
  mark: fc.nat(0xffff_ffff),
  "header-timeout": seconds,
  "connect-timeout": seconds,
  keepalive: fc.nat(32_767),
  "idle-timeout": seconds,
  "drain-timeout": seconds,
  "shutdown-delay": fc.nat(86_400),
  "udp-header": fc.constantFrom("datagram", "session", "spp"),
  transparent: fc.constant(true as const),
  upstream: fc.constant("family"),
  "log-level": fc.constantFrom("error", "warn", "info", "access", "debug"),
  "log-format": fc.constantFrom("text", "json"),
  color: fc.constantFrom("auto", "always", "never"),
  "auto-routes": fc.constant(true as const),
  table: fc.integer({ min: 1, max: 251 }),
  sandbox: fc.constantFrom("auto", "on", "off"),
  offload: fc.constantFrom("auto", "off"),
  // No listener's and no upstream's.
  "metrics-addr": port.map((port) => `203.0.113.9:${port}`),
  control: fc.constantFrom("/run/mmproxy/control", 'ü"\\', "a b"),
  "upgrade-drain": fc.nat(86_400),
  "take-over": fc.constantFrom("/run/mmproxy/control", "a b"),
  watch: fc.constant(true as const),
}, { requiredKeys: [] });

const workers = fc.oneof(
  fc.constant({}),
  fc.record({ listeners: fc.integer({ min: 1, max: 1024 }) }),
  fc.record({ workers: fc.constantFrom("auto", 1, 1024) }),
);

const upstreams = fc.oneof(
  fc.constant({}),
  fc.record({ ipv4: address4 }),
  fc.record({ ipv6: address6 }),
  fc.record({ ipv4: address4, ipv6: address6 }),
  fc.record({ ipv4: address4, ipv6: fc.constantFrom("none", "NONE") }),
  fc.record({ ipv4: fc.constant("none"), ipv6: address6 }),
);

/** Single addresses with single upstreams, or the defaults. */
const single = fc.tuple(
  fc.record({ "listen-addr": fc.oneof(address4, address6, several) }, { requiredKeys: [] }),
  upstreams,
).map(([listen, upstreams]): Given => ({ ...listen, ...upstreams }))
  // Addresses that clash are said at once for a file, and at the start for flags.
  .filter((given) => {
    const ports = ["listen-addr", "ipv4", "ipv6"]
      .flatMap((name) => given[name] ?? (name === "listen-addr" ? "8443" : name))
      .map((address) => /[^:]*$/.exec(`${address}`)?.[0]);
    return new Set(ports).size === ports.length;
  });

/** Upstreams that the header names. */
const destinations = fc.record({
  given: single,
  allowed: fc.uniqueArray(
    fc.constantFrom("10.0.0.5:22", "127.0.0.0/8:1024-65535", "[2001:db8::/32]:443"),
    { minLength: 1 },
  ),
}).map(({ given, allowed }): Given => ({
  ...given,
  upstream: "destination",
  "allowed-destinations": allowed,
}));

/** Ports as they are written: one, or a range. */
function portsOf(first: number, count: number): string {
  return count === 1 ? `${first}` : `${first}-${first + count - 1}`;
}

/** Every form of an upstream that fits this many ports: addresses and names, without or with ports. */
function upstreamFor(family: 4 | 6, count: number) {
  const address = family === 4 ? "127.0.0.1" : "::1";
  const some = fc.record({ first: fc.integer({ min: 1, max: 64_000 }), one: fc.boolean() })
    .map(({ first, one }) => portsOf(first, one ? 1 : count));
  return fc.oneof(
    fc.constantFrom(address, "mail.internal", "a-1.example."),
    some.map((ports) => `${family === 4 ? address : `[${address}]`}:${ports}`),
    some.map((ports) => `mail.internal:${ports}`),
  );
}

/** Ranges of one or both families, and upstreams of every form. */
const ranges = fc.record({
  first: fc.integer({ min: 1, max: 64_000 }),
  count: fc.integer({ min: 1, max: 1_000 }),
  families: fc.constantFrom([4], [6], [4, 6]),
}).chain(({ first, count, families }) => {
  const listen = families.map((family) =>
    `${family === 4 ? "192.0.2.7" : "[2001:db8::7]"}:${portsOf(first, count)}`
  );
  const [ipv4, ipv6] = [upstreamFor(4, count), upstreamFor(6, count)];
  const both = fc.oneof(
    fc.record({ ipv4 }),
    fc.record({ ipv6 }),
    fc.record({ ipv4, ipv6 }),
    fc.record({ ipv4, ipv6: fc.constant("none") }),
  );
  return both.map((upstreams): Given => ({
    "listen-addr": listen.length === 1 ? listen[0] ?? "" : listen,
    ...upstreams,
  }));
});

Deno.test("readSetup: flags and the equal file give the same configuration", () => {
  const order = fc.array(fc.nat(), { minLength: 30, maxLength: 30 });
  const places = fc.oneof(single, ranges, destinations);
  const seen = new Set<string>();
  fc.assert(
    fc.property(
      options,
      workers,
      places,
      order,
      fc.nat(25),
      (options, workers, places, order, inDefaults) => {
        const given = { ...options, ...workers, ...places } as Given;
        Object.keys(given).forEach((name) => seen.add(name));
        const text = fileOf(given, order, inDefaults);
        assert.deepEqual(readConfig(text, "file"), fromFlags(given), text);
      },
    ),
    { numRuns: 500 },
  );
  const flags = ROWS.flatMap(([, row]) => [row, ...row.alias ? [row.alias] : []])
    .map(({ flags }) => /--([a-z0-9-]+)/.exec(flags)?.[1] ?? flags);
  assert.deepEqual(flags.filter((flag) => !seen.has(flag)), [], "flags that were not tried");
});

for (const given of RANGES) {
  Deno.test(`readSetup: ${JSON.stringify(given)} and the equal file are the same`, () => {
    assert.deepEqual(readConfig(fileOf(given, [], 0), "file"), fromFlags(given));
  });
}

Deno.test("readSetup: flags that differ give configurations that differ", () => {
  const plain = JSON.stringify(fromFlags({}));
  const changes: Given[] = [
    { "listen-addr": "0.0.0.0:1" },
    { listeners: 2 },
    { workers: "auto" },
    { "listen-addr": ["0.0.0.0:8443", "0.0.0.0:8444"] },
    { ipv4: "127.0.0.1" },
    { transparent: true },
    { "allowed-subnets": "a" },
    { "close-after": 61 },
    { protocol: "udp" },
    { mark: 1 },
    { "header-timeout": 11 },
    { "connect-timeout": 6 },
    { keepalive: 16 },
    { "idle-timeout": 1 },
    { "drain-timeout": 11 },
    { "shutdown-delay": 1 },
    { "udp-header": "spp" },
    { "log-level": "debug" },
    { "log-format": "json" },
    { "auto-routes": true },
    { table: 124 },
    { sandbox: "off" },
    { "metrics-addr": "127.0.0.1:9100" },
    { ipv4: "127.0.0.1:443" },
    { ipv6: "[::1]:443" },
  ];
  const texts = changes.map((change) => JSON.stringify(fromFlags(change)));
  assert.equal(new Set([plain, ...texts]).size, changes.length + 1);
});

Deno.test("readConfiguration: flags of the proxy override the file, which is named", async () => {
  const text = "workers = 2\ntable = 7\n" + fileOf({}, [], 0);
  const request = parseArguments(["--config", "m.toml", "--workers", "auto"], "0");
  assert(request.kind === "run");
  const config = await readConfiguration(request.setup, {
    readFile: (path) => {
      assert.equal(path, "m.toml");
      return new TextEncoder().encode(text);
    },
  });
  assert.deepEqual(config, { ...readConfig(text, "m.toml"), workers: "auto", file: "m.toml" });
  assert.equal(config.table, 7);
});
