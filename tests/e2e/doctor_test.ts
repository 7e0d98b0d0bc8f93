/** The doctor on a host of its own: whole, and broken in one way after the other. */
import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { ON_PATH, Program, runToEnd } from "./support/program.ts";
import { installed, realPeerTest, Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { atTerminal } from "./support/terminal.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService } from "./support/udp.ts";

/** They are root already, and find mmproxy where an operator has put it: on the PATH. */
const SHELL = `${ON_PATH}
sudo() { "$@"; }`;

interface Check {
  name: string;
  state: "ok" | "failed" | "warning" | "unknown" | "skipped";
  listener?: string;
  protocol?: "tcp" | "udp";
  address?: string;
  detail: string;
  fix: string[];
}

interface Report {
  ok: boolean;
  checks: Check[];
}

/** What the doctor says; asserts that its exit code says the same. */
async function ask(flags: string[], shell?: string): Promise<Report> {
  const start = shell === undefined ? {} : { shell };
  const { code, stdout, stderr } = await runToEnd(["doctor", "--json", ...flags], start);
  assert.equal(stderr, "");
  const report = JSON.parse(stdout) as Report;
  assert.equal(code, report.ok ? 0 : 1);
  assert.equal(report.ok, report.checks.every(({ state }) => state !== "failed"));
  return report;
}

/** The checks that failed. */
const failures = ({ checks }: Report) => checks.filter(({ state }) => state === "failed");

const stateOf = ({ checks }: Report, name: string) =>
  checks.filter((check) => check.name === name).map(({ state }) => state);

/** Pastes commands into a shell. */
async function paste(host: Host, commands: string[]): Promise<string> {
  return await host.run([SHELL, ...commands].join("\n"));
}

/** Asserts that this alone is wrong, and that the commands that fix it do. */
async function assertFixes(
  host: Host,
  flags: string[],
  expected: { check: string; detail: RegExp; shell?: string },
): Promise<void> {
  const { check, detail, shell } = expected;
  const report = await host.act(() => ask(flags, shell));
  const failed = failures(report);
  assert.deepEqual(failed.map(({ name }) => name), [check], JSON.stringify(report, undefined, 1));
  const fix = failed.flatMap(({ fix }) => fix);
  assert.match(failed[0]?.detail ?? "", detail);
  assert.ok(fix.length > 0, "a command fixes it");
  await paste(host, fix);
  assert.deepEqual(failures(await host.act(() => ask(flags, shell))), []);
}

/** A host with a TCP service on 127.0.0.1, routes, and flags that fit. */
class Set implements AsyncDisposable {
  private constructor(
    readonly host: Host,
    readonly service: TcpService,
    readonly flags: string[],
    readonly listen: number,
  ) {}

  static async up(ip = "127.0.0.1"): Promise<Set> {
    const host = await Host.make();
    const service = await host.act(() => new TcpService(tellAndEcho, ip));
    const listen = freePort();
    const family = ip.includes(":") ? "-6" : "-4";
    const flags = [family, service.address, "-l", `0.0.0.0:${listen}`, "--connect-timeout", "1"];
    await paste(host, [`mmproxy routes up ${family} ${service.address}`]);
    return new Set(host, service, flags, listen);
  }

  /** The flags with another address to listen on. */
  flagsAt(address: string): string[] {
    return this.flags.map((flag) => flag === `0.0.0.0:${this.listen}` ? address : flag);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.service[Symbol.asyncDispose]();
    this.host[Symbol.dispose]();
  }
}

Deno.test("doctor: a complete setup has every check, and works", async () => {
  await using set = await Set.up();
  const report = await set.host.act(() => ask(set.flags));
  assert.deepEqual(report.checks.map(({ name, state }) => `${name} ${state}`), [
    "capabilities ok",
    "loopback ok",
    "subnets warning",
    "listen ok",
    "upstreams ok",
    "sandbox ok",
    "nofile ok",
    "service ok",
    "routes ok",
    "rp_filter ok",
    "clients ok",
    "conntrack ok",
  ]);
  for (const check of report.checks) {
    assert.notEqual(check.detail, "");
    assert.deepEqual(check.fix, []);
  }
  assert.equal(report.checks.find(({ name }) => name === "clients")?.address, set.service.address);
  assert.deepEqual(set.service.clients.map((client) => client.split(":")[0]), [
    "127.0.0.1",
    "203.0.113.77",
  ]);
});

Deno.test("doctor: prints a line for each check, and the command on a line of its own", async () => {
  await using set = await Set.up();
  await set.host.run("ip rule del from 127.0.0.1/8 iif lo lookup 123");
  const { code, stdout } = await set.host.act(() => runToEnd(["doctor", ...set.flags]));
  assert.equal(code, 1);
  assert.match(stdout, new RegExp(`^✓ service: +TCP ${set.service.address} accepts`, "m"));
  assert.match(
    stdout,
    /^✗ routes: +IPv4 rule from 127\.0\.0\.1\/8 iif lo lookup 123: missing\n {4}mmproxy routes up -4 /m,
  );
  assert.match(stdout, /^- clients: +TCP .* skipped because rules or routes are missing$/m);
  assert.match(stdout, /^1 check failed, 1 warning\. Fix it, then run doctor again$/m);
});

Deno.test("doctor: checks every listener of a file, and names it", async () => {
  await using set = await Set.up();
  await using scratch = await Scratch.make();
  const [free, other, closed] = [freePort(), freePort(), freePort()];
  const config = await scratch.write(
    "mmproxy.toml",
    `[[listener]]
name = "good"
listen = ["127.0.0.1:${set.listen}", "127.0.0.1:${free}"]
ipv4 = "${set.service.address}"

[[listener]]
name = "down"
listen = "127.0.0.1:${other}"
ipv4 = "127.0.0.1:${closed}"
connect-timeout = 1
`,
  );
  const flags = ["--config", config];
  const report = await set.host.act(() => ask(flags));
  assert.deepEqual(
    report.checks.filter(({ listener }) => listener !== undefined)
      .map(({ name, listener, state }) => `${name} ${listener} ${state}`),
    [
      "subnets good warning",
      "listen good ok",
      "upstreams good ok",
      "service good ok",
      "clients good ok",
      "subnets down warning",
      "listen down ok",
      "upstreams down ok",
      "service down failed",
      "clients down skipped",
    ],
  );
  const { stdout } = await set.host.act(() => runToEnd(["doctor", ...flags]));
  const groups = stdout.split(/^(?=This host$|Listener )/m);
  assert.deepEqual(groups.map((group) => group.split("\n")[0]), [
    "This host",
    "Listener good",
    "Listener down",
  ]);
  assert.match(groups[0] ?? "", /^✓ nofile: +A limit of /m);
  assert.match(groups[1] ?? "", /^✓ service: +TCP 127\.0\.0\.1:\d+ accepts a connection$/m);
  assert.match(groups[2] ?? "", /^✗ service: +TCP /m);
});

Deno.test("doctor: IPv6, and with a mark", async () => {
  await using set = await Set.up("::1");
  const flags = [...set.flags, "-m", "7"];
  const report = await set.host.act(() => ask(flags));
  assert.deepEqual(failures(report), []);
  assert.deepEqual(stateOf(report, "clients"), ["ok"]);
});

const ROUTING: { name: string; breaks: string; ip?: string; detail: RegExp }[] = [
  {
    name: "no rule",
    breaks: "ip rule del from 127.0.0.1/8 iif lo lookup 123",
    detail: /^IPv4 rule from 127\.0\.0\.1\/8 iif lo lookup 123: missing$/,
  },
  {
    name: "no route",
    breaks: "ip route flush table 123",
    detail: /^IPv4 route local default dev lo table 123: missing$/,
  },
  {
    name: "a rule for another table",
    breaks: `ip rule del from 127.0.0.1/8 iif lo lookup 123
             ip rule add from 127.0.0.1/8 iif lo lookup 99`,
    detail: /^IPv4 rule .* lookup 123: missing$/,
  },
  {
    name: "rules of the other family alone",
    ip: "::1",
    breaks: `ip -6 rule del from ::1 iif lo lookup 123
             ip -6 route flush table 123`,
    detail: /^IPv6 route .* table 123, IPv6 rule from ::1 iif lo lookup 123: missing$/,
  },
  {
    name: "a table that others use",
    breaks: `ip route flush table 123
             ip route add 198.51.100.0/24 dev lo table 123`,
    detail: /missing, and table 123 has routes that mmproxy did not set/,
  },
];

for (const { name, breaks, ip, detail } of ROUTING) {
  Deno.test(`doctor: finds ${name}`, async () => {
    await using set = await Set.up(ip);
    await set.host.run(breaks);
    await assertFixes(set.host, set.flags, { check: "routes", detail });
  });
}

Deno.test("doctor: finds that a mark's routes are missing", async () => {
  await using set = await Set.up();
  await set.host.run("ip address add 198.51.100.50/32 dev lo");
  await using service = await set.host.act(() => new TcpService(tellAndEcho, "198.51.100.50"));
  const flags = ["-4", service.address, "-m", "7", "--connect-timeout", "1"];
  await assertFixes(set.host, flags, { check: "routes", detail: /fwmark 0x7.*: missing$/ });
});

Deno.test("doctor: takes rules of one's own for what they do", async () => {
  await using set = await Set.up();
  await set.host.run(
    `ip rule del from 127.0.0.1/8 iif lo lookup 123
     ip rule add from 127.0.0.1 iif lo lookup 99
     ip route add local default dev lo table 99`,
  );
  const report = await set.host.act(() => ask(set.flags));
  assert.deepEqual(failures(report), []);
  const routes = report.checks.find(({ name }) => name === "routes");
  assert.equal(routes?.detail, "Replies to clients come back through rules of your own");
});

Deno.test("doctor: --auto-routes sets what is missing", async () => {
  await using set = await Set.up();
  await set.host.run("ip rule del from 127.0.0.1/8 iif lo lookup 123");
  const report = await set.host.act(() => ask([...set.flags, "--auto-routes"]));
  assert.deepEqual(failures(report), []);
  assert.deepEqual(stateOf(report, "clients"), ["skipped"]);
});

Deno.test("doctor: finds a user without capabilities", async () => {
  await using set = await Set.up();
  // In a namespace of its own it has no user here.
  const report = await set.host.act(() => ask(set.flags, 'exec unshare --user "$@"'));
  const [failed, ...others] = failures(report);
  assert.deepEqual(others, []);
  assert.match(
    failed?.detail ?? "",
    /^Cannot use the clients' addresses: .*CAP_NET_RAW is needed; run as root, .*AmbientCapabilities=/,
  );
  assert.deepEqual(failed?.fix, [], "the doctor run again is not a fix");
});

Deno.test("doctor: says what a container's root lacks", async () => {
  await using set = await Set.up();
  const shell = 'exec setpriv --bounding-set=-net_raw,-net_admin "$@"';
  for (const more of [[], ["-m", "7"]]) {
    const report = await set.host.act(() => ask([...set.flags, ...more], shell));
    const [failed, ...others] = failures(report);
    assert.deepEqual(others, []);
    assert.match(failed?.detail ?? "", /--cap-add=NET_RAW/);
    assert.deepEqual(stateOf(report, "clients"), ["skipped"]);
  }
});

Deno.test("doctor: finds who has the port", async () => {
  await using set = await Set.up();
  const program =
    `Deno.listen({ hostname: "0.0.0.0", port: ${set.listen} }); console.log("ready");` +
    "setInterval(() => {}, 1000)";
  const other = await set.host.act(() =>
    new Deno.Command(Deno.execPath(), { args: ["eval", program], stdout: "piped" }).spawn()
  );
  const ready = other.stdout.getReader();
  await ready.read();
  await assertFixes(set.host, set.flags, {
    check: "listen",
    detail: new RegExp(`is in use by \\S+ \\(process ${other.pid}\\)`),
  });
  await other.status;
  await ready.cancel();
});

Deno.test("doctor: the running program may have its port", async () => {
  await using set = await Set.up();
  await using program = await set.host.act(() =>
    Program.start({ listen: { ip: "127.0.0.1", port: set.listen }, args: set.flags.slice(0, 2) })
  );
  const report = await set.host.act(() => ask(set.flags));
  assert.deepEqual(failures(report), []);
  const listen = report.checks.find(({ name }) => name === "listen");
  assert.equal(listen?.detail, `mmproxy already runs there (process ${program.pid})`);
});

Deno.test("doctor: finds a port that needs a capability", async () => {
  await using set = await Set.up();
  await assertFixes(set.host, set.flagsAt("127.0.0.1:80"), {
    check: "listen",
    detail: /grant CAP_NET_BIND_SERVICE/,
    shell: 'exec setpriv --bounding-set=-net_bind_service "$@"',
  });
});

/** The flag that a finding names, with its value. */
function flagIn(detail: string | undefined): string[] {
  const [, flag, value] = /(--[\w-]+) (\S+)$/.exec(detail ?? "") ?? assert.fail(detail);
  return [flag ?? "", value ?? ""];
}

Deno.test("doctor: finds an address that is not this host's", async () => {
  await using set = await Set.up();
  const flags = set.flagsAt(`198.51.100.99:${set.listen}`);
  const [failed, ...others] = failures(await set.host.act(() => ask(flags)));
  assert.deepEqual(others, []);
  assert.equal(failed?.name, "listen");
  assert.match(failed?.detail ?? "", /198\.51\.100\.99:\d+ is not an address of this host; /);
  const flag = flagIn(failed?.detail);
  assert.deepEqual(flag, ["--listen-addr", `0.0.0.0:${set.listen}`]);
  const fixed = [
    ...set.flags.filter((word) => word !== "-l" && !word.startsWith("0.0.0.0")),
    ...flag,
  ];
  assert.deepEqual(failures(await set.host.act(() => ask(fixed))), []);
});

Deno.test("doctor: finds where the upstream listens instead", async () => {
  await using set = await Set.up();
  const flags = ["-4", `127.0.0.2:${set.service.port}`, ...set.flags.slice(2)];
  const [failed, ...others] = failures(await set.host.act(() => ask(flags)));
  assert.deepEqual(others, []);
  assert.equal(failed?.name, "service");
  assert.match(failed?.detail ?? "", /^nothing listens there, but on /);
  const flag = flagIn(failed?.detail);
  assert.deepEqual(flag, ["--ipv4", set.service.address]);
  assert.deepEqual(failures(await set.host.act(() => ask([...flag, ...set.flags.slice(2)]))), []);
});

Deno.test("doctor: knows its own upstream, and does not end it", async () => {
  using host = await Host.make();
  await host.run("ip address add 198.51.100.10/32 dev lo");
  const port = freePort();
  const listen = (ip: string) => host.act(() => new TcpService(tellAndEcho, ip, port));
  const flags = ["-4", `127.0.0.1:${port}`, "-l", `198.51.100.10:${port}`];
  await paste(host, [`mmproxy routes up -4 127.0.0.1:${port}`]);
  {
    await using _everywhere = await listen("0.0.0.0");
    const report = await host.act(() => ask(flags));
    const [failed, ...others] = failures(report);
    assert.deepEqual(others, []);
    assert.equal(failed?.name, "listen");
    assert.match(
      failed?.detail ?? "",
      new RegExp(
        `in use by the upstream itself, .* \\(process ${Deno.pid}\\): it listens on 0\\.0\\.0\\.0:${port}, ` +
          `.*Let it listen on 127\\.0\\.0\\.1:${port} only, or choose another port with --listen-addr`,
      ),
    );
    assert.doesNotMatch(JSON.stringify(report), /kill/);
  }
  await using _alone = await listen("127.0.0.1");
  assert.deepEqual(failures(await host.act(() => ask(flags))), []);
});

Deno.test("doctor: finds a service that is down", async () => {
  await using set = await Set.up();
  const port = freePort();
  const flags = ["-4", `127.0.0.1:${port}`, ...set.flags.slice(2)];
  const report = await set.host.act(() => ask(flags));
  const [failed, ...others] = failures(report);
  assert.deepEqual(others, []);
  assert.equal(failed?.name, "service");
  assert.deepEqual(stateOf(report, "clients"), ["skipped"]);
  await paste(set.host, failed?.fix ?? []);
  await using _service = await set.host.act(() => new TcpService(tellAndEcho, "127.0.0.1", port));
  assert.deepEqual(failures(await set.host.act(() => ask(flags))), []);
});

Deno.test("doctor: finds every wrong line of the subnet file", async () => {
  await using set = await Set.up();
  await using scratch = await Scratch.make();
  const path = await scratch.write("subnets.txt", "x\n192.0.2.0/24\ny\n");
  const report = await set.host.act(() => ask([...set.flags, "-a", path]));
  const failed = failures(report);
  assert.deepEqual(failed.map(({ name }) => name), ["subnets", "subnets"]);
  assert.match(failed[0]?.detail ?? "", /line 1: "x"/);
  assert.match(failed[1]?.detail ?? "", /line 3: "y"/);
  await paste(set.host, failed.flatMap(({ fix }) => fix));
  assert.equal(await Deno.readTextFile(path), "# x\n192.0.2.0/24\n# y\n");
  const fixed = await set.host.act(() => ask([...set.flags, "-a", path]));
  assert.ok(fixed.checks.every(({ state }) => state === "ok"), JSON.stringify(fixed));
});

Deno.test("doctor: finds the wrong line of the subnet file", async () => {
  await using set = await Set.up();
  await using scratch = await Scratch.make();
  const path = await scratch.write("sub nets.txt", "192.0.2.0/24\n10.0.0.1/8\n");
  const flags = [...set.flags, "-a", path];
  await assertFixes(set.host, flags, { check: "subnets", detail: /line 2: "10\.0\.0\.1\/8"/ });
  assert.equal(await Deno.readTextFile(path), "192.0.2.0/24\n# 10.0.0.1/8\n");
});

Deno.test("doctor: warns of a low limit of open files", async () => {
  await using set = await Set.up();
  const report = await set.host.act(() => ask(set.flags, 'ulimit -n 128; exec "$@"'));
  assert.deepEqual(failures(report), []);
  const [warned] = report.checks.filter(({ name }) => name === "nofile");
  assert.equal(warned?.state, "warning");
  assert.match(warned?.detail ?? "", /^A limit of 128 open files allows 30 connections/);
  const script = [...warned?.fix ?? [], `mmproxy doctor ${set.flags.join(" ")}`];
  assert.match(await paste(set.host, script), /^✓ nofile: +A limit of 4096/m);
});

Deno.test("doctor: finds that lo is down", async () => {
  await using set = await Set.up();
  await set.host.run("ip link set lo down");
  const report = await set.host.act(() => ask(set.flags));
  const [failed] = failures(report);
  assert.equal(failed?.name, "loopback");
  await paste(set.host, failed?.fix ?? []);
  assert.deepEqual(failures(await set.host.act(() => ask(set.flags))), []);
});

/** Ways in which a host has no IPv6 for its own services. */
for (const where of ["all", "lo"]) {
  Deno.test(`doctor: default flags work without IPv6 (${where})`, async () => {
    using host = await Host.make();
    // The host has a way to others: that is where ::1 goes without lo.
    await host.run(
      `ip link add out type veth peer name nobody
       ip link set nobody up
       ip link set out up
       ip -6 address add 2001:db8:3::1/64 dev out nodad
       ip -6 route add default via 2001:db8:3::2
       echo 1 > /proc/sys/net/ipv6/conf/${where}/disable_ipv6`,
    );
    await using _service = await host.act(() => new TcpService(tellAndEcho, "127.0.0.1", 443));
    await paste(host, ["mmproxy routes up"]);
    const report = await host.act(() => ask(["--connect-timeout", "1"]));
    assert.deepEqual(failures(report), []);
    assert.match(await paste(host, ["mmproxy routes show"]), /this host has no IPv6$/m);
  });
}

Deno.test("doctor: an IPv6 default without a server is a warning, if the IPv4 default has one", async () => {
  using host = await Host.make();
  await using _service = await host.act(() => new TcpService(tellAndEcho, "127.0.0.1", 443));
  await paste(host, ["mmproxy routes up -4 127.0.0.1:443"]);
  const report = await host.act(() => ask([]));
  assert.deepEqual(failures(report), []);
  assert.deepEqual(stateOf(report, "service"), ["ok", "warning"]);
  // Who names it wants it.
  const named = await host.act(() => ask(["-4", "127.0.0.1:443", "-6", "[::1]:4443"]));
  assert.ok(failures(named).some(({ address }) => address === "[::1]:4443"));
});

realPeerTest("doctor: finds a firewall that drops what comes to the port", {
  nft: await installed("nft"),
}, async () => {
  await using set = await Set.up();
  await set.host.run(
    `nft add table inet filter
     nft add chain inet filter in '{ type filter hook input priority 0; }'
     nft add rule inet filter in tcp dport ${set.listen} drop`,
  );
  const expected =
    /:\d+: a connection from this host does not get through, timed out .*: a firewall/;
  const [failed, ...others] = failures(await set.host.act(() => ask(set.flags)));
  assert.deepEqual(others, []);
  assert.equal(failed?.name, "listen");
  assert.match(failed?.detail ?? "", expected);
  assert.match(await paste(set.host, failed?.fix ?? []), new RegExp(`dport ${set.listen} drop`));
  // Beside the running program the same is seen.
  await using program = await set.host.act(() =>
    Program.start({ listen: { ip: "127.0.0.1", port: set.listen }, args: set.flags.slice(0, 2) })
  );
  const [, beside] = (await set.host.act(() => ask(set.flags))).checks
    .filter(({ name }) => name === "listen");
  assert.match(beside?.detail ?? "", expected);
  await set.host.run("nft delete table inet filter");
  assert.deepEqual(failures(await set.host.act(() => ask(set.flags))), []);
  assert.deepEqual(program.all("header_refused").map(({ level }) => level), ["debug"]);
});

Deno.test("doctor: names another program's rule that takes the replies, and --fix goes before it", async () => {
  await using set = await Set.up();
  const vpn = `ip link add out type veth peer name nobody
    ip link set nobody up
    ip link set out up
    ip address add 203.0.113.1/30 dev out
    ip route add default via 203.0.113.2
    ip rule add lookup main`;
  await set.host.run(vpn);
  await assertFixes(set.host, set.flags, {
    check: "routes",
    detail:
      /IPv4 rule \d+ \(lookup main\) comes before it and sends replies out of out; the rule of mmproxy .*priority \d+$/,
  });
  await set.host.run("ip rule del lookup main; ip rule add lookup main");
  const { code, stdout } = await set.host.act(() =>
    runToEnd(["doctor", "--fix", "--yes", ...set.flags])
  );
  assert.equal(code, 0, stdout);
  assert.match(stdout, /^Set: IPv4 rule pref \d+ from 127\.0\.0\.1\/8 /m);
  assert.match(stdout, /^No check failed, 1 warning$/m);
});

Deno.test("doctor --fix: asks at a terminal, and sets nothing without a yes", async () => {
  await using set = await Set.up();
  await set.host.run("ip rule del from 127.0.0.1/8 iif lo lookup 123");
  const rules = () => set.host.run("ip rule");
  const before = await rules();
  const refused = await set.host.act(() => runToEnd(["doctor", "--fix", ...set.flags]));
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /^mmproxy: Option --fix: .*no terminal.*--yes.*\n$/);
  assert.equal(await rules(), before);

  const type = (key: string) => ({ keys: `${key}\\n`, after: "Set rules and routes?" });
  const no = await set.host.act(() => atTerminal(["doctor", "--fix", ...set.flags], type("n")));
  assert.equal(no.code, 1, no.written);
  assert.match(no.written, /Set rules and routes\?/);
  assert.equal(await rules(), before);
  const yes = await set.host.act(() => atTerminal(["doctor", "--fix", ...set.flags], type("y")));
  assert.equal(yes.code, 0, yes.written);
  assert.match(yes.written, /Set: IPv4 rule from /);
  assert.notEqual(await rules(), before);
});

Deno.test("doctor --fix: sets a kernel parameter, and says what it cannot set", async () => {
  await using set = await Set.up();
  const flags = set.flagsAt("127.0.0.1:80");
  const shell = 'exec setpriv --bounding-set=-net_bind_service "$@"';
  const fix = (flags: string[]) =>
    set.host.act(() => runToEnd(["doctor", "--fix", "--yes", ...flags], { shell }));
  const { code, stdout } = await fix(flags);
  assert.equal(code, 0, stdout);
  assert.match(stdout, /^Set: sysctl net\.ipv4\.ip_unprivileged_port_start = 80$/m);
  const other = await fix(set.flagsAt(`198.51.100.99:${set.listen}`));
  assert.equal(other.code, 1);
  assert.match(other.stdout, /^doctor cannot fix the failed checks itself/m);
});

Deno.test("doctor: colours are for a terminal", async () => {
  await using set = await Set.up();
  const said = async (args: string[], typing = {}) =>
    (await set.host.act(() => atTerminal(["doctor", ...set.flags, ...args], typing))).written;
  assert.ok((await said([])).includes("\x1b[32m✓\x1b[39m"));
  assert.ok(!(await said(["--color", "never"])).includes("\x1b["));
  assert.ok(!(await said([], { shell: 'NO_COLOR=1 exec "$@"' })).includes("\x1b["));
  const piped = await set.host.act(() => runToEnd(["doctor", ...set.flags]));
  assert.ok(!piped.stdout.includes("\x1b["));
  const forced = await set.host.act(() => runToEnd(["doctor", ...set.flags, "--color", "always"]));
  assert.ok(forced.stdout.includes("\x1b[32m✓"));
});

/** A service on another host, which has two wires to this one. */
async function neighbours(): Promise<{ here: Host; there: Host }> {
  const [here, there] = [await Host.make(), await Host.make()];
  await here.connect("wire", there, "itswire");
  await here.connect("other", there, "itsother");
  await here.run("ip address add 192.0.2.1/30 dev wire; ip address add 192.0.2.5/30 dev other");
  await there.run(
    `ip address add 192.0.2.2/30 dev itswire
     ip address add 192.0.2.6/30 dev itsother
     for name in all itswire itsother; do echo 0 > /proc/sys/net/ipv4/conf/$name/rp_filter; done`,
  );
  return { here, there };
}

Deno.test("doctor: finds that another host does not send its replies here", async () => {
  const { here, there } = await neighbours();
  using _here = here;
  using _there = there;
  await using service = await there.act(() => new TcpService(tellAndEcho, "192.0.2.2"));
  const flags = ["-4", service.address, "--connect-timeout", "1"];
  await paste(here, [`mmproxy routes up ${flags.join(" ")}`]);
  const [failed, ...others] = failures(await here.act(() => ask(flags)));
  assert.deepEqual(others, []);
  assert.equal(failed?.name, "clients");
  assert.match(failed?.detail ?? "", /On 192\.0\.2\.2/);
  await paste(there, failed?.fix ?? []);
  assert.deepEqual(failures(await here.act(() => ask(flags))), []);
});

Deno.test("doctor: finds a strict rp_filter where it drops replies", async () => {
  const { here, there } = await neighbours();
  using _here = here;
  using _there = there;
  await using service = await there.act(() => new TcpService(tellAndEcho, "192.0.2.2"));
  const flags = ["-4", service.address, "--connect-timeout", "1"];
  // The replies come by the other wire than the one that leads to the service.
  await there.run("ip route add default via 192.0.2.5");
  await paste(here, [`mmproxy routes up ${flags.join(" ")}`]);
  const filter = (value: number) =>
    here.run(
      `for name in all wire other; do echo ${value} > /proc/sys/net/ipv4/conf/$name/rp_filter; done`,
    );
  await here.run("ip rule add from 192.0.2.2 iif other lookup 123");
  await filter(0);
  // Now they know each other's hardware addresses: the filter drops ARP as well, and does not count it.
  assert.deepEqual(failures(await here.act(() => ask(flags))), []);
  await filter(1);
  await assertFixes(here, flags, {
    check: "rp_filter",
    detail: /^Strict on .*other.*: \d+ replies to clients were dropped$/,
  });
});

Deno.test("doctor: a strict rp_filter is not a fault if it drops nothing", async () => {
  await using set = await Set.up();
  await set.host.run(
    "for name in all lo; do echo 1 > /proc/sys/net/ipv4/conf/$name/rp_filter; done",
  );
  assert.deepEqual(failures(await set.host.act(() => ask(set.flags))), []);
});

Deno.test("doctor: UDP that answers needs its routes", async () => {
  using host = await Host.make();
  await using service = await host.act(() => UdpService.start(tell));
  const flags = ["-p", "udp", "-4", service.address];
  await assertFixes(host, flags, { check: "routes", detail: /IPv4 route .*: missing$/ });
  assert.equal(service.received.at(-1)?.from.ip, "203.0.113.77");
});

Deno.test("doctor: UDP that says nothing is not known, and no fault", async () => {
  using host = await Host.make();
  await using service = await host.act(() => UdpService.start(() => undefined));
  const flags = ["-p", "udp", "-4", service.address];
  // As the README has it by hand: a service that is not on a wildcard address needs no more.
  await host.run(
    "ip rule add from 127.0.0.1/8 iif lo table 123; ip route add local 0.0.0.0/0 dev lo table 123",
  );
  const report = await host.act(() => ask(flags));
  assert.deepEqual(failures(report), []);
  assert.deepEqual(stateOf(report, "service"), ["unknown"]);
  assert.deepEqual(stateOf(report, "clients"), ["unknown"]);
  const datagrams = await eventually(
    () => service.received.length === 2 && service.received,
    "two",
  );
  assert.deepEqual(datagrams.map(({ from }) => from.ip), ["127.0.0.1", "203.0.113.77"]);
});

Deno.test("doctor: UDP on a wildcard address needs a rule more", async () => {
  using host = await Host.make();
  await using service = await host.act(() => UdpService.start(() => undefined, "0.0.0.0"));
  const flags = ["-p", "udp", "-4", `127.0.0.1:${service.local.port}`];
  await paste(host, [`mmproxy routes up ${flags.join(" ")}`]);
  await host.run(`ip rule del from 0.0.0.0/32 iif lo ipproto udp sport ${service.local.port}`);
  await assertFixes(host, flags, { check: "routes", detail: /ipproto udp sport \d+ .*missing$/ });
});

Deno.test("doctor: a running program names it when no client is answered", async () => {
  await using set = await Set.up();
  await set.host.run("ip rule del from 127.0.0.1/8 iif lo lookup 123");
  await using program = await set.host.act(() =>
    Program.start({
      listen: { ip: "127.0.0.1", port: set.listen },
      args: ["-4", set.service.address, "--connect-timeout", "1"],
    })
  );
  const connect = () => set.host.act(() => Stream.connect(set.listen));
  const header = v2({ ip: "192.0.2.9", port: 0 }, { ip: "198.51.100.1", port: 443 });
  for (let count = 0; count < 5; count++) {
    using client = await connect();
    await client.send(header);
    await client.end();
  }
  const told = program.all("service_unanswered");
  assert.equal(told.length, 1);
  const command = /to find out why, run: (mmproxy doctor .*)$/.exec(told[0]?.message ?? "")?.[1] ??
    "";
  const said = await paste(set.host, [`${command} || true`]);
  const fix = /^ {4}(mmproxy routes up .*)$/m.exec(said)?.[1] ?? "";
  await paste(set.host, [fix, command]);
  using client = await connect();
  await client.send(header);
  assert.match(await client.line(), /^192\.0\.2\.9:/);
});
