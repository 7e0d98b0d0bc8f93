/**
 * What a listener's traffic may mean: peers that need no header, upstreams that the header names, and the
 * limit of connections for each client. The peers live on another host, with addresses of their own.
 */
import assert from "node:assert/strict";
import { type Endpoint, freePort, show } from "./support/endpoints.ts";
import { bytes, concat, spp, text, v1, v1Unknown, v2, v2Local } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { SETUP } from "./support/namespace.ts";
import { type LogEvent, Program, runToEnd } from "./support/program.ts";
import { runTool, Scratch } from "./support/real_peers.ts";
import { Stream, TcpService } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";
import { echo, UdpService, UdpSocket } from "./support/udp.ts";

const HERE = "198.51.100.10", HERE6 = "2001:db8:5::10";
/** The other host's addresses: one for each rule. */
const OPTIONAL = "198.51.100.1", SKIP = "198.51.100.2", REQUIRE = "198.51.100.3";
const UNNAMED = "198.51.100.4", OPTIONAL6 = "2001:db8:5::1";
const CLIENT = { ip: "203.0.113.7", port: 41_007 };
const WAIT = 3_000;

const TRUST = `trust = [
  { from = "198.51.100.0/30", header = "require" },
  { from = "${OPTIONAL}", header = "optional" },
  { from = "${OPTIONAL6}", header = "optional" },
  { from = "${SKIP}", header = "skip" },
]`;

/** What reached an upstream: from whom it came, and all that it said. */
interface Heard {
  readonly client: string;
  readonly said: string;
}

/** Two hosts with a wire between, and what a test starts on the first. */
class World implements AsyncDisposable {
  readonly heard: Heard[] = [];
  readonly port = freePort();
  program!: Program;
  readonly #stack = new AsyncDisposableStack();

  private constructor(readonly here: Host, readonly there: Host, readonly scratch: Scratch) {
    this.#stack.use(scratch);
    this.#stack.use(here);
    this.#stack.use(there);
  }

  static async make(): Promise<World> {
    const [here, there] = [await Host.make(), await Host.make()];
    await here.connect("wire", there, "itswire");
    await here.run(
      `ip address add ${HERE}/24 brd + dev wire
       ip address add ${HERE6}/64 dev wire nodad
       ${SETUP.join("\n")}`,
    );
    const four = [OPTIONAL, SKIP, REQUIRE, UNNAMED].map((ip) =>
      `ip address add ${ip}/24 dev itswire`
    );
    await there.run(
      `${four.join("\n")}
       ip address add ${OPTIONAL6}/64 dev itswire nodad`,
    );
    return new World(here, there, await Scratch.make());
  }

  /** Starts the program with one listener of these keys on `[::]`. */
  async start(keys: string, logLevel = "debug"): Promise<void> {
    const file = await this.scratch.write(
      "mmproxy.toml",
      `[[listener]]\nname = "web"\nlisten = "[::]:${this.port}"\n${keys}\n`,
    );
    this.program = await this.here.act(() =>
      Program.start({ config: file, logLevel, listen: { ip: HERE, port: this.port } })
    );
    this.#stack.use(this.program);
  }

  /** An upstream that says what it hears once its client has ended. */
  upstream(ip = "127.0.0.1", port = 0): Promise<TcpService> {
    return this.here.act(() =>
      this.#stack.use(
        new TcpService(
          async (stream, client) => {
            await stream.send("hello\n").catch(() => {});
            this.heard.push({ client, said: text(await stream.rest()) });
          },
          ip,
          port,
        ),
      )
    );
  }

  udpUpstream(ip = "127.0.0.1"): Promise<UdpService> {
    return this.here.act(async () => this.#stack.use(await UdpService.start(echo, ip)));
  }

  /** Connects from an address of the other host. */
  connect(from: string): Promise<Stream> {
    const to = from.includes(":") ? HERE6 : HERE;
    return this.there.act(() => connectFrom(from, to, this.port));
  }

  async socket(from: string, port = 0): Promise<UdpSocket> {
    return this.#stack.use(await this.there.act(() => UdpSocket.open(from, port)));
  }

  /** Sends the parts, each by itself, and ends; what the upstream heard. */
  async say(from: string, ...parts: Uint8Array[]): Promise<Heard & { readonly local: string }> {
    const before = this.heard.length;
    using stream = await this.connect(from);
    for (const part of parts) {
      await stream.send(part);
      if (parts.length > 1) await pause(2);
    }
    await stream.finish();
    const heard = await eventually(() => this.heard[before], "what the upstream heard");
    return { ...heard, local: stream.local };
  }

  /** Asserts that what is said reaches nobody; the refusal's line. */
  async refused(from: string, refusal: string, ...sent: Uint8Array[]): Promise<LogEvent> {
    const before = this.heard.length;
    using stream = await this.connect(from);
    await stream.send(...sent);
    assert.equal(text(await stream.rest().catch(() => new Uint8Array())), "");
    const event = await eventually(
      () => this.program.events.find((event) => event.refusal === refusal),
      refusal,
    );
    assert.equal(this.heard.length, before, "an upstream heard it");
    return event;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** Deno does not choose a connection's own address: the route does. */
async function connectFrom(from: string, to: string, port: number): Promise<Stream> {
  const [prefix, family] = from.includes(":") ? ["128", "-6"] : ["32", "-4"];
  await runTool("ip", [
    family,
    "route",
    "replace",
    `${to}/${prefix}`,
    "dev",
    "itswire",
    "src",
    from,
  ]);
  return await Stream.connect(port, to);
}

const PAYLOADS = [
  "GET / HTTP/1.0\r\n\r\n",
  "\x16\x03\x01 a TLS record",
  "P",
  "POST / HTTP/1.0\r\n\r\n",
  "PROXX TCP4 nothing of a header",
  "PROXY",
  "\r\n",
  "\r\n\r\n\0\r\nQUIX, and no header",
  "\r\nEHLO example.org\r\n",
].map(bytes);

Deno.test("trust: without a header a peer whose header is optional is the client, and no byte is lost", async () => {
  await using world = await World.make();
  const { address } = await world.upstream();
  await world.start(`ipv4 = "${address}"
${TRUST}`);
  for (const payload of PAYLOADS) {
    for (let split = 1; split <= Math.min(payload.length, 13); split++) {
      const parts = [payload.subarray(0, split), payload.subarray(split)];
      const heard = await world.say(OPTIONAL, ...parts.filter((part) => part.length > 0));
      assert.equal(heard.said, text(payload), `split at ${split}`);
      assert.equal(heard.client, heard.local);
    }
  }
  // A peer that ends without a word is relayed with that.
  assert.equal((await world.say(OPTIONAL)).said, "");
  const counters = await world.program.stop();
  assert.equal(counters.get("headers_none"), counters.get("connected"));
  assert.equal(counters.get("headers_v1") + counters.get("headers_v2"), 0);
});

Deno.test("trust: a header of a peer whose header is optional is a header, wherever it is split", async () => {
  await using world = await World.make();
  const { address } = await world.upstream();
  await world.start(`ipv4 = "${address}"\n${TRUST}`, "access");
  const destination = { ip: HERE, port: 443 };
  for (const header of [v1(CLIENT, destination), v2(CLIENT, destination)]) {
    // To the end of both signatures, and behind it.
    for (let split = 1; split <= 14; split++) {
      const rest = concat(header.subarray(split), bytes("hello"));
      const heard = await world.say(OPTIONAL, header.subarray(0, split), rest);
      assert.deepEqual([heard.client, heard.said], [show(CLIENT), "hello"], `split at ${split}`);
    }
  }
  // What has begun a header and is none is refused, not relayed.
  await world.refused(OPTIONAL, "v1_protocol", bytes("PROXY TCP5 192.0.2.1\r\n"));
  await world.refused(OPTIONAL, "v2_version", bytes("\r\n\r\n\0\r\nQUIT\n\x11"));
  // The access log says which were without.
  await world.say(OPTIONAL, bytes("hello"));
  const lines = await eventually(() => {
    const lines = world.program.all("connection") as (LogEvent & { header?: string })[];
    return lines.some(({ header }) => header === "none") && lines;
  }, "its line");
  const bare = lines.filter(({ header }) => header === "none");
  assert.equal(bare.length, 1);
  assert.equal(bare[0]?.client, bare[0]?.peer);
});

Deno.test("trust: a silent peer whose header is optional is relayed after the wait, one with half a header is not", async () => {
  await using world = await World.make();
  const { address } = await world.upstream();
  await world.start(`ipv4 = "${address}"\nheader-timeout = 4\noptional-wait = 3\n${TRUST}`);
  using silent = await world.connect(OPTIONAL);
  using prefix = await world.connect(OPTIONAL);
  await prefix.send("PRO");
  using half = await world.connect(OPTIONAL);
  await half.send("PROXY TCP4 ");
  await pause(WAIT - 1_500);
  assert.equal(world.program.all("connection_opened").length, 0, "too early");
  // The upstream sends first.
  assert.equal(await silent.line(), "hello");
  assert.equal(await prefix.line(), "hello");
  assert.equal(await half.end(), "closed");
  assert.equal((await world.program.event("header_timeout")).refusal, "timeout");
  // What comes late is the client's.
  await silent.send(v2(CLIENT, { ip: HERE, port: 443 }));
  await silent.finish();
  await prefix.send("GRESS");
  await prefix.finish();
  const said = await eventually(() => world.heard.length === 2 && world.heard, "both");
  assert.deepEqual(said.map(({ client }) => client).sort(), [silent.local, prefix.local].sort());
  assert.ok(said.some(({ said }) => said === "PROGRESS"));
});

Deno.test("trust: a peer whose header is skipped is the client, whatever it sends", async () => {
  await using world = await World.make();
  const { address } = await world.upstream();
  await world.start(`ipv4 = "${address}"\n${TRUST}`);
  const header = v2(CLIENT, { ip: HERE, port: 443 });
  for (const sent of [bytes("hello"), header, v1Unknown(), bytes("PROXY")]) {
    const { client, local, said } = await world.say(SKIP, sent);
    assert.equal(client, local);
    assert.deepEqual(said, text(sent));
  }
  // At once: the upstream may send first.
  using stream = await world.connect(SKIP);
  const began = performance.now();
  assert.equal(await stream.line(), "hello");
  assert.ok(performance.now() - began < 1_000);
});

Deno.test("trust: the longest prefix wins, and whom no rule names is refused", async () => {
  await using world = await World.make();
  const { address } = await world.upstream();
  await world.start(`ipv4 = "${address}"\nipv6 = "none"\n${TRUST}`);
  const header = v2(CLIENT, { ip: HERE, port: 443 });
  assert.equal((await world.say(REQUIRE, header, bytes("x"))).client, show(CLIENT));
  await world.refused(REQUIRE, "not_proxy", bytes("hello"));
  await world.refused(UNNAMED, "peer_not_allowed", header);
  await world.refused(UNNAMED, "peer_not_allowed", bytes("hello"));
  // A client of a family without an upstream is refused here, too.
  const { client, peer } = await world.refused(OPTIONAL6, "client_family", bytes("hello"));
  assert.equal(client, peer);
});

Deno.test("trust: datagrams without a header are their peer's, and those with one their client's", async () => {
  await using world = await World.make();
  const upstream = await world.udpUpstream();
  await world.start(`protocol = "udp"\nipv4 = "${show(upstream.local)}"\n${TRUST}`);
  const to = { ip: HERE, port: world.port };
  const header = v2(CLIENT, { ip: HERE, port: 53 }, { datagram: true });
  const optional = await world.socket(OPTIONAL), skip = await world.socket(SKIP);
  const require = await world.socket(REQUIRE), unnamed = await world.socket(UNNAMED);
  await require.send(to, "no header");
  await unnamed.send(to, "no header");
  await unnamed.send(to, header, "a header");
  const sent: [UdpSocket, Uint8Array, string, string][] = [];
  for (let round = 0; round < 20; round++) {
    const said = `round ${round}`;
    sent.push([optional, bytes(said), show(optional.local), said]);
    sent.push([optional, concat(header, bytes(said)), show(CLIENT), said]);
    sent.push([skip, concat(header, bytes(said)), show(skip.local), text(header) + said]);
    sent.push([skip, bytes(said), show(skip.local), said]);
    sent.push([require, concat(header, bytes(said)), show(CLIENT), said]);
  }
  for (const [socket, data] of sent) await socket.send(to, data);
  await eventually(() => upstream.received.length >= sent.length, "every datagram");
  for (const client of new Set(sent.map(([, , client]) => client))) {
    const expected = sent.filter(([, , of]) => of === client).map(([, , , said]) => said);
    const came = upstream.received.filter(({ from }) => show(from) === client);
    assert.deepEqual(came.map(({ data }) => text(data)), expected, `in the name of ${client}`);
  }
  assert.equal(upstream.received.length, sent.length);
  // Each reply went to who last sent for its client.
  const replies = await eventually(() => {
    const all = [optional, skip, require].reduce((sum, { queue }) => sum + queue.length, 0);
    return all === sent.length && [optional.queue.length, skip.queue.length, require.queue.length];
  }, "every reply");
  assert.equal(replies[1], 40);
  const counters = await world.program.stop();
  assert.equal(counters.get("headers_none"), 2);
  // A datagram is looked at before its peer is: what is not a header needs no decision.
  assert.equal(counters.get("refused_not_proxy"), 2);
  assert.equal(counters.get("refused_peer_not_allowed"), 1);
});

Deno.test("trust: replies to a peer without a header carry none, at a port of the Simple Proxy Protocol", async () => {
  await using world = await World.make();
  const upstream = await world.udpUpstream();
  const address = show(upstream.local);
  await world.start(`protocol = "udp"\nudp-header = "spp"\nipv4 = "${address}"\n${TRUST}`);
  const to = { ip: HERE, port: world.port };
  const header = spp(CLIENT, { ip: HERE, port: 53 });
  const peer = await world.socket(OPTIONAL);
  await peer.send(to, "bare, and longer than the header of 38 bytes is");
  assert.equal(
    text((await peer.receive()).data),
    "bare, and longer than the header of 38 bytes is",
  );
  await peer.send(to, header, "wrapped");
  assert.deepEqual((await peer.receive()).data, Buffer.from(concat(header, bytes("wrapped"))));
  await peer.send(to, "bare");
  assert.equal(text((await peer.receive()).data), "bare");
});

Deno.test("trust: an optional header in UDP sessions is a mistake that is said", async () => {
  await using scratch = await Scratch.make();
  const file = await scratch.write(
    "mmproxy.toml",
    `[[listener]]\nlisten = "0.0.0.0:53"\nprotocol = "udp"\nudp-header = "session"\nipv4 = "127.0.0.1:5353"\n${TRUST}\n`,
  );
  const { code, stderr } = await runToEnd(["check", "--config", file]);
  assert.equal(code, 2);
  assert.match(stderr, /line 6: .*leaves it open whose bare datagrams are/);
});

/** A listener whose upstream is the header's destination. */
async function destinations(world: World, ...more: string[]): Promise<readonly [number, number]> {
  const [one, two] = [freePort(), freePort()];
  const allowed = `allowed-destinations = ["127.0.0.1:${one}", "127.0.0.2:${one}"]`;
  await world.upstream("127.0.0.1", one);
  await world.upstream("127.0.0.2", one);
  await world.upstream("127.0.0.1", two);
  await world.start(
    [`upstream = "destination"`, allowed, `allowed-subnets = ["${REQUIRE}"]`, ...more].join("\n"),
  );
  return [one, two];
}

Deno.test("destination: the header says where its client goes, within what is allowed", async () => {
  await using world = await World.make();
  const [one, two] = await destinations(world);
  const said: Endpoint[] = [{ ip: "127.0.0.1", port: one }, { ip: "127.0.0.2", port: one }];
  for (const [index, destination] of said.entries()) {
    const client = { ...CLIENT, port: CLIENT.port + index };
    const heard = await world.say(REQUIRE, v2(client, destination), bytes(show(destination)));
    assert.deepEqual([heard.client, heard.said], [show(client), show(destination)]);
  }
  for (
    const [ip, port] of [
      ["127.0.0.1", two],
      ["127.0.0.3", one],
      ["198.51.100.1", one],
      ["0.0.0.0", one],
      ["255.255.255.255", one],
    ] as const
  ) {
    const sent = concat(v2(CLIENT, { ip, port }), bytes("hello"));
    const event = await world.refused(REQUIRE, "destination_not_allowed", sent);
    assert.match(
      event.message,
      /^Refused \S+: client 203\.0\.113\.7:\d+ is not allowed to reach \S+: the address is not in allowed-destinations/,
    );
  }
  // Those that name no client name no destination.
  for (const header of [v2Local(), v1Unknown()]) {
    await world.refused(REQUIRE, "no_destination", concat(header, bytes("hello")));
  }
  // Its family has to be the client's.
  const client6 = { ip: "2001:db8:9::7", port: 41_007 };
  const mixed = v2(client6, { ip: "::ffff:127.0.0.1", port: one });
  await world.refused(REQUIRE, "destination_not_allowed", mixed);
  const counters = await world.program.stop();
  assert.equal(counters.get("refused_destination_not_allowed"), 6);
  assert.equal(counters.get("refused_no_destination"), 2);
  assert.equal(counters.get("connected"), 2);
});

Deno.test("destination: one at the program's own listener is a loop, even where everything is allowed", async () => {
  await using world = await World.make();
  const other = freePort();
  const keys = ['upstream = "destination"', `allowed-subnets = ["${REQUIRE}"]`];
  await world.start(
    `${keys.join("\n")}\nallowed-destinations = ["0.0.0.0/0:1-65535"]
[[listener]]\nname = "other"\nlisten = "127.0.0.9:${other}"\nipv4 = "127.0.0.1:9"`,
  );
  for (
    const to of [
      { ip: "127.0.0.1", port: world.port },
      { ip: HERE, port: world.port },
      { ip: "127.0.0.9", port: other },
    ]
  ) {
    const before = world.program.all("forwarding_loop").length;
    await world.refused(REQUIRE, "forwarding_loop", v2(CLIENT, to));
    const lines = await eventually(() => {
      const lines = world.program.all("forwarding_loop");
      return lines.length > before && lines;
    }, "its line");
    assert.equal(lines.at(-1)?.upstream, show(to));
    // The log has one line a second for each reason.
    await pause(1_100);
  }
  const counters = await world.program.stop();
  assert.equal(counters.get("refused_forwarding_loop"), 3);
  assert.equal(counters.get("connected"), 0);
});

Deno.test("destination: headers without a client go where ipv4 says", async () => {
  await using world = await World.make();
  const fallback = await world.upstream();
  await destinations(world, `ipv4 = "${fallback.address}"`);
  const { client, said } = await world.say(REQUIRE, v2Local(), bytes("health"));
  assert.match(client, /^127\.0\.0\.1:/);
  assert.equal(said, "health");
});

Deno.test("destination: a client's datagrams to several destinations are flows of their own, from its own port", async () => {
  await using world = await World.make();
  const [one, two] = [await world.udpUpstream(), await world.udpUpstream("127.0.0.2")];
  const refused = await world.udpUpstream("127.0.0.3");
  const allowed = [one, two].map(({ local }) => `"${show(local)}"`);
  await world.start(
    `protocol = "udp"\nupstream = "destination"\nallowed-destinations = [${allowed.join(", ")}]
allowed-subnets = ["${REQUIRE}"]`,
  );
  const to = { ip: HERE, port: world.port };
  const peer = await world.socket(REQUIRE);
  for (let round = 0; round < 20; round++) {
    for (const { local } of [one, two, refused]) {
      const header = v2(CLIENT, local, { datagram: true });
      await peer.send(to, header, `${show(local)} ${round}`);
    }
  }
  await eventually(() => one.received.length + two.received.length === 40, "every datagram");
  for (const upstream of [one, two]) {
    assert.deepEqual(
      upstream.received.map(({ data, from }) => [show(from), text(data)]),
      Array.from({ length: 20 }, (_, round) => [show(CLIENT), `${show(upstream.local)} ${round}`]),
    );
  }
  await eventually(() => peer.queue.length === 40, "every reply");
  assert.deepEqual(refused.received, []);
  const counters = await world.program.stop();
  assert.equal(counters.get("flows_opened"), 2);
  assert.equal(counters.get("port_fallbacks"), 0);
  assert.equal(counters.get("refused_destination_not_allowed"), 20);
});

Deno.test("limits: a client has no more connections than max-connections-per-client, and others have theirs", async () => {
  await using world = await World.make();
  const { address } = await world.upstream();
  await world.start(
    `ipv4 = "${address}"\nallowed-subnets = ["${REQUIRE}"]\nmax-connections-per-client = 2`,
  );
  const destination = { ip: HERE, port: 443 };
  const open = async (ip: string, port: number) => {
    const stream = await world.connect(REQUIRE);
    await stream.send(v2({ ip, port }, destination));
    return stream;
  };
  const first = await open("203.0.113.7", 1_001);
  assert.equal(await first.line(), "hello");
  using second = await open("203.0.113.7", 1_002);
  assert.equal(await second.line(), "hello");
  using third = await open("203.0.113.7", 1_003);
  assert.equal(await third.end(), "closed");
  const { message, client } = await world.program.event("client_refused");
  assert.equal(client, "203.0.113.7:1003");
  assert.match(message, /has reached max-connections-per-client$/);
  using other = await open("203.0.113.8", 1_004);
  assert.equal(await other.line(), "hello");
  first[Symbol.dispose]();
  await eventually(async () => {
    using again = await open("203.0.113.7", 1_005);
    return await again.line().then(() => true, () => false);
  }, "a place that is free again");
});
