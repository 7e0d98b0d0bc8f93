import assert from "node:assert/strict";
import { freePort, show } from "./support/endpoints.ts";
import { bytes, text, v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, within } from "./support/time.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
/** As the program has them: connections at once, and how long one may take. */
const MOST = 32;
const TIMEOUT_MS = 5_000;

/** A program with a metrics port, and ways to ask there. */
class Observed implements AsyncDisposable {
  private constructor(readonly program: Program, readonly metricsPort: number) {}

  static async start(service: TcpService, files?: number): Promise<Observed> {
    const port = freePort();
    const address = show({ ip: "127.0.0.1", port });
    const program = await Program.start({
      args: ["-4", service.address, "--metrics-addr", address],
      ...(files !== undefined && { shell: `ulimit -n ${files}; exec "$@"` }),
    });
    return new Observed(program, port);
  }

  async isWell(ms = 2_000): Promise<void> {
    const asked = fetch(`http://127.0.0.1:${this.metricsPort}/healthz`);
    const answer = await within(asked, "answer to /healthz", ms);
    assert.deepEqual([answer.status, await answer.text()], [200, "ok\n"]);
  }

  /** A connection to the metrics port on which this has been sent. */
  async ask(words = ""): Promise<Stream> {
    const stream = await Stream.connect(this.metricsPort);
    if (words !== "") await stream.send(bytes(words));
    return stream;
  }

  /** How many descriptors the program has. */
  files(): number {
    return [...Deno.readDirSync(`/proc/${this.program.pid}/fd`)].length;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.program[Symbol.asyncDispose]();
  }
}

/** A connection through the program. */
async function connected(program: Program, port: number): Promise<Stream> {
  const client = await Stream.connect(program.listen.port);
  await client.send(v2({ ip: "192.0.2.60", port }, BALANCER));
  assert.equal(await client.line(), `192.0.2.60:${port}`);
  return client;
}

async function assertEchoes(clients: readonly Stream[]): Promise<void> {
  for (const client of clients) {
    await client.send("still");
    assert.equal(text(await client.exactly(5)), "still");
  }
}

function dispose(streams: readonly Stream[]): void {
  for (const stream of streams) stream[Symbol.dispose]();
}

Deno.test("metrics port: answers where connections have taken all their descriptors, and ends none", async () => {
  await using service = new TcpService(tellAndEcho);
  await using observed = await Observed.start(service, 200);
  const { program } = observed;
  const clients: Stream[] = [];
  const waiting: Stream[] = [];
  try {
    // Of 200 files 101 are for the runtime and the metrics port, and 12 for pipes; a connection takes two.
    for (let index = 0; index < 43; index++) {
      clients.push(await connected(program, 20_000 + index));
    }
    for (let index = 0; index < 20; index++) {
      const stream = await Stream.connect(program.listen.port);
      waiting.push(stream);
      await stream.send(v2({ ip: "192.0.2.61", port: 20_000 + index }, BALANCER));
    }
    await program.event("accept_paused");
    for (let round = 0; round < 100; round++) await observed.isWell();
    // And with as many peers as the port has room for.
    const idle = await Promise.all(Array.from({ length: MOST }, () => observed.ask("GET /")));
    for (let round = 0; round < 20; round++) await observed.isWell();
    dispose(idle);
    await assertEchoes(clients);
  } finally {
    dispose([...clients, ...waiting]);
  }
  await program.stop();
  assert.deepEqual(program.all("metrics_paused"), [], "descriptors are set aside for it");
});

Deno.test("metrics port: a want of descriptors there ends nothing", async () => {
  await using service = new TcpService(tellAndEcho);
  // Less than the runtime and the port's own connections may take.
  await using observed = await Observed.start(service, 64);
  const { program } = observed;
  const clients = [await connected(program, 20_000), await connected(program, 20_001)];
  const idle = await Promise.all(Array.from({ length: 60 }, () => observed.ask("GET /")));
  try {
    const told = await program.event("metrics_paused");
    assert.match(told.message, /metrics port, retrying: Too many open files/);
    await observed.isWell(10_000);
    await assertEchoes(clients);
  } finally {
    dispose(idle);
  }
  await eventually(() => observed.isWell().then(() => true, () => false), "health");
  await assertEchoes(clients);
  dispose(clients);
  await program.stop();
});

Deno.test("metrics port: 1,000 idle connections keep nobody waiting", async () => {
  await using service = new TcpService(tellAndEcho);
  await using observed = await Observed.start(service);
  const client = await connected(observed.program, 20_000);
  const before = observed.files();
  const idle: Stream[] = [];
  try {
    for (let index = 0; index < 1_000; index++) {
      idle.push(await observed.ask());
      if (index % 50 === 0) await observed.isWell();
    }
    for (let round = 0; round < 20; round++) await observed.isWell();
    assert.ok(observed.files() <= before + MOST, `${before} descriptors, now ${observed.files()}`);
    await assertEchoes([client]);
    await eventually(() => observed.files() <= before, "end of what asks nothing");
  } finally {
    dispose([...idle, client]);
  }
  await observed.program.stop();
});

Deno.test("metrics port: a peer that reads no answer, or sends no complete request, is closed in time", async () => {
  await using service = new TcpService(tellAndEcho);
  await using observed = await Observed.start(service);
  const before = observed.files();
  const begun = performance.now();
  const silent = await Promise.all(
    Array.from({ length: 8 }, () => observed.ask("GET /metrics HTTP/1.1\r\n\r\n")),
  );
  const slow = await Promise.all(Array.from({ length: 8 }, () => observed.ask("GET /metr")));
  // One that never stops sending gets no more time than they do.
  const [drip] = slow;
  const dripping = setInterval(() => drip?.send("x").catch(() => {}), 200);
  try {
    await eventually(() => observed.files() >= before + 16, "connections");
    await observed.isWell();
    await eventually(() => observed.files() <= before, "end of the slow ones", 3 * TIMEOUT_MS);
    assert.ok(performance.now() - begun > TIMEOUT_MS - 1_000);
    await observed.isWell();
  } finally {
    clearInterval(dripping);
    dispose([...silent, ...slow]);
  }
  await observed.program.stop();
});
