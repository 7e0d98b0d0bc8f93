import assert from "node:assert/strict";
import { type Endpoint, freePort, show } from "./support/endpoints.ts";
import { bytes, text, tlv, v2 } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { type Ended, type LogEvent, ON_PATH, Program, runToEnd } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Scratch } from "./support/real_peers.ts";
import { reload } from "./support/reloads.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const CLIENT4 = "203.0.113.77";
const CLIENT6 = "2001:db8:77::77";
const BALANCER4 = { ip: "198.51.100.1", port: 443 };
const BALANCER6 = { ip: "2001:db8:1::1", port: 443 };
/** Addresses of the proxy's host towards others. */
const HERE4 = "192.0.2.1";
const HERE6 = "2001:db8:2::1";
const THERE4 = "192.0.2.2";
const THERE6 = "2001:db8:2::2";
/** A service behind a router, and the router's address towards it. */
const BEHIND4 = "198.51.100.130";
const BEHIND6 = "2001:db8:4::2";
const ROUTER4 = "198.51.100.129";
const ROUTER6 = "2001:db8:4::1";
const LOCAL4 = "198.51.100.50";
const LOCAL6 = "2001:db8:50::50";

/** A host as they are: packets to clients leave it by a default route, if nothing else is set. */
async function makeHost(): Promise<Host> {
  const host = await Host.make();
  await host.run(
    `ip link add out type veth peer name nobody
     ip link set nobody up
     ip link set out up
     ip neighbour add 203.0.113.2 lladdr 02:00:00:00:00:99 dev out
     ip -6 neighbour add 2001:db8:3::2 lladdr 02:00:00:00:00:99 dev out
     ip address add 203.0.113.1/30 dev out
     ip -6 address add 2001:db8:3::1/64 dev out nodad
     ip address add ${LOCAL4}/32 dev out
     ip -6 address add ${LOCAL6}/128 dev out nodad
     ip route add default via 203.0.113.2
     ip -6 route add default via 2001:db8:3::2
     echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter`,
  );
  return host;
}

/** Runs `routes`, and fails unless it ends with 0; what it printed. */
async function routes(action: string, flags: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await runToEnd(["routes", action, ...flags]);
  assert.equal(code, 0, stderr + stdout);
  assert.equal(stderr, "");
  return stdout;
}

/** All that routes up may change on the host. */
async function routing(host: Host): Promise<string> {
  return await host.run(
    `for family in -4 -6; do
       ip $family rule
       ip $family route show table all | grep -v "table local"
     done
     cd /proc/sys/net
     grep . ipv4/tcp_fwmark_accept ipv4/fwmark_reflect ipv6/fwmark_reflect`,
  );
}

interface Recipe {
  name: string;
  /** Where the service listens, and where the program is told that it is. */
  bound: string;
  named: string;
  transport: "tcp" | "udp";
  flags?: string[];
  /** The service is on another host: who sends its replies here, and why. */
  elsewhere?: "told" | "by default" | "router told";
}

const RECIPES: Recipe[] = [
  { name: "a loopback service", bound: "127.0.0.1", named: "127.0.0.1", transport: "tcp" },
  { name: "a loopback service", bound: "::1", named: "::1", transport: "tcp" },
  { name: "a loopback service", bound: "127.0.0.1", named: "127.0.0.1", transport: "udp" },
  { name: "a loopback service", bound: "::1", named: "::1", transport: "udp" },
  { name: "a wildcard service", bound: "0.0.0.0", named: "127.0.0.1", transport: "tcp" },
  { name: "a wildcard service", bound: "0.0.0.0", named: "127.0.0.1", transport: "udp" },
  { name: "a wildcard service", bound: "::", named: "::1", transport: "udp" },
  { name: "a wildcard service's other address", bound: "0.0.0.0", named: LOCAL4, transport: "udp" },
  { name: "a wildcard service's other address", bound: "::", named: LOCAL6, transport: "udp" },
  { name: "a service on another address", bound: LOCAL4, named: LOCAL4, transport: "tcp" },
  { name: "a service on another address", bound: LOCAL6, named: LOCAL6, transport: "tcp" },
  { name: "a service on another address", bound: LOCAL4, named: LOCAL4, transport: "udp" },
  { name: "a service on another address", bound: LOCAL6, named: LOCAL6, transport: "udp" },
  ...([LOCAL4, LOCAL6].map((ip): Recipe => ({
    name: "a service on another address, with a mark",
    bound: ip,
    named: ip,
    transport: "tcp",
    flags: ["--mark", "7"],
  }))),
  ...(["told", "by default"] as const).flatMap((elsewhere): Recipe[] => {
    const name = elsewhere === "told"
      ? "a service on another host, with the commands that it prints"
      : "a service on another host, which has this one as its gateway";
    return [
      { name, bound: THERE4, named: THERE4, transport: "tcp", elsewhere },
      { name, bound: THERE6, named: THERE6, transport: "tcp", elsewhere },
      { name, bound: THERE4, named: THERE4, transport: "udp", elsewhere },
      { name, bound: THERE6, named: THERE6, transport: "udp", elsewhere },
    ];
  }),
  ...(["tcp", "udp"] as const).flatMap((transport): Recipe[] => {
    const name = "a service behind a router, with the commands that it prints";
    const elsewhere = "router told";
    return [
      { name, bound: BEHIND4, named: BEHIND4, transport, elsewhere },
      { name, bound: BEHIND6, named: BEHIND6, transport, elsewhere },
    ];
  }),
  {
    name: "a wildcard service on another host, with the commands that it prints",
    bound: "0.0.0.0",
    named: THERE4,
    transport: "udp",
    elsewhere: "told",
  },
];

for (const recipe of RECIPES) {
  const { name, named, transport } = recipe;
  const title = `routes up: ${name} (${transport}, ${named}) sees clients`;
  Deno.test(`${title}, neither before nor after routes down`, () => serves(recipe));
}

async function serves({ bound, named, transport, flags = [], elsewhere }: Recipe): Promise<void> {
  using host = await makeHost();
  using other = await makeHost();
  using router = await makeHost();
  if (elsewhere === "router told") await joinBehind(host, router, other);
  else if (elsewhere) await join(host, other, elsewhere);
  const told = elsewhere === "router told" ? router : elsewhere === "told" ? other : undefined;
  await using service = await (elsewhere ? other : host).act(() => start(transport, bound));
  const upstream: Endpoint = { ip: named, port: service.port };
  await host.act(async () => {
    const all = [named.includes(":") ? "-6" : "-4", show(upstream), "-p", transport, ...flags];
    const before = await routing(host);
    await using program = await Program.start({ args: [...all, "--connect-timeout", "1"] });
    await assertNotServed(program, transport, named);

    const printed = await routes("up", all);
    const commands = printed.split("\n").filter((line) => line.startsWith("  "));
    if (told) await told.run(commands.join("\n"));
    await assertServed(program, transport, named);
    const after = await routing(host);
    assert.notEqual(after, before);
    await routes("up", all);
    assert.equal(await routing(host), after, "a second routes up changes nothing");
    await routes("show", all);

    await routes("down", []);
    // Parameters of the kernel stay: another program may need them by now.
    assert.equal(onlyRoutes(await routing(host)), onlyRoutes(before));
    await assertNotServed(program, transport, named);
    assert.match(await routes("down", []), /Nothing to remove/);
    assert.equal((await runToEnd(["routes", "show", ...all])).code, 1);
  });
}

function onlyRoutes(routing: string): string {
  return routing.replace(/^ipv\d\/.*$/gm, "");
}

async function join(host: Host, other: Host, how: "told" | "by default"): Promise<void> {
  await host.connect("wire", other, "wire");
  await host.run(
    `ip address add ${HERE4}/24 dev wire; ip address add ${HERE6}/64 dev wire nodad`,
  );
  await other.run(
    `ip address add ${THERE4}/24 dev wire; ip address add ${THERE6}/64 dev wire nodad`,
  );
  if (how === "told") return;
  await other.run(
    `ip route replace default via ${HERE4}; ip -6 route replace default via ${HERE6}`,
  );
}

async function joinBehind(host: Host, router: Host, other: Host): Promise<void> {
  await join(host, router, "told");
  await router.connect("behind", other, "front");
  await router.run(
    `ip address add ${ROUTER4}/30 dev behind; ip address add ${ROUTER6}/64 dev behind nodad
     echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`,
  );
  await other.run(
    `ip address add ${BEHIND4}/30 dev front; ip address add ${BEHIND6}/64 dev front nodad
     ip route replace default via ${ROUTER4}; ip -6 route replace default via ${ROUTER6}`,
  );
  await host.run(
    `ip route add ${BEHIND4}/32 via ${THERE4}; ip -6 route add ${BEHIND6}/128 via ${THERE6}`,
  );
}

async function start(transport: "tcp" | "udp", ip: string) {
  if (transport === "tcp") return new TcpService(tellAndEcho, ip);
  const service = await UdpService.start(tell, ip);
  return Object.assign(service, { port: service.local.port });
}

let lastPort = 41_000;

/** A client of the service's family, each time with another port: the last one may linger. */
function nextClient(named: string): Endpoint {
  return { ip: named.includes(":") ? CLIENT6 : CLIENT4, port: ++lastPort };
}

function header(client: Endpoint, transport: "tcp" | "udp"): Uint8Array {
  const balancer = client.ip.includes(":") ? BALANCER6 : BALANCER4;
  return v2(client, balancer, { datagram: transport === "udp" });
}

async function assertServed(program: Program, transport: "tcp" | "udp", named: string) {
  const client = nextClient(named);
  if (transport === "tcp") {
    using stream = await Stream.connect(program.listen.port);
    await stream.send(header(client, transport), "hello");
    assert.equal(await stream.line(), show(client));
    assert.equal(text(await stream.exactly(5)), "hello");
    return;
  }
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(client, transport), "hello");
  assert.equal(text((await peer.receive()).data), `${show(client)} hello`);
}

async function assertNotServed(program: Program, transport: "tcp" | "udp", named: string) {
  const client = nextClient(named);
  const failures = () => program.all("connect_failed").length;
  const before = failures();
  if (transport === "tcp") {
    using stream = await Stream.connect(program.listen.port);
    await stream.send(header(client, transport), "hello");
    await stream.end();
    await eventually(() => failures() > before, "a failure to connect");
    return;
  }
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(client, transport), "hello");
  await peer.silence();
}

/** Command lines whose commands to paste must do what `routes up` does. */
const PASTED: [flags: string, service?: "remote"][] = [
  [""],
  ["-4 127.0.0.1:53 -p both --table 70000"],
  ["-6 [::1]:53 -p udp"],
  [`-4 ${LOCAL4}:443 -6 [${LOCAL6}]:443 -p both`],
  [`-4 ${LOCAL4}:443 -6 [${LOCAL6}]:443 -p both -m 0x7b`],
  [`-4 ${THERE4}:443 -6 [${THERE6}]:443 -p both`, "remote"],
  [`-l 0.0.0.0:30000-30999 -l [::]:30000-30999 -4 ${LOCAL4} -6 ${LOCAL6} -p both`],
];

for (const [flags, service] of PASTED) {
  Deno.test(`routes up --dry-run: its commands do what routes up ${flags} does`, async () => {
    const all = flags === "" ? [] : flags.split(" ");
    using pasted = await makeHost();
    using done = await makeHost();
    if (service) {
      for (const host of [pasted, done]) {
        await host.run(`ip link add wire type veth peer name end; ip link set wire up`);
        await host.run(`ip address add ${HERE4}/24 dev wire`);
        await host.run(`ip address add ${HERE6}/64 dev wire nodad`);
      }
    }
    const before = await routing(pasted);
    const commands = await pasted.act(() => routes("up", [...all, "--dry-run"]));
    assert.equal(await routing(pasted), before, "a dry run sets nothing");
    await pasted.run(commands);
    await done.act(() => routes("up", all));
    assert.equal(await routing(pasted), await routing(done));
    assert.notEqual(await routing(pasted), before);

    await pasted.act(() => routes("show", all));
    const table = flags.includes("--table") ? ["--table", "70000"] : [];
    const undo = await pasted.act(() => routes("down", [...table, "--dry-run"]));
    await pasted.run(undo);
    await done.act(() => routes("down", table));
    assert.equal(await routing(pasted), await routing(done));
    assert.doesNotMatch(await routing(pasted), /proto 123/);
  });
}

Deno.test("routes up: with a mark, the service still answers other hosts directly", async () => {
  using host = await makeHost();
  using other = await Host.make();
  await join(host, other, "by default");
  for (const named of [LOCAL4, LOCAL6]) {
    await using service = await host.act(() => new TcpService(tellAndEcho, named));
    const flag = named.includes(":") ? "-6" : "-4";
    const all = [flag, show({ ip: named, port: service.port })];
    await host.act(() => routes("up", [...all, "-m", "7"]));
    const client = await other.act(() => Stream.connect(service.port, named));
    assert.equal(await client.line(), client.local);
    client[Symbol.dispose]();
    await host.act(() => routes("down", []));
  }
});

Deno.test("routes up: UDP services on the port of a wildcard one, but on addresses, answer directly", async () => {
  using host = await makeHost();
  using other = await Host.make();
  await join(host, other, "by default");
  await using service = await host.act(() => UdpService.start(tell, LOCAL4));
  const all = ["-4", `127.0.0.1:${service.local.port}`, "-p", "udp"];
  assert.match(await host.act(() => routes("up", all)), /rule from 0\.0\.0\.0 iif lo ipproto udp/);
  await using client = await other.act(() => UdpSocket.open(THERE4));
  await client.send(service.local, "hello");
  assert.equal(text((await client.receive()).data), `${show(client.local)} hello`);
});

Deno.test("routes up: a closed port is refused at once, whatever the recipe", async () => {
  using host = await makeHost();
  await host.act(async () => {
    for (const named of ["127.0.0.1", "::1", LOCAL4, LOCAL6]) {
      for (const mark of [[], ["-m", "7"]]) {
        const flag = named.includes(":") ? "-6" : "-4";
        const all = [flag, show({ ip: named, port: 9 }), ...mark];
        await routes("up", all);
        await using program = await Program.start({ args: all });
        using stream = await Stream.connect(program.listen.port);
        await stream.send(header(nextClient(named), "tcp"), "hello");
        assert.equal((await program.event("connect_failed")).error, "ECONNREFUSED");
        await routes("down", []);
      }
    }
  });
});

Deno.test("routes up: other flags of the same service change what is set", async () => {
  using host = await makeHost();
  await host.act(async () => {
    await routes("up", ["-4", "127.0.0.1:53"]);
    await routes("up", ["-4", "127.0.0.1:53", "-p", "both"]);
    assert.match(
      await host.run("ip route show table 123"),
      /^local default dev lo .*src 127.0.0.1/,
    );
    // What TCP needs is still there: the source is more than it requests.
    assert.doesNotMatch(await routes("up", ["-4", "127.0.0.1:53"]), /^Set/m);
    assert.match(
      await routes("show", ["-4", "127.0.0.1:53"]),
      /not needed with these flags; ip rule del/,
    );
  });
});

Deno.test("routes --config: what all listeners of a file need, each rule once", async () => {
  using host = await makeHost();
  await using scratch = await Scratch.make();
  const config = await scratch.write(
    "mmproxy.toml",
    `[[listener]]
name = "mail"
listen = ["192.0.2.1:25", "192.0.2.1:587"]
ipv4 = "127.0.0.1"

[[listener]]
name = "web"
listen = "0.0.0.0:8443"
ipv4 = "${LOCAL4}:443"
mark = 7

[[listener]]
name = "rtp"
listen = "0.0.0.0:30000-30999"
protocol = "udp"
ipv4 = "${LOCAL4}"
`,
  );
  const flags = ["--config", config, "--table", "9"];
  await host.act(async () => {
    const set = (await routes("up", flags)).match(/^Set: .*$/gm);
    assert.deepEqual(set, [
      "Set: sysctl net.ipv4.tcp_fwmark_accept = 1",
      "Set: sysctl net.ipv4.fwmark_reflect = 1",
      `Set: IPv4 route local default dev lo src ${LOCAL4} table 9`,
      "Set: IPv4 rule from 127.0.0.1/8 iif lo lookup 9",
      "Set: IPv4 rule fwmark 0x7 iif lo lookup 9",
      `Set: IPv4 rule from ${LOCAL4} iif lo ipproto udp sport 30000-30999 lookup 9`,
      "Set: IPv4 rule from 0.0.0.0 iif lo ipproto udp sport 30000-30999 lookup 9",
    ]);
    assert.doesNotMatch(await routes("show", flags), /^✗/m);
    assert.doesNotMatch(await routes("up", flags), /^Set/m);
    await routes("down", ["--table", "9"]);
    assert.doesNotMatch(await routing(host), /proto 123/);
  });
});

/** What a VPN's program adds at any time: its rules come before those that were there. */
const VPNS: [name: string, script: string][] = [
  ["a rule for all", "ip $family rule add lookup main"],
  [
    "wg-quick's rules",
    `ip $family route add default dev out table 51820
     ip $family rule add not fwmark 51820 lookup 51820
     ip $family rule add table main suppress_prefixlength 0`,
  ],
  ["a rule that refuses", "ip $family rule add prohibit"],
];

for (const [name, script] of VPNS) {
  for (const named of ["127.0.0.1", LOCAL6]) {
    Deno.test(`routes show: names ${name} before ours, and the rule that fixes it (${named})`, async () => {
      using host = await makeHost();
      await host.act(async () => {
        await using service = new TcpService(tellAndEcho, named);
        const family = named.includes(":") ? "-6" : "-4";
        const flags = [family, service.address];
        await using program = await Program.start({ args: [...flags, "--connect-timeout", "1"] });
        await routes("up", flags);
        await assertServed(program, "tcp", named);
        await host.run(`family=${family}; ${script}`);
        await assertNotServed(program, "tcp", named);

        const { code, stdout } = await runToEnd(["routes", "show", ...flags]);
        assert.equal(code, 1, stdout);
        const line =
          /^✗ .*: IPv. rule (\d+) \(.*\) comes before it and .*; (ip .*rule add pref (\d+) .*)$/m;
        const [, before, command = "", ahead] = line.exec(stdout) ?? assert.fail(stdout);
        assert.equal(Number(ahead), Number(before) - 1);
        await host.run(command);
        await routes("show", flags);
        await assertServed(program, "tcp", named);
      });
    });
  }
}

Deno.test("routes up: puts its rules before another program's, as --dry-run prints it", async () => {
  const flags = ["-4", "127.0.0.1:53", "-p", "both"];
  const results: string[] = [];
  for (const dryRun of [true, false]) {
    using host = await makeHost();
    await host.act(async () => {
      await routes("up", flags);
      await host.run("ip rule add lookup main");
      if (dryRun) await host.run(await routes("up", [...flags, "--dry-run"]));
      else assert.match(await routes("up", flags), /^Set: IPv4 rule pref \d+ from 127/m);
      await routes("show", flags);
      const after = await routing(host);
      await routes("up", flags);
      assert.equal(await routing(host), after, "a second routes up changes nothing");
      results.push(after);
      await routes("down", []);
      assert.doesNotMatch(await routing(host), /proto 123/);
    });
  }
  assert.equal(results[0], results[1]);
});

Deno.test("routes up: a rule that nothing can come before is named", async () => {
  using host = await makeHost();
  await host.act(async () => {
    await routes("up", []);
    await host.run("ip rule add lookup main pref 1");
    const { code, stdout } = await runToEnd(["routes", "up"]);
    assert.equal(code, 1);
    assert.match(
      stdout,
      /IPv4 rule 1 \(lookup main\) .* change its priority \(ip rule show priority 1\)$/m,
    );
  });
});

Deno.test("--auto-routes: goes before another program's rule, and leaves the rest as it was", async () => {
  using host = await makeHost();
  await host.act(async () => {
    await using service = new TcpService(tellAndEcho);
    const flags = ["-4", service.address];
    await routes("up", flags);
    await host.run("ip rule add lookup main");
    const before = await routing(host);
    await using program = await Program.start({ args: [...flags, "--auto-routes"] });
    await assertServed(program, "tcp", "127.0.0.1");
    await program.stop();
    assert.equal(await routing(host), before);
  });
});

/** What others have set in the table, and the reason why routes up cannot continue. */
const FOREIGN: [name: string, script: string, why?: RegExp][] = [
  [
    "a default route",
    "ip route add default via 203.0.113.2 table 123",
    /^mmproxy: Routing table 123 has routes that mmproxy did not set .*--table$/m,
  ],
  [
    "an IPv6 route",
    "ip -6 route add 2001:db8:4::/64 dev out table 123",
    /^mmproxy: Routing table 123 has routes that mmproxy did not set .*--table$/m,
  ],
  ["the README's rules", "ip rule add from 127.0.0.1/8 iif lo table 123"],
  ["the README's routes", "ip route add local 0.0.0.0/0 dev lo table 123"],
  ["a rule with more conditions", "ip rule add from 127.0.0.1/8 iif lo dport 1 table 123"],
  ["a rule for packets that it does not mark", "ip rule add fwmark 0x1/0x3 table 123"],
];

for (const [name, script, why] of FOREIGN) {
  Deno.test(`routes: ${name} of others stays, through up and down`, async () => {
    using host = await makeHost();
    await host.run(script);
    const before = await routing(host);
    await host.act(async () => {
      const { code, stderr } = await runToEnd(["routes", "up"]);
      assert.equal(code, why ? 1 : 0, stderr);
      if (why) {
        assert.match(stderr, why);
        assert.equal(await routing(host), before);
      } else {
        await routes("show", []);
      }
      await routes("down", []);
      assert.equal(await routing(host), before);
    });
  });
}

function assertOneLine({ code, stderr }: Ended, words: RegExp, expected = 1): void {
  assert.equal(code, expected, stderr);
  assert.equal(stderr.trimEnd().split("\n").length, 1, stderr);
  assert.match(stderr, words);
}

const NO_ADMIN = 'exec setpriv --inh-caps=-all --bounding-set=-all,+net_raw "$@"';

Deno.test("routes: without CAP_NET_ADMIN up fails with a message, and show works", async () => {
  using host = await makeHost();
  await host.act(async () => {
    const start = { shell: NO_ADMIN };
    assertOneLine(await runToEnd(["routes", "up"], start), /CAP_NET_ADMIN/);
    const { code, stdout } = await runToEnd(["routes", "show"], start);
    assert.equal(code, 1);
    assert.match(stdout, /^✗ IPv4 rule from 127\.0\.0\.1\/8 iif lo .*ip rule add/m);
  });
});

Deno.test("routes: a service that this host does not reach is refused in one line", async () => {
  using host = await Host.make();
  await host.act(async () => {
    const ended = await runToEnd(["routes", "up", "-4", "192.0.2.9:80"]);
    assertOneLine(ended, /no route to 192\.0\.2\.9:80/);
  });
});

Deno.test("routes: a host without IPv6 gets the IPv4 half, with a message", async () => {
  using host = await Host.make();
  await host.run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
  await host.act(async () => {
    assert.match(await routes("up", []), /\[::1\]:443: this host has no IPv6/);
    await routes("show", []);
    // With -4 alone nothing is asked of IPv6.
    assert.doesNotMatch(await routes("up", ["-4", "127.0.0.1:80"]), /IPv6/);
    assertOneLine(await runToEnd(["routes", "up", "-6", "[::1]:80"]), /no route to \[::1\]:80/);
  });
});

Deno.test("--auto-routes: sets what is missing before it listens, and removes that at its stop", async () => {
  using host = await makeHost();
  await host.run("ip -6 rule add from ::1/128 iif lo table 123");
  const before = await routing(host);
  await host.act(async () => {
    await using service = new TcpService(tellAndEcho, LOCAL4);
    const args = ["--auto-routes", "-4", service.address, "-6", "[::1]:443", "-m", "7"];
    await using program = await Program.start({ args });
    const names = program.events.map(({ event }) => event);
    assert.ok(names.indexOf("routes_set") < names.indexOf("listening"), names.join());
    await assertServed(program, "tcp", LOCAL4);
    assert.notEqual(await routing(host), before);
    await program.stop();
    assert.equal(program.all("routes_set").length, 1);
    assert.equal(program.all("routes_removed").length, 1);
    // The IPv6 route: a rule of somebody else leads to it.
    await host.run("ip -6 route del local default dev lo table 123");
    assert.equal(await routing(host), before);
  });
});

Deno.test("--auto-routes: what was there before stays", async () => {
  using host = await makeHost();
  await host.act(async () => {
    await routes("up", []);
    const before = await routing(host);
    await using program = await Program.start({ args: ["--auto-routes"] });
    assert.match((await program.event("routes_set")).message, /already present/);
    await program.stop();
    assert.equal(await routing(host), before);
    assert.equal(program.all("routes_removed").length, 0);
  });
});

Deno.test("--auto-routes: what cannot be set stops the start, and nothing is left", async () => {
  await using scratch = await Scratch.make();
  const subnets = await scratch.write("subnets", "127.0.0.1\n");
  using host = await makeHost();
  await host.act(async () => {
    const before = await routing(host);
    const args = ["--auto-routes", "-l", "127.0.0.1:18443", "-a", subnets];
    // Another start would not get it either (docs/systemd.md).
    assertOneLine(await runToEnd(args, { shell: NO_ADMIN }), /CAP_NET_ADMIN/, 2);
    await host.run("ip -6 route add 2001:db8:4::/64 dev out table 123");
    assertOneLine(await runToEnd(args), /--table/);
    await host.run("ip -6 route del 2001:db8:4::/64 dev out table 123");
    assert.equal(await routing(host), before);
  });
});

Deno.test("--auto-routes: a worker that comes back leaves the routes alone", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  using host = await makeHost();
  await host.act(async () => {
    await using service = new TcpService(tellAndEcho);
    const args = ["--auto-routes", "-4", service.address];
    await using program = await Program.start({ args, root: copy.root });
    const set = await routing(host);
    using fatal = await Stream.connect(program.listen.port);
    const panic = tlv(0xee, bytes("mmproxy: panic"));
    await fatal.send(v2(nextClient("127.0.0.1"), BALANCER4, { tlvs: [panic] }));
    await program.event("worker_failed");
    await assertServed(program, "tcp", "127.0.0.1");
    assert.equal(await routing(host), set);
    await program.stop();
    assert.equal(program.all("routes_set").length, 1);
    assert.equal(program.all("routes_removed").length, 1);
  });
});

/** As container runtimes have it. */
const READ_ONLY_SYSCTLS = `exec unshare --mount sh -ec 'mount --bind /proc/sys /proc/sys
   mount -o remount,bind,ro /proc/sys; exec "$@"' sh "$@"`;

Deno.test("routes: a kernel parameter that cannot be written is named, with what to do", async () => {
  using host = await makeHost();
  await host.act(async () => {
    const args = ["routes", "up", "-4", `${LOCAL4}:443`, "-m", "7"];
    const ended = await runToEnd(args, { shell: READ_ONLY_SYSCTLS });
    assertOneLine(ended, /tcp_fwmark_accept.*--sysctl net\.ipv4\.tcp_fwmark_accept=1/);
    await host.run("echo 1 > /proc/sys/net/ipv4/tcp_fwmark_accept");
    await host.run("echo 1 > /proc/sys/net/ipv4/fwmark_reflect");
    assert.equal((await runToEnd(args, { shell: READ_ONLY_SYSCTLS })).code, 0);
  });
});

Deno.test("--auto-routes: a reload adds what is missing, and the end removes all of it", async () => {
  await using scratch = await Scratch.make();
  using host = await makeHost();
  const before = await routing(host);
  await host.act(async () => {
    await using one = new TcpService(tellAndEcho, "127.0.0.1");
    await using two = new TcpService(tellAndEcho, LOCAL4);
    const listen = { ip: "127.0.0.1", port: freePort() };
    const toml = (upstream: string) =>
      `[[listener]]\nlisten = "${show(listen)}"\nipv4 = "${upstream}"\nmark = 7\n`;
    const config = await scratch.write("m.toml", toml(one.address));
    await using program = await Program.start({ config, listen, args: ["--auto-routes"] });
    await assertServed(program, "tcp", "127.0.0.1");
    const first = await routing(host);

    // What is refused leaves no route behind.
    const taken = Deno.listen({ hostname: "127.0.0.1", port: freePort() });
    const { port: busy } = taken.addr as Deno.NetAddr;
    await scratch.write("m.toml", toml(two.address).replace(`:${listen.port}"`, `:${busy}"`));
    program.signal("SIGHUP");
    await program.event("reload_failed");
    taken.close();
    assert.equal(await routing(host), first);

    await scratch.write("m.toml", toml(two.address));
    program.signal("SIGHUP");
    await program.event("reloaded");
    await assertServed(program, "tcp", LOCAL4);
    await program.stop();
    assert.equal(await routing(host), before);
  });
});

/** Acts on a host with one service: `start` starts a run before it. In the end nothing is set there. */
async function onOneTable(
  act: (
    start: (...flags: string[]) => Promise<Program>,
    host: Host,
    before: string,
  ) => Promise<void>,
): Promise<void> {
  using host = await makeHost();
  const before = await routing(host);
  await host.act(async () => {
    await using service = new TcpService(tellAndEcho, LOCAL4);
    await act(
      (...flags) => Program.start({ args: [...flags, "-4", service.address] }),
      host,
      before,
    );
  });
  assert.equal(await routing(host), before);
}

Deno.test("--auto-routes: a run that stops leaves the routes to those that use its table", async () => {
  await onOneTable(async (start, host, before) => {
    await using first = await start("--auto-routes");
    await using second = await start("--auto-routes");
    await first.stop();
    assert.equal(first.all("routes_kept").length, 1);
    await assertServed(second, "tcp", LOCAL4);
    await using third = await start();
    await second.stop();
    await assertServed(third, "tcp", LOCAL4);
    await using fourth = await start("--auto-routes");
    await third.stop();
    await assertServed(fourth, "tcp", LOCAL4);
    await using fifth = await start("--auto-routes");
    await fourth.stop();
    await fifth.stop();
    const left = await routing(host);
    assert.notEqual(left, before, "the third had no --auto-routes, and waits for nobody");
    await routes("down", []);
  });
});

Deno.test("--auto-routes: of two on one table, the last leaves nothing", async () => {
  await onOneTable(async (start) => {
    await using first = await start("--auto-routes");
    await using second = await start("--auto-routes");
    await first.stop();
    await assertServed(second, "tcp", LOCAL4);
    await second.stop();
  });
});

Deno.test("routes: a start without them warns, with the command that sets them", async () => {
  using host = await makeHost();
  await host.act(async () => {
    await using service = new TcpService(tellAndEcho, LOCAL4);
    const args = ["-4", service.address, "--table", "321"];
    await using program = await Program.start({ args });
    const { message, level, command } = await program.event("routes_missing") as LogEvent & {
      command: string;
    };
    assert.equal(level, "warn");
    const listen = show(program.listen);
    const expected = `mmproxy routes up -4 ${service.address} -l ${listen} --table 321`;
    assert.deepEqual(command.split(" ").toSorted(), expected.split(" ").toSorted());
    assert.ok(message.includes(command), message);
    await host.run(`${ON_PATH}\n${command}`);
    await assertServed(program, "tcp", LOCAL4);
    await program.stop();
    await using second = await Program.start({ args });
    await second.stop();
    assert.deepEqual(second.all("routes_missing"), []);
  });
});

Deno.test("routes: a reload warns where a new listener lacks them, and again only at a change", async () => {
  using host = await makeHost();
  await host.act(async () => {
    await using scratch = await Scratch.make();
    await using service = new TcpService(tellAndEcho, LOCAL4);
    const [port, next] = [freePort(), freePort()];
    const file = (more = "") =>
      `table = 321\n[[listener]]\nname = "one"\nlisten = "${LOCAL4}:${port}"\n` +
      `ipv4 = "${service.address}"\n${more}`;
    const config = await scratch.write("mmproxy.toml", file());
    await host.run(`${ON_PATH}\nmmproxy routes up --config ${config}`);
    await using program = await Program.start({ config });
    const warnings = () => program.all("routes_missing").map(({ message }) => message);
    assert.deepEqual(warnings(), []);

    await scratch.write(
      "mmproxy.toml",
      file(
        `[[listener]]\nname = "six"\nlisten = "[::1]:${next}"\nipv6 = "[::1]:${service.port}"\n`,
      ),
    );
    await reload(program);
    await program.event("routes_missing");
    assert.match(warnings()[0] ?? "", /IPv6 rule .*"mmproxy routes up --config /);
    await reload(program);
    assert.equal(warnings().length, 1);
    await host.run(`${ON_PATH}\nmmproxy routes up --config ${config}`);
    await scratch.write("mmproxy.toml", file());
    await reload(program);
    assert.equal(warnings().length, 1);
    await program.stop();
  });
});
