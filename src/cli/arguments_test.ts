import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import project from "../../deno.json" with { type: "json" };
import { parseArguments } from "./arguments.ts";
import { UsageError } from "./usage_error.ts";
import type { Address, Options } from "../config/options.ts";

/** A command line in one string, its words apart by single spaces. */
const words = (line: string) => line === "" ? [] : line.split(" ");

function optionsOf(line: string): Options {
  const request = parseArguments(words(line), "1.2.3");
  assert.equal(request.kind, "run");
  return request.options;
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

/** Options with each address as it was written. */
function plain({ ipv4, ipv6, listenAddr, ...rest }: Options) {
  return { ...rest, ...upstreamsOf({ ipv4, ipv6 }), listenAddr: listenAddr.text };
}

function upstreamsOf({ ipv4, ipv6 }: { [name in "ipv4" | "ipv6"]?: Address | undefined }) {
  return { ...(ipv4 && { ipv4: ipv4.text }), ...(ipv6 && { ipv6: ipv6.text }) };
}

const WITHOUT_FLAGS = {
  // As mmproxy-rs has them.
  ipv4: "127.0.0.1:443",
  ipv6: "[::1]:443",
  closeAfter: 60,
  listenAddr: "0.0.0.0:8443",
  listeners: 1,
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
  logLevel: "info",
  logFormat: "text",
  autoRoutes: false,
  sandbox: "auto",
  table: 123,
};

Deno.test("parseArguments: without flags gives mmproxy-rs's defaults and ours", () => {
  assert.deepEqual(plain(optionsOf("")), WITHOUT_FLAGS);
});

Deno.test("parseArguments: --metrics-addr is an address of either family, and none by default", () => {
  assert.equal(optionsOf("").metricsAddr, undefined);
  assert.equal(optionsOf("--metrics-addr [::1]:9100").metricsAddr?.text, "[::1]:9100");
  assert.equal(optionsOf("--metrics-addr 127.0.0.1:9100").metricsAddr?.port, 9100);
  assert.match(
    refusalOf(["--metrics-addr", "localhost:9100"]),
    /^Option --metrics-addr: "localhost:9100" is not an IP address and port, as 127\.0\.0\.1:443$/,
  );
});

const TAKEN: readonly (readonly [line: string, changed: Record<string, unknown>])[] = [
  ["-a /etc/mmproxy/subnets", { allowedSubnets: "/etc/mmproxy/subnets" }],
  ["--allowed-subnets ./a", { allowedSubnets: "./a" }],
  ["-c 1", { closeAfter: 1 }],
  ["--close-after 4000000", { closeAfter: 4_000_000 }],
  ["-l 192.0.2.1:1", { listenAddr: "192.0.2.1:1" }],
  ["--listen-addr [::]:65535", { listenAddr: "[::]:65535" }],
  ["--listeners 1024", { listeners: 1024 }],
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
  ["--udp-header SPP", { udpHeader: "spp" }],
  ["--log-level access", { logLevel: "access" }],
  ["--log-format JSON", { logFormat: "json" }],
  ["-c 5 -c 6", { closeAfter: 6 }],
  ["--auto-routes", { autoRoutes: true }],
  ["--sandbox on", { sandbox: "on" }],
  ["--sandbox OFF", { sandbox: "off" }],
  ["--table 7", { table: 7 }],
];

for (const [line, changed] of TAKEN) {
  Deno.test(`parseArguments: takes ${line}, and changes nothing else`, () => {
    assert.deepEqual(plain(optionsOf(line)), { ...WITHOUT_FLAGS, ...changed });
  });
}

const IPV4 = "an IPv4 address and port, as 127.0.0.1:443";
const IPV6 = "an IPv6 address and port, as [::1]:443";
const SECONDS = "to 4000000 (seconds)";
const LEVELS = "error, warn, info, access or debug";

/** The flag's names, and values that it does not take with what was expected in their place. */
const WRONG: readonly (readonly [flag: string, expected: string, values: readonly string[]])[] = [
  ["-4, --ipv4", IPV4, [
    "[::1]:443",
    "[::ffff:127.0.0.1]:443",
    "127.0.0.1",
    "127.0.0.1:0",
    "localhost:443",
    "127.1:443",
    "",
    "two\nlines",
  ]],
  ["-6, --ipv6", IPV6, ["127.0.0.1:443", "::1:443", "[::1]:0", "ip6-localhost:443"]],
  ["-6, --ipv6", "an IPv6 address and port: this one is IPv4, which is for -4", [
    "[::ffff:127.0.0.1]:443",
  ]],
  ["-l, --listen-addr", "an IP address and port, as 127.0.0.1:443", [
    "8443",
    ":8443",
    "0.0.0.0:0",
    "0.0.0.0:65536",
  ]],
  ["-c, --close-after", `a whole number from 1 ${SECONDS}`, ["0", "-1", "1.5", "60s", "4000001"]],
  ["--listeners", "a whole number from 1 to 1024 (listeners)", ["0", "1025", "two"]],
  ["-p, --protocol", "tcp, udp or both", ["sctp", "tcp,udp", ""]],
  ["-m, --mark", "a whole number from 0 to 4294967295", ["-1", "4294967296", "0x", "0b1", "1e3"]],
  ["--header-timeout", `a whole number from 3 ${SECONDS}`, ["2", "0", "Infinity"]],
  ["--connect-timeout", `a whole number from 1 ${SECONDS}`, ["0", ""]],
  ["--keepalive", "a whole number from 0 to 32767 (seconds)", ["32768", "-1", "off"]],
  ["--idle-timeout", `a whole number from 0 ${SECONDS}`, ["4000001", "5m"]],
  ["--udp-header", "datagram, session or spp", ["first"]],
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
];

for (const [line, upstreams] of UPSTREAMS) {
  Deno.test(`parseArguments: "${line}" names upstreams, and a default beside one is none`, () => {
    const { ipv4: _, ipv6: __, ...defaults } = WITHOUT_FLAGS;
    assert.deepEqual(plain(optionsOf(line)), { ...defaults, ...upstreams });
  });
}

for (
  const line of ["-4 none", "-6 none", "-4 none -6 none", "doctor -6 none", "routes up -4 none"]
) {
  Deno.test(`parseArguments: refuses "${line}", which leaves no upstream`, () => {
    assert.equal(
      refusalOf(words(line)),
      "Options -4, --ipv4 and -6, --ipv6: none is left to forward to; name one of them",
    );
  });
}

Deno.test("parseArguments: refuses an upstream that is no server's address", () => {
  assert.equal(
    refusalOf(["-4", "0.0.0.0:443"]),
    'Option -4, --ipv4: "0.0.0.0:443" is not the address of a server, as 127.0.0.1:443',
  );
  assert.equal(
    refusalOf(["-6", "[::]:443"]),
    'Option -6, --ipv6: "[::]:443" is not the address of a server, as [::1]:443',
  );
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
      assert.deepEqual(plain(request.options), { ...defaults, ipv4: "192.0.2.1:80", mark: 7 });
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
          refusalOf([name, value]),
          `Option ${names}: ${JSON.stringify(value)} is not ${expected}`,
        );
      }
    });
  }
}

const UNREADABLE: readonly (readonly [line: string, message: string])[] = [
  ["--frob", "Unknown option '--frob'; see --help"],
  ["--listner 2", "Unknown option '--listner' (Did you mean --listeners?); see --help"],
  ["-4", "Option '-4, --ipv4 <addr>' argument missing; see --help"],
  [
    "routes sideways",
    "Command-argument value 'sideways' is invalid for argument 'action'. Allowed choices are up, down, show; see --help",
  ],
  ["routes", "Missing required argument 'action'; see --help"],
  ["run", "Too many arguments. Expected 0 arguments but got 1: run; see --help"],
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
  for (const value of Object.values(WITHOUT_FLAGS).filter((value) => value !== false)) {
    assert(help.replace(/\s+/g, " ").includes(`(default: "${value}")`), `${value}`);
  }
});

/** Runs the whole program with no permission but `--allow-ffi`. */
async function run(...args: string[]) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--allow-ffi", "main.ts", ...args],
    cwd: fileURLToPath(new URL("../..", import.meta.url)),
    // As an operator has it: with NO_COLOR, commander asks the environment nothing more.
    env: { NO_COLOR: "", FORCE_COLOR: "" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

Deno.test("parseArguments: doctor takes the service's flags, and --json", () => {
  const line = "-4 192.0.2.1:22 -m 7 --log-level debug";
  for (const json of [false, true]) {
    const request = parseArguments(words(`doctor ${line}${json ? " --json" : ""}`), "1.2.3");
    assert.deepEqual(request, { kind: "doctor", options: optionsOf(line), json });
  }
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
    stderr: 'mmproxy: Option --listeners: "0" is not a whole number from 1 to 1024 (listeners)\n',
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
