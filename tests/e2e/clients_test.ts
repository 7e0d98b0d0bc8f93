/**
 * Whom a header may name: on a host with a subnet of its own, and a balancer elsewhere on it. Each
 * client that cannot be one is refused before the service sees anything.
 */
import assert from "node:assert/strict";
import { type Endpoint, freePort, show, socketsOf } from "./support/endpoints.ts";
import { bytes, spp, text, v1, v2, v2Local } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { SETUP } from "./support/namespace.ts";
import { nginx, startNginx } from "./support/nginx.ts";
import { type LogEvent, Program, runToEnd, type Start } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

/** This host's addresses on the wire, and the balancer's. */
const OWN4 = "198.51.100.10", OWN6 = "2001:db8:5::10";
const BALANCER4 = "198.51.100.1", BALANCER6 = "2001:db8:5::1";
const BROADCAST = "198.51.100.255";
const DESTINATION4 = { ip: "198.51.100.10", port: 443 };
const DESTINATION6 = { ip: OWN6, port: 443 };
/** A client that nothing is wrong with. */
const CLIENT4 = { ip: "203.0.113.7", port: 41_007 },
  CLIENT6 = { ip: "2001:db8:9::7", port: 41_007 };

/** This host and the balancer's, with a wire between. */
class Net implements Disposable {
  private constructor(readonly here: Host, readonly there: Host) {}

  static async make(): Promise<Net> {
    const [here, there] = [await Host.make(), await Host.make()];
    await here.connect("wire", there, "itswire");
    await here.run(
      `ip address add ${OWN4}/24 brd + dev wire
       ip address add ${OWN6}/64 dev wire nodad
       ${SETUP.join("\n")}`,
    );
    await there.run(
      `ip address add ${BALANCER4}/24 dev itswire
       ip address add ${BALANCER6}/64 dev itswire nodad`,
    );
    return new Net(here, there);
  }

  [Symbol.dispose](): void {
    this.here[Symbol.dispose]();
    this.there[Symbol.dispose]();
  }
}

/** The program on its host, between services of both transports and a balancer elsewhere. */
class Set implements AsyncDisposable {
  /** What reached the TCP service, with whom it saw. */
  readonly heard: string[] = [];

  private constructor(
    readonly net: Net,
    readonly program: Program,
    readonly port: number,
    readonly tcp: TcpService[],
    readonly udp: UdpService[],
  ) {}

  static async up(args: string[] = [], start: Start = {}): Promise<Set> {
    const net = await Net.make();
    const listen = { ip: "::", port: freePort() };
    const service = freePort();
    const both = args.includes("-4") || args.includes("-6")
      ? []
      : ["-4", `127.0.0.1:${service}`, "-6", `[::1]:${service}`];
    const heard: string[] = [];
    return await net.here.act(async () => {
      const program = await Program.start({
        ...start,
        listen,
        args: ["-p", "both", "--connect-timeout", "1", ...both, ...args],
      });
      const tcp = ["127.0.0.1", "::1"].map((ip) =>
        new TcpService(
          async (stream, client) => {
            // What came is read also where the connection was reset behind it.
            await stream.send(`${client}\n`).catch(() => {});
            for (let chunk = await stream.read(); chunk !== null; chunk = await stream.read()) {
              heard.push(`${client} ${text(chunk)}`);
            }
          },
          ip,
          service,
        )
      );
      const udp = [
        await UdpService.start(tell, "127.0.0.1", service),
        await UdpService.start(tell, "::1", service),
      ];
      const set = new Set(net, program, service, tcp, udp);
      Object.assign(set, { heard });
      return set;
    });
  }

  /** Connects from the balancer, or from another host, and sends. */
  async connect(sent: Uint8Array, from = this.net.there, to = OWN4): Promise<Stream> {
    const stream = await from.act(() => Stream.connect(this.program.listen.port, to));
    await stream.send(sent, "GET / HTTP/1.0\r\n\r\n");
    return stream;
  }

  /** Asserts that the service sees the client that a header names, over TCP. */
  async assertServed(client: Endpoint, from = this.net.there, to = OWN4): Promise<void> {
    using stream = await this.connect(v2(client, destinationOf(client)), from, to);
    assert.equal(await stream.line(), show(client));
  }

  /** Asserts that a header over TCP is refused without a word; its line in the log. */
  async assertRefused(
    sent: Uint8Array,
    refusal: string,
    { from = this.net.there, to = OWN4, client }: { from?: Host; to?: string; client?: string } =
      {},
  ): Promise<LogEvent> {
    const seen = this.#seen;
    using stream = await this.connect(sent, from, to);
    assert.equal(text(await stream.rest().catch(() => new Uint8Array())), "");
    const event = await this.program.event("client_refused", refusedFor(refusal, client));
    assert.equal(this.#seen, seen, "the service saw somebody");
    return event;
  }

  /** Asserts that a header's datagram is dropped; its line in the log. */
  async assertDropped(header: Uint8Array, refusal: string, to = OWN4): Promise<LogEvent> {
    const ip = to.includes(":") ? BALANCER6 : BALANCER4;
    await using socket = await this.net.there.act(() => UdpSocket.open(ip));
    await socket.send({ ip: to, port: this.program.listen.port }, header, "hello");
    const event = await this.program.event("datagrams_refused", refusedFor(refusal));
    await socket.silence(100);
    assert.deepEqual(this.udp.flatMap(({ received }) => received), []);
    return event;
  }

  /** How many connections the services have seen. */
  get #seen(): number {
    return this.tcp.flatMap(({ clients }) => clients).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program[Symbol.asyncDispose]();
    for (const service of [...this.tcp, ...this.udp]) await service[Symbol.asyncDispose]();
    this.net[Symbol.dispose]();
  }
}

const datagram = { datagram: true };

function destinationOf({ ip }: Endpoint): Endpoint {
  return ip.includes(":") ? DESTINATION6 : DESTINATION4;
}

/** Whether an event is of this refusal, and of this client if one is requested. */
function refusedFor(refusal: string, client?: string): (event: LogEvent) => boolean {
  return (event) => event.refusal === refusal && (client === undefined || event.client === client);
}

Deno.test("clients: a subnet's broadcast address is refused, and nothing reaches the service", async () => {
  await using set = await Set.up();
  const client = { ip: BROADCAST, port: 41_000 };
  const mapped = { ip: `::ffff:${BROADCAST}`, port: 41_000 };
  const destination = { ip: "::ffff:192.0.2.1", port: 443 };
  const reason = "client_subnet_broadcast";
  for (
    const header of [v1(client, DESTINATION4), v2(client, DESTINATION4), v2(mapped, destination)]
  ) {
    const event = await set.assertRefused(header, reason);
    assert.equal(event.client, show(client));
    assert.match(
      event.message,
      /^Refused \S+: client 198\.51\.100\.255 is the broadcast address of a subnet of this host; see docs\/trust\.md/,
    );
  }
  // A peer on this host may not have it for a client, either.
  await set.assertRefused(v2(client, DESTINATION4), reason, { from: set.net.here });
  await set.assertRefused(
    v2({ ip: "127.255.255.255", port: 1 }, DESTINATION4),
    reason,
    { from: set.net.here },
  );
  for (const header of [v1(client, DESTINATION4), v2(client, DESTINATION4, datagram)]) {
    const event = await set.assertDropped(header, reason);
    assert.equal(event.client, show(client));
    assert.match(event.message, /client 198\.51\.100\.255 is the broadcast address/);
  }
  await set.assertServed(CLIENT4);
  const counters = await set.program.stop();
  assert.equal(counters.get(`refused_${reason}`), 7);
  assert.equal(counters.get("connected"), 1);
  assert.equal(counters.get("flows_opened"), 0);
});

Deno.test("clients: a broadcast address in a Simple Proxy Protocol header", async () => {
  await using set = await Set.up(["--udp-header", "spp"]);
  const client = { ip: BROADCAST, port: 41_000 };
  await set.assertDropped(spp(client, DESTINATION4), "client_subnet_broadcast");
});

Deno.test("clients: an address that the host gets later is refused from then on, and back again", async () => {
  await using set = await Set.up();
  const [own, broadcast] = ["203.0.113.10", "203.0.113.255"].map((ip) => ({ ip, port: 42_000 }));
  assert.ok(own && broadcast);
  const own6 = { ip: "2001:db8:77::10", port: 42_000 };
  await set.assertServed(own);
  await set.assertServed(broadcast);
  await set.assertServed(own6);
  await using peer = await set.net.there.act(() => UdpSocket.open(BALANCER4));
  const to = { ip: OWN4, port: set.program.listen.port };
  const say = (client: Endpoint) => peer.send(to, v2(client, DESTINATION4, datagram), "hello");
  const heard = async (client: Endpoint) => {
    await say(client);
    assert.equal(text((await peer.receive()).data), `${show(client)} hello`);
  };
  await heard(broadcast);
  await set.net.here.run(
    `ip address add 203.0.113.10/24 brd + dev wire
     ip address add 2001:db8:77::10/64 dev wire nodad`,
  );
  const refused = async (client: Endpoint, reason: string) => {
    await eventually(async () => {
      using stream = await set.connect(v2(client, destinationOf(client)));
      return text(await stream.read().catch(() => null) ?? new Uint8Array()) === "";
    }, `refusal of ${show(client)}`);
    const event = await set.program.event("client_refused", (event) => event.refusal === reason);
    assert.ok(event.client);
  };
  await refused(own, "client_own_address");
  await refused(broadcast, "client_subnet_broadcast");
  await refused(own6, "client_own_address");
  // The flow that was there ends with it: no datagram leaves as what it has become.
  const seen = set.udp[0]?.received.length;
  await say(broadcast);
  await set.program.event(
    "datagrams_refused",
    ({ refusal }) => refusal === "client_subnet_broadcast",
  );
  await peer.silence(100);
  assert.equal(set.udp[0]?.received.length, seen);
  await set.net.here.run("ip address del 203.0.113.10/24 dev wire");
  await eventually(async () => {
    using stream = await set.connect(v2(own, DESTINATION4));
    return await stream.line().catch(() => "") === show(own);
  }, "service for what is a client again");
  await heard(broadcast);
});

/** Clients that a peer elsewhere cannot have: the client, the reason, and its words. */
const IMPOSSIBLE: [client: string, refusal: string, words: string][] = [
  ["127.0.0.1", "client_loopback", "is a loopback address, and the peer is not on this host"],
  ["::1", "client_loopback", "is a loopback address, and the peer is not on this host"],
  [OWN4, "client_own_address", "is an address of this host, and the peer is not on this host"],
  [OWN6, "client_own_address", "is an address of this host, and the peer is not on this host"],
  ["0.0.0.0", "client_unspecified", "is the unspecified address"],
  ["::", "client_unspecified", "is the unspecified address"],
  [
    "0.1.2.3",
    "client_this_network",
    'is in 0.0.0.0/8 ("this network"), which is not a host address',
  ],
  ["240.0.0.1", "client_reserved", "is in 240.0.0.0/4, which is reserved"],
  ["255.255.255.255", "client_broadcast", "is the broadcast address"],
  ["224.0.0.251", "client_multicast", "is a multicast address"],
  ["ff02::1", "client_multicast", "is a multicast address"],
  [
    "fe80::1",
    "client_link_local",
    "is a link-local address, and a PROXY header cannot carry its interface",
  ],
];

Deno.test("clients: whom a peer elsewhere cannot have, each with its words and counter", async (t) => {
  await using set = await Set.up();
  const counts = new Map<string, number>();
  for (const [ip, refusal, words] of IMPOSSIBLE) {
    counts.set(refusal, (counts.get(refusal) ?? 0) + 2);
    await t.step(`${ip} over TCP and UDP`, async () => {
      const client = { ip, port: 40_556 };
      const destination = destinationOf(client);
      const said = { client: show(client) };
      const { message } = await set.assertRefused(v2(client, destination), refusal, said);
      assert.match(message, /^Refused \S+: client /);
      assert.ok(message.includes(`: client ${ip} ${words}; see docs/trust.md`), message);
      const dropped = await set.assertDropped(v1(client, destination), refusal);
      assert.ok(dropped.message.includes(words), dropped.message);
    });
  }
  await set.assertServed(CLIENT4);
  await set.assertServed(CLIENT6);
  const counters = await set.program.stop();
  for (const [refusal, count] of counts) {
    assert.equal(counters.get(`refused_${refusal}`), count, refusal);
  }
});

Deno.test("clients: a peer on this host may have clients on this host", async () => {
  await using set = await Set.up();
  const { here } = set.net;
  await set.assertServed({ ip: "127.0.0.1", port: 43_000 }, here, "127.0.0.1");
  await set.assertServed({ ip: "127.0.0.1", port: 43_001 }, here, OWN4);
  await set.assertServed({ ip: OWN4, port: 43_002 }, here, OWN4);
  await set.assertServed({ ip: "::1", port: 43_003 }, here, "::1");
  await set.assertServed({ ip: OWN6, port: 43_004 }, here, OWN6);
});

Deno.test("clients: a link-local IPv4 client is one like any other", async () => {
  await using set = await Set.up();
  await set.assertServed({ ip: "169.254.7.7", port: 43_000 });
});

Deno.test({
  name: "clients: nginx that lets only 127.0.0.1 in cannot be entered by a header",
  ignore: !nginx,
  fn: async () => {
    await using scratch = await Scratch.make();
    const web = freePort();
    await using set = await Set.up(["-4", `127.0.0.1:${web}`]);
    const kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    await using _nginx = await set.net.here.act(() =>
      startNginx(
        scratch,
        "local",
        web,
        `http {
  ${kinds.map((kind) => `${kind}_temp_path ${scratch.path}/${kind};`).join(" ")}
  access_log ${scratch.path}/access.log combined;
  server {
    listen 127.0.0.1:${web};
    location / { allow 127.0.0.1; deny all; return 200 "secret\\n"; }
  }
}`,
      )
    );
    // Its own host is let in, and a client is not.
    using inside = await set.net.here.act(() => Stream.connect(web, "127.0.0.1"));
    await inside.send("GET /inside HTTP/1.0\r\n\r\n");
    assert.match(text(await inside.rest()), /^HTTP\/1\.1 200/);
    using outside = await set.connect(v2(CLIENT4, DESTINATION4));
    assert.match(text(await outside.rest()), /^HTTP\/1\.1 (200|403)/);
    for (const ip of [BROADCAST, "127.0.0.1", "127.255.255.255", OWN4]) {
      for (const header of [v1, v2]) {
        using stream = await set.connect(header({ ip, port: 44_000 }, DESTINATION4));
        assert.equal(text(await stream.rest().catch(() => new Uint8Array())), "", ip);
      }
    }
    await pause(100);
    const log = (await Deno.readTextFile(`${scratch.path}/access.log`)).trim().split("\n");
    assert.deepEqual(log.map((line) => line.split(" ")[0]), ["127.0.0.1", CLIENT4.ip]);
  },
});

Deno.test("clients: without netlink the kernel is asked, and no byte leaves as another", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  const shell = 'MMPROXY_NO_NETLINK=1 exec "$@"';
  await using set = await Set.up([], { root: copy.root, shell });
  assert.equal((await set.program.event("addresses_unknown")).error, "EAFNOSUPPORT");
  for (const ip of [OWN4, BROADCAST]) {
    await set.assertRefused(v2({ ip, port: 41_000 }, DESTINATION4), "client_own_address");
    await set.assertDropped(v2({ ip, port: 41_000 }, DESTINATION4, datagram), "client_own_address");
  }
  await set.assertRefused(v2({ ip: OWN6, port: 41_000 }, DESTINATION6), "client_own_address");
  await set.assertServed(CLIENT4);
  await set.assertServed({ ip: OWN4, port: 43_002 }, set.net.here, OWN4);
  // For a peer on this host nothing but the upstream's socket tells a broadcast address.
  const header = v2({ ip: BROADCAST, port: 41_001 }, DESTINATION4);
  using stream = await set.connect(header, set.net.here, OWN4);
  assert.equal(text(await stream.rest().catch(() => new Uint8Array())), "");
  const event = await set.program.event(
    "client_refused",
    ({ refusal }) => refusal === "source_mismatch",
  );
  assert.equal(event.client, `${BROADCAST}:41001`);
  await using socket = await set.net.here.act(() => UdpSocket.open(OWN4));
  const to = { ip: OWN4, port: set.program.listen.port };
  await socket.send(to, v2({ ip: BROADCAST, port: 41_001 }, DESTINATION4, datagram), "hello");
  await socket.silence(300);
  assert.deepEqual(set.udp.flatMap(({ received }) => received), []);
  const counters = await set.program.stop();
  assert.equal(counters.get("refused_source_mismatch"), 2);
  // A connection may have been seen to come and to be reset; no byte came by it.
  assert.deepEqual(
    set.heard.map((line) => line.split(":")[0]),
    [CLIENT4.ip, OWN4],
    `it heard ${set.heard}`,
  );
});

Deno.test("clients: a family without an upstream is refused, logged once and counted", async () => {
  const service = freePort();
  // What listens on the other family's default port was never named.
  await using set = await Set.up(["-4", `127.0.0.1:${service}`]);
  await using unnamed = await set.net.here.act(() => new TcpService(tellAndEcho, "::1", 443));
  await using _named = await set.net.here.act(() =>
    new TcpService(tellAndEcho, "127.0.0.1", service)
  );
  assert.equal(
    (await set.program.event("no_upstream")).message,
    "IPv6 clients are refused: no --ipv6 upstream",
  );
  for (let index = 0; index < 3; index++) {
    using stream = await set.connect(v2({ ...CLIENT6, port: 45_000 + index }, DESTINATION6));
    assert.equal(text(await stream.rest().catch(() => new Uint8Array())), "");
  }
  await using socket = await set.net.there.act(() => UdpSocket.open(BALANCER4));
  const to = { ip: OWN4, port: set.program.listen.port };
  await socket.send(to, v2(CLIENT6, DESTINATION6, datagram), "hello");
  // The proxy's own address is of no client: it will do for the other family's upstream.
  using check = await set.connect(v2Local(), set.net.there, OWN6);
  assert.match(await check.line(), /^127\.0\.0\.1:/);
  await set.assertServed(CLIENT4);
  assert.deepEqual(unnamed.clients, []);
  const counters = await set.program.stop();
  assert.equal(counters.get("refused_client_family"), 4);
  const told = set.program.events.filter(({ refusal }) => refusal === "client_family");
  assert.equal(told.length, 1);
  assert.match(
    told[0]?.message ?? "",
    /^Refused \S+: client 2001:db8:9::7 is IPv6, and no --ipv6 upstream is set; further IPv6 clients are counted but not logged$/,
  );
});

Deno.test("clients: IPv4 clients where only --ipv6 is named", async () => {
  const service = freePort();
  await using set = await Set.up(["-6", `[::1]:${service}`, "-4", "none"]);
  await using _named = await set.net.here.act(() => new TcpService(tellAndEcho, "::1", service));
  const event = await set.assertRefused(v1(CLIENT4, DESTINATION4), "client_family");
  assert.match(event.message, /client 203\.0\.113\.7 is IPv4, and no --ipv4 upstream is set/);
  await set.assertServed(CLIENT6);
});

/** Flags with which the upstream would be the program itself; P is a port. */
const LOOPS: [flags: string, to: string, on: string][] = [
  ["-l 0.0.0.0:P -4 127.0.0.1:P", "127.0.0.1:P", "0.0.0.0:P"],
  ["-l 127.0.0.1:P -4 127.0.0.1:P -6 none", "127.0.0.1:P", "127.0.0.1:P"],
  ["-l 0.0.0.0:P -4 127.9.9.9:P -p udp", "127.9.9.9:P", "0.0.0.0:P"],
  [`-l 0.0.0.0:P -4 ${OWN4}:P -p both`, `${OWN4}:P`, "0.0.0.0:P"],
  [`-l [::]:P -6 [${OWN6}]:P`, `[${OWN6}]:P`, "[::]:P"],
  ["-l [::]:P -6 [::1]:P", "[::1]:P", "[::]:P"],
  ["-l [::]:P -4 127.0.0.1:P", "127.0.0.1:P", "[::]:P"],
  [`-l ${OWN4}:P -4 ${OWN4}:P`, `${OWN4}:P`, `${OWN4}:P`],
  // Defaults that nobody named.
  ["-l [::]:443", "127.0.0.1:443", "[::]:443"],
  ["-l [::1]:443", "[::1]:443", "[::1]:443"],
];

Deno.test("loops: an upstream that is the program itself stops the start, and the doctor names it", async (t) => {
  using net = await Net.make();
  for (const [line, to, on] of LOOPS) {
    await t.step(line, async () => {
      const port = String(freePort());
      const filled = (text: string) => text.replaceAll("P", port);
      const flags = filled(line.replaceAll("-p", "-~")).replaceAll("-~", "-p").split(" ");
      const { code, stderr } = await net.here.act(() => runToEnd(flags));
      assert.equal(code, 2);
      assert.match(stderr, /^[^\n]*\n?(mmproxy: [^\n]*\n)$/);
      assert.ok(
        stderr.endsWith(
          `mmproxy: Cannot forward to ${filled(to)}: mmproxy itself listens there, on ${
            filled(on)
          }; choose another port with --listen-addr, or set the upstream to the server itself with -4 or -6\n`,
        ),
        stderr,
      );
      const doctor = await net.here.act(() => runToEnd(["doctor", "--json", ...flags]));
      assert.equal(doctor.code, 1);
      const { checks } = JSON.parse(doctor.stdout) as { checks: Record<string, string>[] };
      const check = checks.find(({ name }) => name === "upstreams");
      assert.equal(check?.state, "failed");
      assert.ok(check?.detail?.startsWith(`Cannot forward to ${filled(to)}: mmproxy itself`));
    });
  }
  await t.step("the metrics are no upstream", async () => {
    const at = `127.0.0.1:${freePort()}`;
    const flags = ["-l", `0.0.0.0:${freePort()}`, "-4", at, "--metrics-addr", at];
    const { code, stderr } = await net.here.act(() => runToEnd(flags));
    assert.equal(code, 2);
    assert.match(stderr, /mmproxy itself serves its metrics there, on 127\.0\.0\.1:\d+/);
  });
});

Deno.test("loops: an upstream whose address this host gets later does not become a chain of connections", async () => {
  const port = freePort();
  using net = await Net.make();
  const elsewhere = "203.0.113.50";
  await using program = await net.here.act(() =>
    Program.start({
      listen: { ip: "0.0.0.0", port },
      args: ["-p", "both", "-4", `${elsewhere}:${port}`, "--connect-timeout", "1"],
    })
  );
  await net.here.run(`ip address add ${elsewhere}/32 dev wire`);
  // Headers within headers: each would be one more connection of the program to itself.
  const client = (index: number) => ({ ip: "192.0.2.9", port: 46_000 + index });
  const headers = Array.from({ length: 20 }, (_, index) => v2(client(index), DESTINATION4));
  const nested = new Uint8Array(headers.flatMap((header) => [...header]));
  const send = async (header: Uint8Array) => {
    using stream = await net.there.act(() => Stream.connect(port, OWN4));
    await stream.send(header);
    await stream.end().catch(() => {});
  };
  await eventually(async () => {
    await send(nested);
    return program.all("forwarding_loop").length > 0;
  }, "refusal of the loop");
  const accepted = async () => {
    const states = await net.here.act(() => socketsOf(port).filter(({ state }) => state === 1));
    return states.length;
  };
  await send(nested);
  await send(v2Local());
  await using socket = await net.there.act(() => UdpSocket.open(BALANCER4));
  await socket.send({ ip: OWN4, port }, v2(client(99), DESTINATION4, datagram), nested);
  await program.event("datagrams_refused", ({ refusal }) => refusal === "forwarding_loop");
  assert.equal(await accepted(), 0);
  assert.match(
    program.all("forwarding_loop")[0]?.message ?? "",
    new RegExp(`^Refused \\S+: ${elsewhere}:${port} is now an address of this host`),
  );
  const counters = await program.stop();
  assert.equal(counters.get("connected"), 0);
  assert.ok(counters.get("refused_forwarding_loop") >= 3);
});

Deno.test("loops: a client that is the listener or the upstream is refused", async () => {
  await using set = await Set.up();
  const { here } = set.net;
  const reason = "client_is_listener";
  for (const port of [set.program.listen.port, set.port]) {
    await set.assertRefused(v2({ ip: "127.0.0.1", port }, DESTINATION4), reason, { from: here });
  }
  await set.assertRefused(
    v2({ ip: OWN4, port: set.program.listen.port }, DESTINATION4),
    reason,
    { from: here },
  );
  await set.assertServed({ ip: OWN4, port: set.port }, here);
});

Deno.test("clients: a version 1 line of two families is refused in its own words", async () => {
  await using set = await Set.up();
  for (const line of ["TCP4 2001:db8::1 198.51.100.1", "TCP6 192.0.2.1 2001:db8::2"]) {
    using stream = await set.connect(bytes(`PROXY ${line} 1 2\r\n`));
    assert.equal(text(await stream.rest().catch(() => new Uint8Array())), "");
  }
  const event = await set.program.event("header_refused");
  assert.equal(event.refusal, "v1_mixed_families");
  assert.match(
    event.message,
    /^Closed \S+: invalid PROXY header: PROXY v1 line "PROXY TCP4 [^"]*" \(version 1: an address does not match the line's family \(nginx sends this behind another proxy\); see docs\/trust\.md\)$/,
  );
  assert.equal((await set.program.stop()).get("refused_v1_mixed_families"), 2);
});
