import assert from "node:assert/strict";
import { text, v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { noise, Resettable, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };

/** How many sockets a process holds. */
function socketsHeldBy(pid: number): number {
  const directory = `/proc/${pid}/fd`;
  return [...Deno.readDirSync(directory)].filter(({ name }) => {
    try {
      return Deno.readLinkSync(`${directory}/${name}`).startsWith("socket:");
    } catch {
      return false;
    }
  }).length;
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
