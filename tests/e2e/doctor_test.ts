/** The doctor on a host of its own: whole, and broken in one way after the other. */
import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { ON_PATH, Program, runToEnd } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService } from "./support/udp.ts";

/** They are root already, and find mmproxy where an operator has put it: on the PATH. */
const SHELL = `${ON_PATH}
sudo() { "$@"; }`;

interface Check {
  name: string;
  state: "ok" | "failed" | "unknown" | "skipped";
  listener?: string;
  protocol?: "tcp" | "udp";
  address?: string;
  detail: string;
  mend: string[];
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

/** Asserts that this alone is wrong, and that the commands that mend it do. */
async function assertMends(
  host: Host,
  flags: string[],
  expected: { check: string; detail: RegExp; shell?: string; mendsOnlyItself?: boolean },
): Promise<void> {
  const { check, detail, shell, mendsOnlyItself = false } = expected;
  const report = await host.act(() => ask(flags, shell));
  const failed = failures(report);
  assert.deepEqual(failed.map(({ name }) => name), [check], JSON.stringify(report, undefined, 1));
  const mend = failed.flatMap(({ mend }) => mend);
  assert.match(failed[0]?.detail ?? "", detail);
  assert.ok(mend.length > 0, "a command mends it");
  if (mendsOnlyItself) {
    // It is a limit of a shell, or other flags: what comes after it in the same shell works.
    const last = mend.at(-1)?.includes("mmproxy doctor")
      ? []
      : [`mmproxy doctor ${flags.join(" ")}`];
    assert.match(await paste(host, [...mend, ...last]), /^It works$/m);
    return;
  }
  await paste(host, mend);
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

Deno.test("doctor: a whole set-up has every check, and works", async () => {
  await using set = await Set.up();
  const report = await set.host.act(() => ask(set.flags));
  assert.deepEqual(report.checks.map(({ name, state }) => `${name} ${state}`), [
    "capabilities ok",
    "subnets ok",
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
    assert.deepEqual(check.mend, []);
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
  assert.match(stdout, new RegExp(`^✓ service: TCP ${set.service.address} accepts`, "m"));
  assert.match(
    stdout,
    /^✗ routes: IPv4 rule from 127\.0\.0\.1\/8 iif lo lookup 123: missing\n {4}mmproxy routes up -4 /m,
  );
  assert.match(stdout, /^- clients: TCP .* skipped because rules or routes are missing$/m);
  assert.match(stdout, /^It does not work: mend that and ask again$/m);
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
      "subnets good ok",
      "subnets down ok",
      "listen good ok",
      "listen down ok",
      "upstreams good ok",
      "upstreams down ok",
      "service good ok",
      "service down failed",
      "clients good ok",
      "clients down skipped",
    ],
  );
  const { stdout } = await set.host.act(() => runToEnd(["doctor", ...flags]));
  assert.match(stdout, /^✓ service: {6}good TCP 127\.0\.0\.1:\d+ accepts a connection$/m);
  assert.match(stdout, /^✗ service: {6}down TCP /m);
  assert.match(stdout, /^✓ nofile: {12}A limit of /m);
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
    detail: /missing, and table 123 has routes of others/,
  },
];

for (const { name, breaks, ip, detail } of ROUTING) {
  Deno.test(`doctor: finds ${name}`, async () => {
    await using set = await Set.up(ip);
    await set.host.run(breaks);
    await assertMends(set.host, set.flags, { check: "routes", detail });
  });
}

Deno.test("doctor: finds that a mark's routes are missing", async () => {
  await using set = await Set.up();
  await set.host.run("ip address add 198.51.100.50/32 dev lo");
  await using service = await set.host.act(() => new TcpService(tellAndEcho, "198.51.100.50"));
  const flags = ["-4", service.address, "-m", "7", "--connect-timeout", "1"];
  await assertMends(set.host, flags, { check: "routes", detail: /fwmark 0x7.*: missing$/ });
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
  assert.equal(routes?.detail, "Replies to clients come back, by rules of your own");
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
  await assertMends(set.host, set.flags, {
    check: "capabilities",
    detail: /^Cannot use the clients' addresses: .*CAP_NET_RAW is needed$/,
    // In a namespace of its own it has no user here.
    shell: 'exec unshare --user "$@"',
    mendsOnlyItself: true,
  });
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
  await assertMends(set.host, set.flags, {
    check: "listen",
    detail: new RegExp(`is taken by \\S+ \\(process ${other.pid}\\)`),
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
  assert.equal(listen?.detail, `mmproxy runs there already (process ${program.pid})`);
});

Deno.test("doctor: finds a port that needs a capability", async () => {
  await using set = await Set.up();
  await assertMends(set.host, set.flagsAt("127.0.0.1:80"), {
    check: "listen",
    detail: /CAP_NET_BIND_SERVICE is needed/,
    shell: 'exec setpriv --bounding-set=-net_bind_service "$@"',
  });
});

Deno.test("doctor: finds an address that is not this host's", async () => {
  await using set = await Set.up();
  await assertMends(set.host, set.flagsAt(`198.51.100.99:${set.listen}`), {
    check: "listen",
    detail: /198\.51\.100\.99:\d+ is not an address of this host$/,
    mendsOnlyItself: true,
  });
});

Deno.test("doctor: finds where the service listens instead", async () => {
  await using set = await Set.up();
  const flags = ["-4", `127.0.0.2:${set.service.port}`, ...set.flags.slice(2)];
  await assertMends(set.host, flags, {
    check: "service",
    detail: new RegExp(`^nobody listens there, but on ${set.service.address}$`),
    mendsOnlyItself: true,
  });
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
  await paste(set.host, failed?.mend ?? []);
  await using _service = await set.host.act(() => new TcpService(tellAndEcho, "127.0.0.1", port));
  assert.deepEqual(failures(await set.host.act(() => ask(flags))), []);
});

Deno.test("doctor: finds the wrong line of the subnet file", async () => {
  await using set = await Set.up();
  await using scratch = await Scratch.make();
  const path = await scratch.write("sub nets.txt", "192.0.2.0/24\n10.0.0.1/8\n");
  const flags = [...set.flags, "-a", path];
  await assertMends(set.host, flags, { check: "subnets", detail: /line 2: "10\.0\.0\.1\/8"/ });
  assert.equal(await Deno.readTextFile(path), "192.0.2.0/24\n# 10.0.0.1/8\n");
});

Deno.test("doctor: finds too low a limit of open files", async () => {
  await using set = await Set.up();
  await assertMends(set.host, set.flags, {
    check: "nofile",
    detail: /^A limit of 128 open files has room for 30 connections/,
    shell: 'ulimit -n 128; exec "$@"',
    mendsOnlyItself: true,
  });
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
  await paste(there, failed?.mend ?? []);
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
  await assertMends(here, flags, {
    check: "rp_filter",
    detail: /^Strict on .*other.*: \d+ replies to clients were dropped$/,
  });
});

Deno.test("doctor: a strict rp_filter is no fault where it drops nothing", async () => {
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
  await assertMends(host, flags, { check: "routes", detail: /IPv4 route .*: missing$/ });
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
  await assertMends(host, flags, { check: "routes", detail: /ipproto udp sport \d+ .*missing$/ });
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
  const mend = /^ {4}(mmproxy routes up .*)$/m.exec(said)?.[1] ?? "";
  await paste(set.host, [mend, command]);
  using client = await connect();
  await client.send(header);
  assert.match(await client.line(), /^192\.0\.2\.9:/);
});
