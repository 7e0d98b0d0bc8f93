import assert from "node:assert/strict";
import { concat, text, v2, v2Raw } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { Resettable, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const CLIENT = { ip: "192.0.2.150", port: 41_000 };
const STRANGER = "127.0.0.66";
const PEER = "127.0.0.9";

/** Connections of the stranger; each sends this and no more. */
async function open(port: number, count: number, sent?: Uint8Array): Promise<Resettable[]> {
  const opened: Resettable[] = [];
  while (opened.length < count) {
    const some = Array.from({ length: 50 }, () => Resettable.connect(port, STRANGER));
    for (const connection of await Promise.all(some)) {
      if (sent) connection.send(sent);
      opened.push(connection);
    }
  }
  return opened;
}

async function close(connections: Resettable[]): Promise<void> {
  for (const connection of connections) connection.reset();
  await Promise.all(connections.map((connection) => connection[Symbol.asyncDispose]()));
}

/** A connection of the other peer: it must be served, and soon. */
async function assertServed(port: number, client: { ip: string; port: number }): Promise<void> {
  const begin = performance.now();
  await using connection = await Resettable.connect(port, PEER);
  connection.send(v2(client, BALANCER));
  assert.equal(text(await connection.next()), `${client.ip}:${client.port}\n`);
  const took = performance.now() - begin;
  assert.ok(took < 2000, `served after ${took} ms`);
}

/** Kilobytes of memory that a process has resident. */
function resident(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`))?.[1]);
}

for (const listeners of [1, 2]) {
  Deno.test(`pending: 2,000 silent connections of one peer do not keep another waiting (--listeners ${listeners})`, async () => {
    await using service = new TcpService(tellAndEcho);
    await using program = await Program.start({
      args: ["-4", service.address, "--header-timeout", "60", "--listeners", String(listeners)],
      shell: 'ulimit -n 1024; exec "$@"',
      logLevel: "info",
    });
    await using waiting = await Resettable.connect(program.listen.port, PEER);
    const silent = await open(program.listen.port, 2000);
    try {
      for (let index = 0; index < 20; index++) {
        await assertServed(program.listen.port, { ...CLIENT, port: CLIENT.port + index });
      }
      // The only connection of its peer was not evicted, though it is the oldest of all.
      waiting.send(v2({ ...CLIENT, port: 40_999 }, BALANCER));
      assert.equal(text(await waiting.next()), `${CLIENT.ip}:40999\n`);
      const { message } = await program.event("header_evicted");
      assert.match(message, /^Closed 127\.0\.0\.66:\d+ to free a slot: .* \(nothing\)/);
    } finally {
      await close(silent);
    }
    const counters = await program.stop();
    assert.ok(counters.get("refused_evicted") > 2000 - 512, `${counters.get("refused_evicted")}`);
    assert.equal(counters.get("accept_pauses"), 0);
    assert.equal(counters.get("connections_active"), 0);
  });
}

Deno.test("pending: half-sent headers of 60 KB hold a bounded amount of memory", async () => {
  const [count, budget] = [1200, 16 << 10];
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "--header-timeout", "60"],
    logLevel: "info",
  });
  const half = v2Raw(1, 0x11, new Uint8Array(65_535)).subarray(0, 60_000);
  const header = v2(CLIENT, BALANCER);
  await using waiting = await Resettable.connect(program.listen.port, PEER);
  waiting.send(header.subarray(0, 20));
  // What compiling and the first connections leave.
  await assertServed(program.listen.port, { ...CLIENT, port: 41_100 });
  const before = resident(program.pid);
  const slow = await open(program.listen.port, count, half);
  try {
    await program.event("header_evicted");
    await eventually(async () => {
      const at = resident(program.pid);
      await pause(300);
      return Math.abs(resident(program.pid) - at) < 500;
    }, "rest");
    const grown = resident(program.pid) - before;
    assert.ok(grown < budget + (16 << 10), `${grown} kB more`);
    await assertServed(program.listen.port, { ...CLIENT, port: 41_101 });
    waiting.send(header.subarray(20));
    assert.equal(text(await waiting.next()), `${CLIENT.ip}:${CLIENT.port}\n`);
  } finally {
    await close(slow);
  }
  const counters = await program.stop();
  assert.ok(counters.get("refused_evicted") > count * 0.7, `${counters.get("refused_evicted")}`);
});

Deno.test("pending: a header of the largest size, in pieces, is not too much", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address, "--listeners", "3"] });
  const block = v2(CLIENT, BALANCER).subarray(16);
  const rest = new Uint8Array(65_535 - block.length);
  // One TLV of no meaning over all that is left.
  rest.set([0xe0, (rest.length - 3) >> 8, (rest.length - 3) & 0xff]);
  const header = v2Raw(1, 0x11, concat(block, rest));
  await using connection = await Resettable.connect(program.listen.port, PEER);
  for (let at = 0; at < header.length; at += 5000) {
    connection.send(header.subarray(at, at + 5000));
    await pause(5);
  }
  assert.equal(text(await connection.next()), `${CLIENT.ip}:${CLIENT.port}\n`);
});
