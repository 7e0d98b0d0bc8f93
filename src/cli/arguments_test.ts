import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import project from "../../deno.json" with { type: "json" };
import { parseArguments } from "./arguments.ts";
import { GROUPS, OPTIONS } from "./options.ts";
import { UsageError } from "./usage_error.ts";
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";

/** A command line in one string, its words apart by single spaces. */
const words = (line: string) => line === "" ? [] : line.split(" ");

/** The configuration of a command line without a file. */
function configOf(line: string): ProxyConfig {
  const request = parseArguments(words(line), "1.2.3");
  assert.equal(request.kind, "run");
  assert.equal(request.setup.kind, "flags");
  return request.setup.config;
}

function textOf(line: string): string {
  const request = parseArguments(words(line), "1.2.3");
  assert.equal(request.kind, "print");
  return request.text;
}

function refusalOf(args: readonly string[]): string {
  try {
    parseArguments(args, "1.2.3");
  } catch (error) {
    assert(error instanceof UsageError);
    return error.message;
  }
  return assert.fail(`${args.join(" ")} is taken`);
}

/** A configuration in one table, with each address as it was written. */
function plain({ listeners, metricsAddr, ...proxy }: ProxyConfig) {
  const [listener, ...more] = listeners;
  assert(listener);
  assert.deepEqual(more, []);
  const { ipv4, ipv6, listen, allowedSubnets, ...rest } = listener;
  assert.equal(rest.name, listen[0]?.text);
  return {
    ...proxy,
    ...(metricsAddr && { metricsAddr: metricsAddr.text }),
    ...without(rest),
    ...upstreamsOf({ ipv4, ipv6 }),
    listenAddr: listen.map(({ text }) => text).join(" "),
    ...(allowedSubnets?.kind === "file" && { allowedSubnets: allowedSubnets.path }),
  };
}

/** What no flag says. */
function without({ name: _, ...listener }: Omit<ListenerConfig, "listen">) {
  return listener;
}

function upstreamsOf({ ipv4, ipv6 }: { [name in "ipv4" | "ipv6"]?: { text: string } | undefined }) {
  return { ...(ipv4 && { ipv4: ipv4.text }), ...(ipv6 && { ipv6: ipv6.text }) };
}

const WITHOUT_FLAGS = {
  // As mmproxy-rs has them.
  ipv4: "127.0.0.1:443",
  ipv6: "[::1]:443",
  closeAfter: 60,
  listenAddr: "0.0.0.0:8443",
  workers: 1,
  protocol: "tcp",
  mark: 0,
  // Our own.
  headerTimeout: 10,
  connectTimeout: 5,
  keepalive: 15,
  idleTimeout: 0,
  drainTimeout: 10,
  shutdownDelay: 0,
  udpHeader: "datagram",
  upstream: "family",
  transparent: false,
  logLevel: "info",
  logFormat: "text",
  color: "auto",
  autoRoutes: false,
  watch: false,
  sandbox: "auto",
  offload: "off",
  table: 123,
  // What only a file says.
  upgradeDrain: 300,
  resolveInterval: 60,
  allowedDestinations: [],
  trust: [],
  optionalWait: 3,
};

/** The defaults that a flag may name. */
const FLAG_DEFAULTS = Object.entries(WITHOUT_FLAGS).slice(0, 19).map(([, value]) => value);

Deno.test("parseArguments: without flags gives mmproxy-rs's defaults and ours", () => {
  assert.deepEqual(plain(configOf("")), WITHOUT_FLAGS);
});

Deno.test("parseArguments: --metrics-addr is an address of either family, and none by default", () => {
  assert.equal(configOf("").metricsAddr, undefined);
  assert.equal(configOf("--metrics-addr [::1]:9100").metricsAddr?.text, "[::1]:9100");
  assert.equal(configOf("--metrics-addr 127.0.0.1:9100").metricsAddr?.port, 9100);
  assert.match(
    refusalOf(["--metrics-addr", "localhost:9100"]),
    /^Option --metrics-addr: "localhost:9100" is not an IP address and port, for example 127\.0\.0\.1:9100; did you mean 127\.0\.0\.1:9100, or \[::1\]:9100 for IPv6\?$/,
  );
});

const TAKEN: readonly (readonly [line: string, changed: Record<string, unknown>])[] = [
  ["-a /etc/mmproxy/subnets", { allowedSubnets: "/etc/mmproxy/subnets" }],
  ["--allowed-subnets ./a", { allowedSubnets: "./a" }],
  ["-c 1", { closeAfter: 1 }],
  ["--close-after 4000000", { closeAfter: 4_000_000 }],
  ["-l 192.0.2.1:1", { listenAddr: "192.0.2.1:1" }],
  ["--listen-addr [::]:65535", { listenAddr: "[::]:65535" }],
  ["--listeners 1024", { workers: 1024 }],
  ["--workers 4", { workers: 4 }],
  ["--workers auto", { workers: "auto" }],
  ["--listeners AUTO", { workers: "auto" }],
  ["-l 0.0.0.0:30000-30999", { listenAddr: "0.0.0.0:30000-30999" }],
  ["-l 0.0.0.0:25 -l [::]:25 --listen-addr 0.0.0.0:587", {
    listenAddr: "0.0.0.0:25 [::]:25 0.0.0.0:587",
  }],
  ["-p udp", { protocol: "udp" }],
  ["-p UDP", { protocol: "udp" }],
  ["--protocol Both", { protocol: "both" }],
  ["-m 123", { mark: 123 }],
  ["-m 0x7B", { mark: 123 }],
  ["--mark 0xffffffff", { mark: 0xffff_ffff }],
  ["--header-timeout 3", { headerTimeout: 3 }],
  ["--connect-timeout 1", { connectTimeout: 1 }],
  ["--keepalive 0", { keepalive: 0 }],
  ["--keepalive 32767", { keepalive: 32_767 }],
  ["--idle-timeout 3600", { idleTimeout: 3600 }],
  ["--udp-header session", { udpHeader: "session" }],
  ["--transparent", { transparent: true }],
  ["--upstream FAMILY", {}],
  ["--udp-header SPP", { udpHeader: "spp" }],
  ["--log-level access", { logLevel: "access" }],
  ["--log-format JSON", { logFormat: "json" }],
  ["--color never", { color: "never" }],
  ["-c 5 -c 6", { closeAfter: 6 }],
  ["--auto-routes", { autoRoutes: true }],
  ["--watch", { watch: true }],
  ["--sandbox on", { sandbox: "on" }],
  ["--sandbox OFF", { sandbox: "off" }],
  ["--offload auto", { offload: "auto" }],
  ["--table 7", { table: 7 }],
];

for (const [line, changed] of TAKEN) {
  Deno.test(`parseArguments: takes ${line}, and changes nothing else`, () => {
    assert.deepEqual(plain(configOf(line)), { ...WITHOUT_FLAGS, ...changed });
  });
}

const IPV4 = "an IPv4 address or a host name, with or without a port or a range of ports, for " +
  "example 127.0.0.1:443";
const IPV6 = "an IPv6 address or a host name, with or without a port or a range of ports, for " +
  "example [::1]:443";
const LISTEN = "an IP address and a port or a range of ports, for example 0.0.0.0:8443";
const SECONDS = "to 4000000 (seconds)";
const LEVELS = "error, warn, info, access or debug";

/** The flag's names, and values that it does not take with what was expected in their place. */
const WRONG: readonly (readonly [flag: string, expected: string, values: readonly string[]])[] = [
  ["-4, --ipv4", IPV4, ["127.0.0.1:0", "127.1:443", "", "two\nlines", "127.0.0.1:9-8"]],
  ["-4, --ipv4", `${IPV4}: this one is IPv6, which is for ipv6`, ["[::1]:443"]],
  ["-4, --ipv4", `${IPV4}: 0.0.0.0:443 is not the address of a server`, ["0.0.0.0:443"]],
  ["-6, --ipv6", IPV6, ["[::1]:0", "[::1]:x"]],
  ["-6, --ipv6", `${IPV6}: this one is IPv4, which is for ipv4`, [
    "127.0.0.1:443",
    "[::ffff:127.0.0.1]:443",
  ]],
  ["-6, --ipv6", `${IPV6}: [::]:443 is not the address of a server`, ["[::]:443"]],
  ["-6, --ipv6", `${IPV6}: with a port, the address stands in brackets`, ["::1:443"]],
  ["-l, --listen-addr", LISTEN, [
    "8443",
    ":8443",
    "0.0.0.0:0",
    "0.0.0.0:65536",
    "0.0.0.0",
    "0.0.0.0:9-8",
    "localhost:8443",
  ]],
  ["-c, --close-after", `a whole number from 1 ${SECONDS}`, ["0", "-1", "1.5", "60s", "4000001"]],
  ["--listeners", "a whole number from 1 to 1024 (workers)", ["0", "1025", "two"]],
  ["--workers", "a whole number from 1 to 1024 (workers)", ["0", "1025", "all"]],
  ["-p, --protocol", "tcp, udp or both", ["sctp", "tcp,udp", ""]],
  ["-m, --mark", "a whole number from 0 to 4294967295", ["-1", "4294967296", "0x", "0b1", "1e3"]],
  ["--header-timeout", `a whole number from 3 ${SECONDS}`, ["2", "0", "Infinity"]],
  ["--connect-timeout", `a whole number from 1 ${SECONDS}`, ["0", ""]],
  ["--keepalive", "a whole number from 0 to 32767 (seconds)", ["32768", "-1", "off"]],
  ["--idle-timeout", `a whole number from 0 ${SECONDS}`, ["4000001", "5m"]],
  ["--udp-header", "datagram, session or spp", ["first"]],
  ["--upstream", "family or destination", ["header"]],
  [
    "--allowed-destinations",
    "an address or subnet with a port or a range of ports, for example 10.0.0.5:22, " +
    "127.0.0.0/8:1024-65535 or [2001:db8::/32]:443",
    ["10.0.0.5", "10.0.0.0/8"],
  ],
  ["--log-level", LEVELS, ["trace"]],
  ["--log-format", "text or json", ["xml"]],
  ["--table", "a whole number from 1 to 4294967295", ["0", "main", "4294967296"]],
  ["--table", "a table of its own: 252 to 255 are the kernel's", ["254", "0xff"]],
];

const UPSTREAMS: readonly (readonly [line: string, upstreams: Record<string, string>])[] = [
  ["", { ipv4: "127.0.0.1:443", ipv6: "[::1]:443" }],
  ["-4 127.0.0.1:443", { ipv4: "127.0.0.1:443" }],
  ["-6 [::1]:443", { ipv6: "[::1]:443" }],
  ["-6 [::1]:1 -4 127.0.0.1:1", { ipv4: "127.0.0.1:1", ipv6: "[::1]:1" }],
  ["-4 192.0.2.1:1 -6 none", { ipv4: "192.0.2.1:1" }],
  ["--ipv4 NONE --ipv6 [::1]:1", { ipv6: "[::1]:1" }],
  ["--ipv4 192.0.2.1:80", { ipv4: "192.0.2.1:80" }],
  ["--ipv4=192.0.2.1:80", { ipv4: "192.0.2.1:80" }],
  ["--ipv6 [fe80::1%2]:80", { ipv6: "[fe80::1%2]:80" }],
  ["-4 192.0.2.1 -6 ::1", { ipv4: "192.0.2.1", ipv6: "::1" }],
  ["-4 mail.internal:25", { ipv4: "mail.internal:25" }],
];

for (const [line, upstreams] of UPSTREAMS) {
  Deno.test(`parseArguments: "${line}" names upstreams, and a default beside one is none`, () => {
    const { ipv4: _, ipv6: __, ...defaults } = WITHOUT_FLAGS;
    assert.deepEqual(plain(configOf(line)), { ...defaults, ...upstreams });
  });
}

for (
  const line of ["-4 none", "-6 none", "-4 none -6 none", "doctor -6 none", "routes up -4 none"]
) {
  Deno.test(`parseArguments: refuses "${line}", which leaves no upstream`, () => {
    assert.equal(
      refusalOf(words(line)),
      "Options -4, --ipv4 and -6, --ipv6: no upstream is left; set one of them",
    );
  });
}

Deno.test("parseArguments: an upstream may have as many ports as are listened on, or one", () => {
  const line = "-l 0.0.0.0:30000-30999 -l [::]:30000-30999 -4 127.0.0.1";
  for (const ports of ["", ":5060", ":40000-40999"]) {
    assert.equal(configOf(`${line}${ports}`).listeners[0]?.ipv4?.text, `127.0.0.1${ports}`);
  }
  assert.equal(
    refusalOf(words(`${line}:40000-40099`)),
    'Option -4, --ipv4: "127.0.0.1:40000-40099" has 100 ports and -l, --listen-addr has 1000: ' +
      "give the same number, or a single port for all",
  );
});

Deno.test("parseArguments: --upstream destination takes clients where the operator allows it, and no default", () => {
  const allowed = "--allowed-destinations 10.0.0.5:22 --allowed-destinations [2001:db8::/32]:443";
  const [listener] = configOf(`--upstream destination ${allowed}`).listeners;
  assert.equal(listener?.upstream, "destination");
  assert.deepEqual(listener?.allowedDestinations.map(({ text }) => text), [
    "10.0.0.5:22",
    "[2001:db8::/32]:443",
  ]);
  assert.deepEqual([listener?.ipv4, listener?.ipv6], [undefined, undefined]);
  const [own] = configOf(`--upstream destination ${allowed} -4 127.0.0.1:9`).listeners;
  assert.deepEqual([own?.ipv4?.text, own?.ipv6], ["127.0.0.1:9", undefined]);
  assert.equal(
    refusalOf(words("--upstream destination")),
    "Option --upstream: destination needs --allowed-destinations, which limits the destinations",
  );
  assert.equal(
    refusalOf(words("--allowed-destinations 10.0.0.5:22")),
    "Option --allowed-destinations: has no effect without --upstream destination",
  );
});

Deno.test("parseArguments: refuses addresses that overlap, and both names of one option", () => {
  assert.equal(
    refusalOf(words("-l 0.0.0.0:1000-1999 -l 192.0.2.1:1500")),
    'Option -l, --listen-addr: "192.0.2.1:1500" overlaps "0.0.0.0:1000-1999"',
  );
  assert.equal(
    refusalOf(words("--workers 2 --listeners 2")),
    "Options --workers and --listeners: they are the same option; give only one of them",
  );
});

Deno.test("parseArguments: a unix socket as an upstream is refused in a sentence", () => {
  assert.match(
    refusalOf(words("-4 unix:/run/s.sock")),
    /^Option -4, --ipv4: "unix:\/run\/s.sock": a unix socket cannot be an upstream/,
  );
});

Deno.test("parseArguments: --config names a file, and flags override it", () => {
  const line = "--config /etc/mmproxy.toml --workers 3 --log-format json --auto-routes";
  const setup = {
    kind: "file",
    path: "/etc/mmproxy.toml",
    overrides: { workers: 3, logFormat: "json", autoRoutes: true },
  };
  for (const command of ["", "doctor ", "routes up "]) {
    const request = parseArguments(words(`${command}${line}`), "1.2.3");
    assert("setup" in request);
    assert.deepEqual(request.setup, setup);
  }
});

Deno.test("parseArguments: with --config no flag of a listener is accepted", () => {
  for (const [flag, names] of [["-l 0.0.0.0:1", "-l, --listen-addr"], ["-m 7", "-m, --mark"]]) {
    assert.equal(
      refusalOf(words(`--config f.toml ${flag}`)),
      `Option ${names}: with --config, set it in the file for each listener`,
    );
  }
});

Deno.test("parseArguments: routes takes the flags of the service, before and behind its action", () => {
  for (const action of ["up", "down", "show"]) {
    for (
      const line of [
        `routes ${action} -4 192.0.2.1:80 -m 7`,
        `routes -4 192.0.2.1:80 -m 7 ${action}`,
      ]
    ) {
      const request = parseArguments(words(line), "1.2.3");
      assert.equal(request.kind, "routes");
      assert.equal(request.action, action);
      assert.equal(request.dryRun, false);
      const { ipv6: _, ...defaults } = WITHOUT_FLAGS;
      assert.equal(request.setup.kind, "flags");
      assert.deepEqual(plain(request.setup.config), { ...defaults, ipv4: "192.0.2.1:80", mark: 7 });
    }
  }
  const dry = parseArguments(["routes", "up", "--dry-run"], "1.2.3");
  assert(dry.kind === "routes" && dry.dryRun);
});

Deno.test("parseArguments: routes --help names the flags that count there, and no others", () => {
  const help = textOf("routes --help");
  for (const flag of ["--dry-run", "--table", "-4, --ipv4", "-6, --ipv6", "-m, --mark"]) {
    assert(help.includes(flag), flag);
  }
  assert(!help.includes("--header-timeout"));
});

for (const [names, expected, values] of WRONG) {
  for (const value of values) {
    Deno.test(`parseArguments: ${names} refuses ${JSON.stringify(value)} in one line`, () => {
      for (const name of names.split(", ")) {
        assert.equal(
          // What was probably meant, is tested where it is said.
          refusalOf([name, value]).replace(
            /; (did you mean|a port is|ports are|a host name) .*$/,
            "",
          ),
          `Option ${names}: ${JSON.stringify(value)} is not ${expected}`,
        );
      }
    });
  }
}

const UNREADABLE: readonly (readonly [line: string, message: string])[] = [
  ["--frob", "Unknown option '--frob'; see --help"],
  ["--listner 2", "Unknown option '--listner' (did you mean --listeners?); see --help"],
  ["-4", "Option '-4, --ipv4 <addr>' argument missing; see --help"],
  [
    "routes sideways",
    "Command-argument value 'sideways' is invalid for argument 'action'. Allowed choices are up, down, show; see --help",
  ],
  ["routes", "Missing required argument 'action'; see --help"],
  ["run", "Unknown command 'run'; see --help"],
];

for (const [line, message] of UNREADABLE) {
  Deno.test(`parseArguments: refuses ${line} in one line`, () => {
    assert.equal(refusalOf(words(line)), message);
  });
}

Deno.test("parseArguments: --version prints the version, whatever else is there", () => {
  assert.equal(textOf("--version"), "mmproxy 1.2.3\n");
  assert.equal(textOf("-p udp --version"), "mmproxy 1.2.3\n");
});

Deno.test("parseArguments: --help names every flag with its default", () => {
  const help = textOf("--help");
  assert.equal(textOf("-h"), help);
  for (const [names] of WRONG) assert(help.includes(names), names);
  assert(help.includes("-a, --allowed-subnets"));
  assert(help.includes("--auto-routes"));
  for (const value of FLAG_DEFAULTS.filter((value) => value !== false)) {
    assert(help.replace(/\s+/g, " ").includes(`(default: ${value})`), `${value}`);
  }
});

/** Runs the whole program with no permission but `--allow-ffi`. */
async function run(...args: string[]) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    // What Deno says of a download, with a new cache, is none of the program's words.
    args: ["run", "--no-prompt", "--cached-only", "--allow-ffi", "main.ts", ...args],
    cwd: fileURLToPath(new URL("../..", import.meta.url)),
    // As an operator has it: with NO_COLOR, commander asks the environment nothing more.
    env: { NO_COLOR: "", FORCE_COLOR: "" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

Deno.test("parseArguments: doctor takes the flags of a run, --json, --fix and --yes", () => {
  const line = "-4 192.0.2.1:22 -m 7 --log-level debug";
  const none = { json: false, fix: false, yes: false };
  for (
    const [more, asked] of [
      ["", none],
      [" --json", { ...none, json: true }],
      [" --fix", { ...none, fix: true }],
      [" --fix --yes", { ...none, fix: true, yes: true }],
    ] as const
  ) {
    assert.deepEqual(parseArguments(words(`doctor ${line}${more}`), "1.2.3"), {
      kind: "doctor",
      setup: { kind: "flags", config: configOf(line) },
      ...asked,
    });
  }
  assert.throws(() => parseArguments(words("doctor --yes"), "1.2.3"), /--yes: only with --fix/);
  assert.match(textOf("doctor --help"), /^Usage: mmproxy doctor \[options\]\n/);
});

Deno.test("main: prints its version with no permission but --allow-ffi", async () => {
  assert.deepEqual(await run("--version"), {
    code: 0,
    stdout: `mmproxy ${project.version}\n`,
    stderr: "",
  });
});

Deno.test("main: prints its help with no permission but --allow-ffi", async () => {
  const { code, stdout, stderr } = await run("--help");
  assert.deepEqual([code, stderr], [0, ""]);
  assert.match(stdout, /^Usage: mmproxy \[options\]\n/);
});

Deno.test("main: ends with 2 and one line after a wrong command line", async () => {
  assert.deepEqual(await run("--listeners", "0"), {
    code: 2,
    stdout: "",
    stderr: 'mmproxy: Option --listeners: "0" is not a whole number from 1 to 1024 (workers)\n',
  });
});

Deno.test("parseArguments: check takes a file, and nothing else", () => {
  assert.deepEqual(parseArguments(words("check --config a.toml"), "0"), {
    kind: "check",
    path: "a.toml",
  });
  assert.match(
    refusalOf(["check"]),
    /^Required option '--config <path>' not specified; see --help$/,
  );
  assert.match(refusalOf(words("check --config a -m 1")), /^Unknown option '-m'/);
  assert.match(textOf("check --help"), /^Usage: mmproxy check \[options\]\n/);
});

/** What flags and variables come to. */
function withEnvironment(line: string, variables: Record<string, string>) {
  return parseArguments(words(line), "1.2.3", (name) => variables[name]);
}

Deno.test("environment: every option has a variable, named as its flag", () => {
  const asked: string[] = [];
  parseArguments([], "1.2.3", (name) => {
    asked.push(name);
    return undefined;
  });
  const long = textOf("--help").matchAll(/^ {2}(?:-\w, )?--([a-z0-9-]+) /gm);
  const flags = Array.from(long, ([, name = ""]) => name).filter((name) => name !== "version");
  assert(flags.length > 20);
  const names = flags.filter((name) => name !== "help").map((name) =>
    `MMPROXY_${name.toUpperCase().replaceAll("-", "_")}`
  );
  assert.deepEqual(new Set(asked), new Set(names));
});

Deno.test("environment: values, lists and switches come as they are typed", () => {
  const request = withEnvironment("-p udp", {
    MMPROXY_IPV4: "192.0.2.1:53",
    MMPROXY_LISTEN_ADDR: "0.0.0.0:53, [::]:53",
    MMPROXY_LISTENERS: "3",
    MMPROXY_AUTO_ROUTES: "true",
    MMPROXY_WATCH: "0",
    MMPROXY_PROTOCOL: "tcp",
  });
  assert(request.kind === "run" && request.setup.kind === "flags");
  const { config } = request.setup;
  const [listener] = config.listeners;
  assert.equal(listener?.ipv4?.text, "192.0.2.1:53");
  assert.equal(listener?.ipv6, undefined, "-4 alone refuses IPv6 clients");
  assert.deepEqual(listener?.listen.map(({ text }) => text), ["0.0.0.0:53", "[::]:53"]);
  assert.equal(listener?.protocol, "udp", "a flag goes before the environment");
  assert.equal(config.workers, 3);
  assert.equal(config.autoRoutes, true);
  assert.equal(config.watch, false);
});

Deno.test("environment: a flag goes before the variable of its alias", () => {
  const request = withEnvironment("--workers 2", { MMPROXY_LISTENERS: "3" });
  assert(request.kind === "run" && request.setup.kind === "flags");
  assert.equal(request.setup.config.workers, 2);
});

Deno.test("environment: goes before the file, which alone says what a listener does", () => {
  const request = withEnvironment("", { MMPROXY_CONFIG: "f.toml", MMPROXY_LOG_LEVEL: "debug" });
  assert(request.kind === "run" && request.setup.kind === "file");
  assert.equal(request.setup.path, "f.toml");
  assert.deepEqual(request.setup.overrides, { logLevel: "debug" });
  assert.throws(
    () => withEnvironment("", { MMPROXY_CONFIG: "f.toml", MMPROXY_IPV4: "127.0.0.1:1" }),
    new UsageError("Option MMPROXY_IPV4: with --config, set it in the file for each listener"),
  );
});

Deno.test("environment: what is wrong names the variable", () => {
  for (
    const [variable, value, message] of [
      ["MMPROXY_MARK", "x", 'Option MMPROXY_MARK: "x" is not a whole number from 0 to 4294967295'],
      ["MMPROXY_WATCH", "on", 'Option MMPROXY_WATCH: "on" is not true or false'],
    ] as const
  ) {
    assert.throws(() => withEnvironment("", { [variable]: value }), new UsageError(message));
  }
});

Deno.test("environment: routes, doctor, check and the commands that ask have it, too", () => {
  for (const line of ["doctor", "routes show"]) {
    const request = withEnvironment(line, { MMPROXY_IPV4: "192.0.2.1:53" });
    assert(request.kind === "doctor" || request.kind === "routes");
    assert(request.setup.kind === "flags");
    assert.equal(request.setup.config.listeners[0]?.ipv4?.text, "192.0.2.1:53");
  }
  const socketOf = (line: string, variables: Record<string, string>) => {
    const request = withEnvironment(line, variables);
    assert(request.kind === "control");
    return request.socket;
  };
  const control = { MMPROXY_CONTROL: "/run/c" };
  assert.deepEqual(socketOf("status", control), { path: "/run/c" });
  assert.deepEqual(socketOf("status --control /run/d", control), { path: "/run/d" });
  assert.deepEqual(socketOf("status --config f", control), { config: "f" });
  assert.deepEqual(socketOf("status", { MMPROXY_CONFIG: "f" }), { config: "f" });
  const check = withEnvironment("check", { MMPROXY_CONFIG: "f" });
  assert(check.kind === "check" && check.path === "f");
});

const COMMANDS = [
  "",
  "routes ",
  "doctor ",
  "check ",
  "status ",
  "connections ",
  "close ",
  "reload ",
];

for (const command of COMMANDS) {
  Deno.test(`help: ${command}--help fits 80 columns, and quotes no default`, () => {
    const help = textOf(`${command}--help`);
    for (const line of help.split("\n")) assert(line.length < 80, line);
    assert(!help.includes('(default: "'));
    assert(!/\b(service|whole|mend)/.test(help.replaceAll(/systemd service/g, "")), help);
  });
}

Deno.test("help: every option has a heading of its own", () => {
  const grouped = Object.values(GROUPS).flat();
  assert.deepEqual(grouped.toSorted(), Object.keys(OPTIONS).toSorted());
  const help = textOf("--help");
  for (const heading of Object.keys(GROUPS)) assert(help.includes(`\n${heading}\n`), heading);
});

const SUGGESTIONS: [line: string, message: string][] = [
  ["--listen 0.0.0.0:1", "Unknown option '--listen' (did you mean --listen-addr?); see --help"],
  [
    "--drain-tiemout=3",
    "Unknown option '--drain-tiemout=3' (did you mean --drain-timeout?); see --help",
  ],
  [
    "--allowed-subnet x",
    "Unknown option '--allowed-subnet' (did you mean --allowed-subnets?); see --help",
  ],
  ["doctor --jsn", "Unknown option '--jsn' (did you mean --json?); see --help"],
  ["-q", "Unknown option '-q'; see --help"],
  ["-mark 123", "Option -mark needs two dashes: --mark; see --help"],
  ["doctr", "Unknown command 'doctr' (did you mean doctor?); see --help"],
  ["statu --control x", "Unknown command 'statu' (did you mean status?); see --help"],
  ["frobnicate", "Unknown command 'frobnicate'; see --help"],
];

for (const [line, message] of SUGGESTIONS) {
  Deno.test(`parseArguments: ${line} is refused, with what was probably meant`, () => {
    assert.equal(refusalOf(words(line)), message);
  });
}
