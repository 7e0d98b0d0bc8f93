/**
 * --offload: connections that the kernel relays. It takes a BPF program, so root of the machine. The library
 * for tests hands connections over as soon as it can, so that short ones are, too.
 */
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Host } from "../e2e/support/host.ts";
import type { Connections } from "../../src/control/protocol.ts";
import { type Counters, Program, runToEnd } from "../e2e/support/program.ts";
import { ProgramCopy } from "../e2e/support/program_copy.ts";
import { runTool } from "../e2e/support/real_peers.ts";
import { v2 } from "../e2e/support/headers.ts";
import { Resettable, Stream, TcpService, tellAndEcho } from "../e2e/support/tcp.ts";
import { eventually, pause } from "../e2e/support/time.ts";

const HERE = dirname(fileURLToPath(import.meta.url));
const ROOT = join(HERE, "../..");
const EXCHANGE = join(HERE, "support/exchange.py");
const FORGE = join(HERE, "support/forge.py");
const GOOD_WIRE = { loss: 0, delay: 100, jitter: 0, repeat: 0 };
const MINUTES = 60_000;
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** The program with the library for tests. */
async function handingOver(): Promise<ProgramCopy> {
  const copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  return copy;
}

/** End-to-end tests that have to hold for connections that are handed over, too. */
const HOLD = [
  ["tcp_relay_test.ts", ""],
  // Hosts that vanish, and readers that pause for longer than a host may be silent.
  ["lasting_test.ts", "/a peer.s host|a reader that pauses/"],
] as const;

for (const [file, filter] of HOLD) {
  Deno.test(`offload: the tests of ${file} hold`, async () => {
    await using copy = await handingOver();
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        ...["test", "--allow-all", "--cached-only", `--filter=${filter}`],
        join(ROOT, "tests/e2e", file),
      ],
      env: { MMPROXY_OFFLOAD: "auto", MMPROXY_TEST_PROGRAM: copy.root, NO_COLOR: "1" },
    }).output();
    const said = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
    assert.equal(code, 0, said);
    assert.match(said, /ok \| [1-9]\d* passed/);
  });
}

/** Thousandths, and microseconds: see bad_wire.py. */
interface Wire {
  loss: number;
  delay: number;
  jitter: number;
  repeat: number;
}

/** What a program on the balancer's host has said over a wire, and the counters of ours. */
async function overWire(
  wire: Wire,
  balancer: string[],
  options: string[] = [],
): Promise<{ said: string; counters: Counters }> {
  await using copy = await handingOver();
  using peer = await Host.make();
  using server = await Host.make();
  const words = [wire.loss, wire.delay, wire.jitter, wire.repeat].map(String);
  const script = join(HERE, "support/bad_wire.py");
  await using _wire = await background(["python3", script, peer.path, server.path, ...words]);
  const up = (address: string) =>
    runTool("sh", ["-c", `ip addr add ${address}/30 dev wire && ip link set wire up`]);
  await peer.act(() => up("203.0.113.1"));
  return await server.act(async () => {
    await up("203.0.113.2");
    await using _service = await background(["python3", EXCHANGE, "serve", "5000"]);
    await using program = await Program.start({
      root: copy.root,
      listen: { ip: "203.0.113.2", port: 8443 },
      args: ["-4", "127.0.0.1:5000", "--offload", "auto", "--auto-routes", ...options],
      logLevel: "info",
    });
    const said = await peer.act(() => runTool("python3", balancer, 5 * MINUTES));
    return { said, counters: await program.stop() };
  });
}

/** Connections with a client each, their bytes checked. */
function load(connections: number, bytes: number, atOnce: number): string[] {
  return [EXCHANGE, "load", "203.0.113.2", "8443", ...[connections, bytes, atOnce].map(String)];
}

/** A program that says "up" once it is; ended at the end. */
async function background([program = "", ...args]: string[]): Promise<AsyncDisposable> {
  const child = new Deno.Command(program, { args, stdout: "piped", stdin: "null" }).spawn();
  const reader = child.stdout.getReader();
  let line = "";
  while (!line.endsWith("\n")) {
    const { value } = await reader.read();
    line += new TextDecoder().decode(value ?? assert.fail(`it ended after "${line}"`));
  }
  assert.equal(line, "up\n");
  reader.releaseLock();
  // It may say more, which has to go somewhere.
  const rest = child.stdout.pipeTo(new WritableStream());
  return {
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await rest;
    },
  };
}

Deno.test("offload: 10,000 hand-overs under load, every byte right and every client seen", async () => {
  const wire = { loss: 2, delay: 100, jitter: 300, repeat: 1 };
  const { said, counters } = await overWire(wire, load(10_000, 6_000, 50));
  assert.match(said, /^10000 right, 0 wrong/);
  const offloaded = counters.get("offloaded");
  assert.ok(offloaded >= 9_800, `${offloaded} of 10000 were handed over`);
});

Deno.test("offload: a wire that loses, delays, reorders and repeats", async () => {
  const wire = { loss: 10, delay: 1_000, jitter: 2_000, repeat: 5 };
  const { said, counters } = await overWire(wire, load(20, 1_000_000, 10));
  assert.match(said, /^20 right, 0 wrong/);
  // Where one end's window is never as large as what the other may send, it stays with the relay.
  const offloaded = counters.get("offloaded");
  assert.ok(offloaded >= 15, `${offloaded} of 20 were handed over`);
  assert.equal(counters.get("bytes_up"), 20_000_000);
});

Deno.test("offload: connections that are full in both directions lose nothing, and none stands still", async () => {
  await using program = await Program.start({
    args: ["-4", "127.0.0.1:5001", "--offload", "auto"],
    logLevel: "info",
  });
  const flood = join(HERE, "support/flood.py");
  const ports = [program.listen.port, 5001].map(String);
  const said = await runTool("python3", [flood, ...ports, "4", "15"], 5 * MINUTES);
  assert.match(said, /^60 right, 0 wrong/);
  const offloaded = (await program.stop()).get("offloaded");
  // Each at its first calm moment, though bytes wait to be relayed at all times.
  assert.ok(offloaded >= 30, `${offloaded} of 60 were handed over`);
});

Deno.test("offload: connections that exchange without a pause are handed over, all of them", async () => {
  await using program = await Program.start({
    args: ["-4", "127.0.0.1:5001", "--offload", "auto"],
    logLevel: "info",
  });
  const exchanges = join(HERE, "support/pingpong.py");
  // Packets pass between the moment at which a connection is old enough and the one at which the program sees it.
  for (let round = 0; round < 4; round++) {
    const ports = [program.listen.port, 5001].map(String);
    assert.equal(await runTool("python3", [exchanges, ...ports, "8", "2"], MINUTES), "8 right\n");
  }
  assert.equal((await program.stop()).get("offloaded"), 32);
});

Deno.test("offload: a client that comes back at once with its port is handed over again", async () => {
  await using copy = await handingOver();
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    root: copy.root,
    args: ["-4", service.address, "--offload", "auto"],
    logLevel: "info",
  });
  for (let visit = 0; visit < 5; visit++) {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2({ ip: "192.0.2.44", port: 40_321 }, BALANCER));
    assert.equal(await client.line(), "192.0.2.44:40321");
    for (let round = 0; round < 20; round++) {
      await client.send("ping");
      await client.exactly(4);
    }
    // Until the hand-over is complete.
    await pause(100);
    await client.finish();
    assert.equal(await client.end(), "closed");
    // Until the last acknowledgment has passed, and less than until mmproxy looks at the connection.
    await pause(50);
  }
  assert.equal((await program.stop()).get("offloaded"), 5);
});

Deno.test("offload: an end that resets a handed-over connection ends it, and no other", async () => {
  await using copy = await handingOver();
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    root: copy.root,
    args: ["-4", service.address, "--offload", "auto"],
    logLevel: "access",
  });
  using other = await Stream.connect(program.listen.port);
  await other.send(v2({ ip: "192.0.2.45", port: 40_322 }, BALANCER));
  await other.line();
  await using client = await Resettable.connect(program.listen.port);
  client.send(v2({ ip: "192.0.2.44", port: 40_321 }, BALANCER));
  await client.next();
  for (let round = 0; round < 20; round++) {
    client.send(new TextEncoder().encode("ping"));
    await client.next();
    await other.send("ping");
    await other.exactly(4);
  }
  // Until the hand-over is complete.
  await pause(500);
  client.reset();
  const line = await eventually(
    () => program.all("connection")[0] as Record<string, unknown> | undefined,
    "its line in the access log",
  );
  assert.deepEqual([line.client, line.ended], ["192.0.2.44:40321", "client_reset"]);
  await other.send("ping");
  assert.equal(new TextDecoder().decode(await other.exactly(4)), "ping");
  assert.deepEqual(program.all("worker_failed"), []);
  const counters = await program.stop();
  assert.deepEqual([counters.get("offloaded"), counters.get("accepted")], [2, 2]);
});

Deno.test("offload: forged packets neither end a connection nor change its counts", async () => {
  const { said, counters } = await overWire(GOOD_WIRE, [FORGE, "forge", "203.0.113.2", "8443"]);
  assert.match(said, /^192\.0\.2\.44 40321: 400 exchanges, then the end/);
  assert.deepEqual(
    ["offloaded", "bytes_up", "bytes_down"].map((name) => counters.get(name)),
    [1, 400 * 4, "192.0.2.44 40321\n".length + 400 * 4 + 32],
  );
});

Deno.test("offload: a balancer that has lost its connections gets new ones from the same port", async () => {
  const { said, counters } = await overWire(GOOD_WIRE, [FORGE, "forget", "203.0.113.2", "8443"]);
  assert.equal(said.trim(), "192.0.2.44 40321, 192.0.2.45 40322, 192.0.2.46 40323");
  assert.equal(counters.get("accepted"), 3);
});

Deno.test("offload: a handed-over connection is counted, listed and ended as any other", async () => {
  await using copy = await handingOver();
  await using service = new TcpService(tellAndEcho);
  const control = join(copy.root, "control");
  await using program = await Program.start({
    root: copy.root,
    args: [
      ...["-4", service.address, "--offload", "auto", "--idle-timeout", "4", "--sandbox", "on"],
      ...["--control", control],
    ],
    logLevel: "access",
  });
  assert.equal(program.all("offload").length, 1);
  using client = await Stream.connect(program.listen.port);
  await client.send(v2({ ip: "192.0.2.44", port: 40_321 }, BALANCER));
  assert.equal(await client.line(), "192.0.2.44:40321");
  for (let round = 0; round < 10; round++) {
    await client.send("ping");
    await client.exactly(4);
  }
  await eventually(async () => {
    const words = ["connections", "--control", control, "--json"];
    const { code, stdout, stderr } = await runToEnd(words, { root: copy.root });
    assert.equal(code, 0, stderr);
    const [only] = (JSON.parse(stdout) as Connections).connections;
    // Its bytes are counted once a second.
    return only?.phase === "offloaded" && only.bytesUp === 40 && only.bytesDown === 57;
  }, "connection listed as offloaded, with its bytes");
  // The idle timeout resets it: its sockets are gone.
  assert.equal(await client.end(), "reset");
  const line = await eventually(
    () => program.all("connection")[0] as Record<string, unknown> | undefined,
    "its line in the access log",
  );
  assert.deepEqual([line.ended, line.bytes_up, line.bytes_down], ["idle", 40, 57]);
  assert.equal((await program.stop()).get("offloaded"), 1);
});
