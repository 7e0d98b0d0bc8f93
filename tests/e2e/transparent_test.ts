/**
 * Transparent listeners: what TPROXY hands over keeps the address and port that it was addressed to. Two
 * hosts with a wire between; the rules are those of docs/recipes/transparent.md, as they are printed.
 */
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Endpoint, show } from "./support/endpoints.ts";
import { bytes, text, v2, v2Local } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { type LogEvent, ON_PATH, Program, runToEnd } from "./support/program.ts";
import { installed, realPeerTest, Scratch } from "./support/real_peers.ts";
import { Successors } from "./support/successors.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { echo, tell, UdpService, UdpSocket } from "./support/udp.ts";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const HERE = "198.51.100.10", HERE6 = "2001:db8:51::10";
const PEER = "198.51.100.1", PEER6 = "2001:db8:51::1";
/** Addressed to no host: they are routed to this one. */
const ROUTED = "192.0.2.77", ROUTED6 = "2001:db8:77::1";
const CLIENT = { ip: "203.0.113.7", port: 41_007 };
const CLIENT6 = { ip: "2001:db8:203::7", port: 41_007 };
const PORT = 1080;

/** The commands of the page, as they are printed: nftables and routes, then the program. */
async function recipe(): Promise<readonly [rules: string, program: string]> {
  const page = await Deno.readTextFile(join(ROOT, "docs/recipes/transparent.md"));
  const blocks = [...page.matchAll(/^```sh\n([^]*?)^```/gm)].map(([, block = ""]) => block);
  const [rules = "", program = ""] = blocks;
  assert.ok(rules.includes("nft -f -") && program.includes("--transparent"), "the page's blocks");
  return [rules, program];
}

/** Root already. */
const SHELL = `${ON_PATH}\nsudo() { case $1 in mmproxy) exec "$@" ;; *) "$@" ;; esac; }\n`;

class World implements AsyncDisposable {
  readonly #stack = new AsyncDisposableStack();

  private constructor(readonly here: Host, readonly there: Host, readonly scratch: Scratch) {
    for (const host of [here, there]) this.#stack.use(host);
    this.#stack.use(scratch);
  }

  static async make(): Promise<World> {
    const [here, there] = [await Host.make(), await Host.make()];
    await here.connect("wire", there, "itswire");
    await here.run(
      `ip address add ${HERE}/24 dev wire
       ip address add ${HERE6}/64 dev wire nodad
       ${SHELL}${(await recipe())[0]}`,
    );
    await there.run(
      `ip address add ${PEER}/24 dev itswire
       ip address add ${PEER6}/64 dev itswire nodad
       ip route add 192.0.2.0/24 via ${HERE}
       ip -6 route add 2001:db8:77::/64 via ${HERE6}`,
    );
    return new World(here, there, await Scratch.make());
  }

  /** Starts the program with one listener of these keys; more of the file may follow. */
  async start(keys: string, more = ""): Promise<Program> {
    const file = await this.scratch.write(
      "mmproxy.toml",
      `auto-routes = true\nsandbox = "on"\n${more.startsWith("workers") ? more : ""}
[[listener]]\nname = "any"\nlisten = ["0.0.0.0:${PORT}", "[::]:${PORT}"]\ntransparent = true\n${keys}
${more.startsWith("workers") ? "" : more}`,
    );
    const listen = { ip: HERE, port: PORT };
    const program = await this.here.act(() => Program.start({ config: file, listen }));
    return this.#stack.use(program);
  }

  tcp(ip: string, port: number): Promise<TcpService> {
    return this.here.act(() => this.#stack.use(new TcpService(tellAndEcho, ip, port)));
  }

  udp(ip: string, port: number, answer = tell): Promise<UdpService> {
    return this.here.act(async () => this.#stack.use(await UdpService.start(answer, ip, port)));
  }

  async peer(ip = PEER): Promise<UdpSocket> {
    return this.#stack.use(await this.there.act(() => UdpSocket.open(ip)));
  }

  connect(to: string, port: number): Promise<Stream> {
    return this.there.act(() => Stream.connect(port, to));
  }

  /** Whom the upstream sees behind a connection that is addressed there. */
  async seen(to: string, port: number): Promise<string> {
    using stream = await this.connect(to, port);
    const client = to.includes(":") ? CLIENT6 : CLIENT;
    await stream.send(v2({ ...client, port: 0 }, { ip: to, port }));
    return (await stream.line()).replace(/:\d+$/, "");
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stack.disposeAsync();
  }
}

function test(name: string, run: (world: World) => Promise<void>): void {
  realPeerTest(`transparent: ${name}`, { nft: installed("nft") }, async () => {
    await using world = await World.make();
    await run(world);
  });
}

function datagram(client: Endpoint, to: Endpoint): Uint8Array {
  return v2(client, to, { datagram: true });
}

test("the recipe runs as it is printed: ten thousand ports on one socket, both transports and families", async (world) => {
  const subnets = await world.scratch.write("subnets", `${PEER}\n${PEER6}\n`);
  const [, command] = await recipe();
  const script = SHELL + command.replace("/etc/mmproxy/subnets", subnets);
  const program = await world.here.act(() =>
    new Deno.Command("sh", {
      args: ["-ec", script],
      cwd: ROOT,
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn()
  );
  try {
    const ports = [20_000, 20_001, 23_456, 27_890, 29_999];
    for (const port of ports) {
      for (const ip of ["127.0.0.1", "::1"]) {
        await world.tcp(ip, port);
        await world.udp(ip, port);
      }
    }
    await eventually(
      () => world.seen(HERE, 20_000).then(() => true, () => false),
      "the program that the page starts",
      30_000,
    );
    const [four, six] = [await world.peer(), await world.peer(PEER6)];
    for (const port of ports) {
      for (const to of [HERE, ROUTED]) {
        assert.equal(await world.seen(to, port), CLIENT.ip);
        await four.send({ ip: to, port }, datagram(CLIENT, { ip: to, port }), "x");
        const { data, from } = await four.receive();
        assert.equal(show(from), show({ ip: to, port }), "a reply from where it was addressed to");
        assert.equal(text(data), `${show(CLIENT)} x`);
      }
      for (const to of [HERE6, ROUTED6]) {
        assert.equal(await world.seen(to, port), `[${CLIENT6.ip}]`);
        await six.send({ ip: to, port }, datagram(CLIENT6, { ip: to, port }), "x");
        const { data, from } = await six.receive();
        assert.equal(show(from), show({ ip: to, port }), "a reply from where it was addressed to");
        assert.equal(text(data), `${show(CLIENT6)} x`);
      }
    }
    const listening = await world.here.run("ss -Hltn; ss -Hlun");
    const own = listening.split("\n").filter((line) => /:1080\s/.test(line));
    assert.equal(own.length, 4, "a socket for each transport and family");
  } finally {
    program.kill("SIGTERM");
    await program.status;
  }
});

test("each of ten thousand ports is handed over, and replies leave from it", async (world) => {
  const service = await world.udp("127.0.0.1", 53, echo);
  const program = await world.start(
    `protocol = "udp"\nipv4 = "${service.address}"`,
    "workers = 2\n",
  );
  const peer = await world.peer();
  const wrong: string[] = [];
  const BATCH = 100;
  for (let first = 20_000; first < 30_000; first += BATCH) {
    for (let port = first; port < first + BATCH; port++) {
      const to = { ip: HERE, port };
      await peer.send(to, datagram({ ...CLIENT, port }, to), `${port}`);
    }
    await eventually(() => peer.queue.length === BATCH, `replies from ${first} on`);
    for (const { data, from } of peer.queue.splice(0)) {
      if (show(from) !== show({ ip: HERE, port: Number(text(data)) })) wrong.push(show(from));
    }
  }
  assert.deepEqual(wrong, []);
  const counters = await program.stop();
  assert.equal(counters.get("datagrams_up"), 10_000);
  assert.equal(counters.get("datagrams_down"), 10_000);
  assert.equal(counters.get("datagrams_lost"), 0);
});

test("UDP: a client's datagrams to several ports are flows of their own, each answered from where it was addressed", async (world) => {
  const services: UdpService[] = [];
  for (const port of [20_001, 20_002, 20_003]) {
    services.push(await world.udp("127.0.0.1", port));
  }
  const program = await world.start(`protocol = "udp"\nipv4 = "127.0.0.1"`);
  const peer = await world.peer();
  const rounds = 30;
  for (let round = 0; round < rounds; round++) {
    program.signal("SIGSTOP");
    for (const { local: { port } } of services) {
      const to = { ip: port === 20_003 ? ROUTED : HERE, port };
      await peer.send(to, datagram(CLIENT, to), `${port} ${round}`);
    }
    program.signal("SIGCONT");
    for (let count = 0; count < services.length; count++) {
      const { data, from } = await peer.receive();
      const [client, port, said] = text(data).split(" ");
      assert.equal(client, show(CLIENT), "the client's own address and port");
      const ip = port === "20003" ? ROUTED : HERE;
      assert.equal(show(from), `${ip}:${port}`, "the reply of another port's service");
      assert.equal(said, String(round));
    }
  }
  for (const { received } of services) assert.equal(received.length, rounds);
  // A health check has no client: each port's goes to its own service, from the proxy's address.
  for (const { local: { port } } of services) {
    await peer.send({ ip: HERE, port }, v2Local(), "health");
    const { data, from } = await peer.receive();
    assert.match(text(data), /^127\.0\.0\.1:\d+ health$/);
    assert.equal(show(from), show({ ip: HERE, port }));
  }
  const counters = await program.stop();
  assert.equal(counters.get("flows_opened"), 6);
  assert.equal(counters.get("port_fallbacks"), 0);
});

test("UDP: a session belongs to the address and port that it was announced to", async (world) => {
  await world.udp("127.0.0.1", 20_001);
  await world.udp("127.0.0.1", 20_002);
  const program = await world.start(`protocol = "udp"\nudp-header = "session"\nipv4 = "127.0.0.1"`);
  const peer = await world.peer();
  const [one, two] = [{ ip: HERE, port: 20_001 }, { ip: HERE, port: 20_002 }];
  const other = { ip: "203.0.113.8", port: 41_008 };
  await peer.send(one, datagram(CLIENT, one));
  // Nobody has announced anything to the second port.
  await peer.send(two, "early");
  await program.event("datagrams_refused", ({ refusal }) => refusal === "no_session");
  await peer.send(two, datagram(other, two));
  for (const [to, client] of [[one, CLIENT], [two, other], [one, CLIENT]] as const) {
    await peer.send(to, "bare");
    const { data, from } = await peer.receive();
    assert.equal(text(data), `${show(client)} bare`);
    assert.equal(show(from), show(to));
  }
});

test("what is addressed to the listening port itself is answered from there, and a loop is refused", async (world) => {
  const service = await world.udp("127.0.0.1", 53);
  const program = await world.start(
    `protocol = "udp"\nipv4 = "${service.address}"`,
    `[[listener]]
name = "loop"
listen = "0.0.0.0:20500"
protocol = "both"
transparent = true
ipv4 = "127.0.0.1"
`,
  );
  const peer = await world.peer();
  const to = { ip: HERE, port: PORT };
  for (const said of ["one", "two"]) {
    await peer.send(to, datagram(CLIENT, to), said);
    const { data, from } = await peer.receive();
    assert.equal(text(data), `${show(CLIENT)} ${said}`);
    assert.equal(show(from), show(to));
  }
  // The wire's rule does not match what comes by loopback: it reaches the second listener itself.
  const loop = { ip: "127.0.0.1", port: 20_500 };
  await using local = await world.here.act(() => UdpSocket.open());
  await local.send(loop, datagram(CLIENT, loop), "loop");
  const refused = await program.event("datagrams_refused");
  assert.equal(refused.refusal, "forwarding_loop");
  assert.equal(refused.listener, "loop");
  using stream = await world.here.act(() => Stream.connect(20_500));
  await stream.send(v2(CLIENT, loop));
  assert.equal(await stream.end(), "closed");
  await program.event("forwarding_loop");
});

test("UDP: where another socket has the address, replies are dropped and logged, never sent from elsewhere", async (world) => {
  const service = await world.udp("127.0.0.1", 53);
  const taken = await world.udp("0.0.0.0", 20_600);
  const program = await world.start(`protocol = "udp"\nipv4 = "${service.address}"`);
  const peer = await world.peer();
  const to = { ip: HERE, port: 20_600 };
  await peer.send(to, datagram(CLIENT, to), "x");
  const event = await program.event("reply_failed");
  assert.equal(event.error, "EADDRINUSE");
  assert.match(event.message, /cannot send them from 198\.51\.100\.10:20600, to which it had sent/);
  assert.equal((event as { address?: string }).address, show(to));
  // Another port of the same client is answered, and the first one's replies have not come meanwhile.
  const other = { ip: HERE, port: 20_601 };
  await peer.send(other, datagram(CLIENT, other), "y");
  assert.equal(show((await peer.receive()).from), show(other));
  assert.deepEqual(peer.queue, []);
  assert.deepEqual(taken.received, [], "the kernel hands over what the rule says");
  const counters = await program.stop();
  assert.equal(counters.get("datagrams_lost"), 1);
});

test("UDP: another listener of the program keeps the datagrams that are its own", async (world) => {
  const [service, second] = [await world.udp("127.0.0.1", 53), await world.udp("127.0.0.1", 54)];
  const program = await world.start(
    `protocol = "udp"\nipv4 = "${service.address}"`,
    `[[listener]]
name = "own"
listen = "0.0.0.0:20700"
protocol = "udp"
ipv4 = "${second.address}"
`,
  );
  const peer = await world.peer();
  const to = { ip: HERE, port: 20_700 };
  await peer.send(to, datagram(CLIENT, to), "handed over");
  assert.equal((await program.event("reply_failed")).listener, "any");
  // What comes by loopback is not handed over. The first client's port is taken.
  const other = { ...CLIENT, port: 41_008 };
  await using local = await world.here.act(() => UdpSocket.open());
  for (const said of ["one", "two"]) {
    await local.send(to, datagram(other, to), said);
    assert.equal(text((await local.receive()).data), `${show(other)} ${said}`);
  }
  assert.equal(second.received.length, 2);
});

test("destination: the header says where, and replies leave from where the peer had sent to", async (world) => {
  const [udp, tcp] = [await world.udp("127.0.0.1", 5_300), await world.tcp("127.0.0.1", 5_301)];
  const allowed = [udp, tcp].map(({ address }) => `"${address}"`).join(", ");
  const program = await world.start(
    `protocol = "both"\nupstream = "destination"\nallowed-destinations = [${allowed}]`,
  );
  const peer = await world.peer();
  const to = { ip: ROUTED, port: 21_000 };
  await peer.send(to, datagram(CLIENT, udp.local), "x");
  const { data, from } = await peer.receive();
  assert.equal(text(data), `${show(CLIENT)} x`);
  assert.equal(show(from), show(to));
  using stream = await world.connect(ROUTED, 21_000);
  await stream.send(v2(CLIENT, { ip: "127.0.0.1", port: 5_301 }));
  assert.equal(await stream.line(), show(CLIENT));
  const { message } = await program.event("listening");
  assert.match(message, /\(TCP and UDP, transparent\)/);
});

test("a listener becomes transparent with a reload, and back, and no connection is cut", async (world) => {
  await world.tcp("127.0.0.1", 22_000);
  const other = await world.tcp("127.0.0.1", 22_001);
  const program = await world.start(`ipv4 = "127.0.0.1"`);
  using lasting = await world.connect(ROUTED, 22_000);
  await lasting.send(v2(CLIENT, { ip: ROUTED, port: 22_000 }));
  assert.equal(await lasting.line(), show(CLIENT));
  const file = `${world.scratch.path}/mmproxy.toml`;
  const before = await Deno.readTextFile(file);
  const plain = before.replace("transparent = true", "").replace(
    'ipv4 = "127.0.0.1"',
    `ipv4 = "${other.address}"`,
  );
  for (const [at, now] of [plain, before].entries()) {
    await Deno.writeTextFile(file, now);
    program.signal("SIGHUP");
    await eventually(() => program.all("reloaded").length === at + 1, "a reload");
    // A direct connection reaches the upstream that has a port, and is a loop where the port is its own.
    using direct = await world.connect(HERE, PORT);
    await direct.send(v2({ ...CLIENT, port: 0 }, { ip: HERE, port: PORT }));
    if (at === 0) assert.match(await direct.line(), /^203\.0\.113\.7:/);
    else assert.equal(await direct.end(), "closed");
  }
  await eventually(
    () => world.seen(ROUTED, 22_000).then((client) => client === CLIENT.ip, () => false),
    "what is handed over again",
  );
  await lasting.send(bytes("still there"));
  assert.equal(text(await lasting.exactly(11)), "still there");
});

test("an upgrade hands over the listener, and flows are still answered from where they were addressed", async (world) => {
  await world.tcp("127.0.0.1", 20_001);
  await world.udp("127.0.0.1", 20_001);
  const control = `${world.scratch.path}/control`;
  const program = await world.start(
    `protocol = "both"\nipv4 = "127.0.0.1"`,
    `workers = 2\ncontrol = "${control}"`,
  );
  await using successors = new Successors(program);
  const peer = await world.peer();
  const to = { ip: ROUTED, port: 20_001 };
  const assertAnswered = async (client: Endpoint, said: string) => {
    await peer.send(to, datagram(client, to), said);
    const { data, from } = await peer.receive();
    assert.equal(text(data), `${show(client)} ${said}`);
    assert.equal(show(from), show(to));
  };
  await assertAnswered(CLIENT, "before");
  using old = await world.connect(ROUTED, 20_001);
  await old.send(v2({ ...CLIENT, port: 41_020 }, to));
  assert.equal(await old.line(), `${CLIENT.ip}:41020`);

  const ended = await world.here.act(() => runToEnd(["upgrade", "--control", control]));
  assert.equal(ended.code, 0, ended.stderr + program.transcript());
  const { successor = 0, flows } = await program.event("upgraded") as LogEvent & { flows: number };
  assert.equal(flows, 1);
  await assertAnswered(CLIENT, "after");
  await assertAnswered({ ...CLIENT, port: 41_021 }, "a new flow");
  assert.equal(await world.seen(ROUTED, 20_001), CLIENT.ip);
  assert.equal(await world.seen(HERE, 20_001), CLIENT.ip);
  await old.send("still here\n");
  assert.equal(await old.line(), "still here");
  await old.finish();
  assert.equal(await program.processEnded(), 0);
  await assertAnswered(CLIENT, "alone");
  Deno.kill(successor, "SIGTERM");
  await successors.ended(successor);
});

test("the doctor sees the tproxy rule, and warns without one", async (world) => {
  const service = await world.tcp("127.0.0.1", 20_001);
  const listen = ["--transparent", "-l", `0.0.0.0:${PORT}`];
  const flags = [...listen, "-4", service.address, "--connect-timeout", "1"];
  const seen = async (shell?: string) => {
    const options = shell === undefined ? {} : { shell };
    const ended = await world.here.act(() => runToEnd(["doctor", "--json", ...flags], options));
    const { checks } = JSON.parse(ended.stdout) as { checks: { name: string; state: string }[] };
    return checks.filter(({ name }) => name === "tproxy").map(({ state }) => state);
  };
  assert.deepEqual(await seen(), ["ok"]);
  assert.deepEqual(
    await seen(`exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$@"`),
    ["unknown"],
    "without CAP_NET_ADMIN",
  );
  await world.here.run("nft delete table inet mmproxy");
  assert.deepEqual(await seen(), ["warning"]);
});
