import assert from "node:assert/strict";
import { text, v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import {
  type Handler,
  noise,
  Resettable,
  sha256,
  Stream,
  TcpService,
  tellAndEcho,
} from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };

/** How many descriptors of a kind a process holds. */
function descriptorsOf(pid: number, kind: "socket:" | "pipe:"): number {
  const directory = `/proc/${pid}/fd`;
  return [...Deno.readDirSync(directory)].filter(({ name }) => {
    try {
      return Deno.readLinkSync(`${directory}/${name}`).startsWith(kind);
    } catch {
      return false;
    }
  }).length;
}

/** How many sockets a process holds. */
function socketsHeldBy(pid: number): number {
  return descriptorsOf(pid, "socket:");
}

/** What a client does with a connection whose header the program has. */
type Ending = (client: Resettable) => Promise<void>;

const ENDINGS: Record<string, Ending> = {
  "closes": (client) => client[Symbol.asyncDispose](),
  "resets": (client) => Promise.resolve(client.reset()),
  "resets in the middle of much that it sends": async (client) => {
    client.send(noise(4_000_000, 1));
    await client.next();
    client.reset();
  },
  "resets while much comes that it does not read": async (client) => {
    client.send(noise(4_000_000, 2));
    await client.next();
    client.pause();
    await new Promise((resolve) => setTimeout(resolve, 20));
    client.reset();
  },
};

for (const [name, end] of Object.entries(ENDINGS)) {
  Deno.test(`descriptors: a client that ${name} leaves none behind`, async () => {
    await using service = new TcpService(tellAndEcho);
    await using program = await Program.start({ args: ["-4", service.address] });
    const before = socketsHeldBy(program.pid);
    for (let index = 0; index < 30; index++) {
      const client = await Resettable.connect(program.listen.port);
      client.send(v2({ ip: "192.0.2.120", port: 23_000 + index }, BALANCER));
      await client.next();
      await end(client);
    }
    await eventually(() => socketsHeldBy(program.pid) === before, `return to ${before} sockets`);
    const counters = await program.stop();
    assert.equal(counters.get("connected"), 30);
    assert.equal(counters.get("connections_active"), 0);
  });
}

Deno.test("descriptors: refused connections and failed ones leave none behind", async () => {
  await using program = await Program.start({ args: ["-4", "127.0.0.1:9"] });
  const before = socketsHeldBy(program.pid);
  for (let index = 0; index < 30; index++) {
    using refused = await Stream.connect(program.listen.port);
    await refused.send("nonsense");
    await refused.end();
    using failed = await Stream.connect(program.listen.port);
    await failed.send(v2({ ip: "192.0.2.121", port: 23_000 + index }, BALANCER));
    await failed.end();
  }
  await eventually(() => socketsHeldBy(program.pid) === before, `return to ${before} sockets`);
});

/** Buffers small enough for 320 readers that stall, large enough for a splice. */
async function smallBuffers(): Promise<AsyncDisposable> {
  const paths = ["rmem", "wmem"].map((name) => `/proc/sys/net/ipv4/tcp_${name}`);
  const before = await Promise.all(paths.map((path) => Deno.readTextFile(path)));
  await Promise.all(paths.map((path) => Deno.writeTextFile(path, "4096 131072 524288")));
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(paths.map((path, index) => Deno.writeTextFile(path, before[index] ?? "")));
    },
  };
}

// With 8,192 there are more pipes than an unprivileged user may fill (pipe-user-pages-soft).
for (const files of [1024, 8192]) {
  Deno.test(`descriptors: 320 stalled downloads leave some for new connections, nofile ${files}`, async () => {
    await using _buffers = await smallBuffers();
    const much = noise(6 * 1024 * 1024, 7);
    let sending = 0;
    // The first ones send what nobody reads; then one that answers.
    const service: Handler = async (stream, client) => {
      if (sending >= 320) return await tellAndEcho(stream, client);
      sending++;
      await stream.write(much);
    };
    await using upstream = new TcpService(service);
    await using program = await Program.start({
      args: ["-4", upstream.address],
      shell: `ulimit -n ${files}; exec "$@"`,
    });
    const stalled: Stream[] = [];
    try {
      for (let index = 0; index < 320; index++) {
        const client = await Stream.connect(program.listen.port);
        stalled.push(client);
        await client.send(v2({ ip: "192.0.2.123", port: 23_000 + index }, BALANCER));
      }
      await eventually(() => sending === 320, "start of every download", 60_000);
      await pause(2000);
      // The runtime has some pipes of its own.
      const [fewest, most] = files === 1024 ? [60, 160] : [200, files];
      const pipes = descriptorsOf(program.pid, "pipe:");
      assert.ok(pipes > fewest && pipes < most, `${pipes} ends of pipes`);
      for (let index = 0; index < 20; index++) {
        using client = await Stream.connect(program.listen.port);
        const began = performance.now();
        await client.send(v2({ ip: "192.0.2.124", port: 23_000 + index }, BALANCER), "ping");
        assert.match(await client.line(), /^192\.0\.2\.124:/);
        assert.equal(text(await client.exactly(4)), "ping");
        const took = performance.now() - began;
        assert.ok(took < 3000, `${took} ms`);
      }
      assert.deepEqual(program.all("accept_paused"), []);
      // One that stalled loses nothing, whether it was spliced or copied.
      for (const client of [stalled[0], stalled[319]]) {
        assert.equal(sha256(await client!.rest()), sha256(much));
      }
    } finally {
      for (const client of stalled) client[Symbol.dispose]();
    }
    const counters = await program.stop();
    assert.equal(counters.get("connected"), 340);
    assert.equal(counters.get("connections_active"), 0);
  });
}

Deno.test("descriptors: idle UDP flows leave none behind", async () => {
  await using service = await UdpService.start(tell);
  await using program = await Program.start({
    args: ["-p", "udp", "-4", service.address, "-c", "1"],
  });
  await using peer = await UdpSocket.open();
  const before = socketsHeldBy(program.pid);
  for (let index = 0; index < 30; index++) {
    const client = { ip: "192.0.2.122", port: 23_000 + index };
    await peer.send(program.listen, v2(client, BALANCER, { datagram: true }), "x");
    assert.match(text((await peer.receive()).data), /^192\.0\.2\.122:/);
  }
  assert.ok(socketsHeldBy(program.pid) > before);
  await eventually(() => socketsHeldBy(program.pid) === before, `return to ${before} sockets`);
  assert.equal((await program.stop()).get("flows_active"), 0);
});
