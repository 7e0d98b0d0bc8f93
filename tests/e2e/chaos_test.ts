/**
 * Everything at once: a log that nobody reads, no descriptors left, slow and silent peers, a worker that is
 * killed, 1,000 reloads. Connections and flows that were there before must not notice.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { type Endpoint, show } from "./support/endpoints.ts";
import { bytes, Tlv, tlv, v1, v2 } from "./support/headers.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stalled } from "./support/stalled.ts";
import { noise, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause, within } from "./support/time.ts";
import { type Datagram, tell, UdpService, UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const WORKERS = 4;
const FILES = 1_000;
const RELOADS = 1_000;
/** Between two chunks or datagrams of one client. */
const BEAT_MS = 15;
/** An answer that takes longer does not come. */
const LOST_MS = 3_000;
const CHUNK = noise(8_192, 7);
/** Makes a line of the access log 7 kB long. */
const LONG = [tlv(Tlv.authority, bytes("x".repeat(3_500)))];

/** A connection that sends and reads back, until it is told to end. */
class Connection {
  failure: unknown;
  chunks = 0;
  readonly #sent = createHash("sha256");
  readonly #read = createHash("sha256");
  #over = false;
  #running: Promise<void> | undefined;

  private constructor(readonly client: Endpoint, readonly stream: Stream) {}

  /** Opens it; the service has seen the client. */
  static async open(port: number, client: Endpoint): Promise<Connection> {
    const stream = await Stream.connect(port);
    await stream.send(v2(client, BALANCER));
    assert.equal(await stream.line(), show(client));
    const connection = new Connection(client, stream);
    connection.#running = connection.#run().catch((error) => {
      connection.failure = error;
    });
    return connection;
  }

  async #run(): Promise<void> {
    while (!this.#over) {
      await this.stream.send(CHUNK);
      this.#sent.update(CHUNK);
      this.#read.update(await this.stream.exactly(CHUNK.length));
      this.chunks++;
      await pause(BEAT_MS);
    }
    await this.stream.finish();
    assert.equal(await this.stream.end(), "closed");
  }

  /** Ends it in the ordinary way; all that was sent must have come back. */
  async end(): Promise<void> {
    this.#over = true;
    await this.#running;
    if (this.failure) throw new Error(show(this.client), { cause: this.failure });
    assert.equal(this.#read.digest("hex"), this.#sent.digest("hex"));
  }
}

/** A client behind a UDP peer that asks whom the service sees, again and again. */
class Flow {
  answers = 0;
  /** A worker is killed: the one datagram that it may have in hand is lost, as it is on any network. */
  mayLoseOne = false;
  failure: unknown;
  #over = false;
  readonly #running: Promise<void>;

  constructor(readonly client: Endpoint, readonly peer: UdpSocket, readonly to: Endpoint) {
    this.#running = this.#run().catch((error) => {
      this.failure = error;
    });
  }

  async #run(): Promise<void> {
    const header = v2(this.client, BALANCER, { datagram: true });
    for (let number = 0; !this.#over; number++) {
      const send = () => this.peer.send(this.to, header, `${number}`);
      await send();
      const { data } = await this.#answer(send);
      assert.equal(new TextDecoder().decode(data), `${show(this.client)} ${number}`);
      this.answers++;
      await pause(BEAT_MS);
    }
  }

  async #answer(again: () => Promise<void>): Promise<Datagram> {
    if (!this.mayLoseOne) return await this.peer.receive();
    const answer = await this.peer.receive(LOST_MS).catch(() => undefined);
    if (answer) return answer;
    this.mayLoseOne = false;
    await again();
    return await this.peer.receive();
  }

  async end(): Promise<void> {
    this.#over = true;
    await this.#running;
    if (this.failure) throw new Error(show(this.client), { cause: this.failure });
  }
}

/** Asserts that these continue: each gets something back from now on. */
async function assertGoOn(those: readonly (Connection | Flow)[], while_: string): Promise<void> {
  const progress = () => those.map((one) => one instanceof Flow ? one.answers : one.chunks);
  const before = progress();
  await eventually(() => {
    for (const { client, failure } of those) {
      if (failure) throw new Error(`${show(client)}, ${while_}`, { cause: failure });
    }
    return progress().every((count, index) => count > (before[index] ?? 0));
  }, `progress of all, ${while_}`);
}

Deno.test("chaos: connections and flows are not affected by changes around them", async () => {
  await using scratch = await Scratch.make();
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  const subnets = await scratch.write("subnets", "127.0.0.0/8\n");
  await using service = new TcpService(tellAndEcho);
  await using _udp = await UdpService.start(tell, "127.0.0.1", service.port);
  await using program = await Stalled.start(
    `${scratch.path}/stderr`,
    ["-4", service.address, "-a", subnets, "-p", "both", "--listeners", `${WORKERS}`].concat(
      ["--log-level", "debug", "--log-format", "json", "--drain-timeout", "5"],
    ),
    { root: copy.root, before: `ulimit -n ${FILES}` },
  );
  const { port } = program;
  const peers = await Promise.all(Array.from({ length: 6 }, () => UdpSocket.open()));
  const crowd: Stream[] = [];
  const join = async (words?: Uint8Array) => {
    try {
      const stream = await Stream.connect(port);
      crowd.push(stream);
      if (words) await stream.write(words);
      return stream;
    } catch (error) {
      // It gave way to another at once.
      assert.ok(
        error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.BrokenPipe,
      );
      return undefined;
    }
  };
  const isWell = async () => assert.equal(await program.get("/healthz"), "ok\n");

  try {
    const flows = peers.map((peer, index) =>
      new Flow({ ip: "192.0.2.91", port: 50_000 + index }, peer, { ip: "127.0.0.1", port })
    );
    const opened = await Promise.all(
      Array.from(
        { length: 4 * WORKERS },
        (_, index) => Connection.open(port, { ip: "192.0.2.90", port: 50_000 + index }),
      ),
    );
    await assertGoOn([...opened, ...flows], "before anything");

    // A worker is killed: its own connections are lost, and nobody else's. Flows are opened again.
    for (const flow of flows) flow.mayLoseOne = true;
    await pause(2 * BEAT_MS);
    await join(v2({ ip: "192.0.2.92", port: 1 }, BALANCER, {
      tlvs: [tlv(0xee, bytes("mmproxy: panic"))],
    }));
    await eventually(
      async () => await program.sample("mmproxy_worker_restarts_total") === 1,
      "restart of the worker",
    );
    await eventually(
      async () => await program.sample("mmproxy_workers_up") === WORKERS,
      "service by all workers",
    );
    await isWell();
    // A lost connection has failed by now: its beat is 15 ms.
    await pause(20 * BEAT_MS);
    const lasting = opened.filter(({ failure }) => !failure);
    assert.ok(
      lasting.length > 0 && lasting.length < opened.length,
      `${lasting.length} of ${opened.length} were not the killed worker's`,
    );
    const those = [...lasting, ...flows];
    await assertGoOn(those, "after a worker was killed");
    for (const flow of flows) flow.mayLoseOne = false;

    // The log stalls: many lines, and nobody reads.
    const flood = v1({ ip: "192.0.2.93", port: 0 }, BALANCER);
    const long = v2({ ip: "192.0.2.93", port: 0 }, BALANCER, { tlvs: LONG });
    for (let round = 0; round < 80; round++) {
      await Promise.all(Array.from({ length: 20 }, async (_, index) => {
        using client = await Stream.connect(port);
        await client.send(index === 0 ? flood : long);
        await client.line();
      }));
    }
    await eventually(
      async () => (await program.sample("mmproxy_log_lines_lost_total") ?? 0) > 0,
      "lost lines",
    );
    await isWell();
    await assertGoOn(those, "while the log stalls");

    // Reloads, as fast as they can be sent, and the signal that does nothing.
    for (let count = 0; count < RELOADS; count++) {
      program.signal("SIGHUP");
      if (count % 100 === 0) program.signal("SIGUSR1");
      if (count % 10 === 0) await pause(1);
    }
    await assertGoOn(those, "during reloads");
    assert.equal(await program.sample("mmproxy_last_reload_successful"), 1);

    // Peers that are silent, slow, deaf, and more than there are descriptors for.
    for (let index = 0; index < 80; index++) await join();
    for (let index = 0; index < 20; index++) await join(bytes("PROXY TCP4 192.0.2.9"));
    for (let index = 0; index < 10; index++) {
      const deaf = await join(v2({ ip: "192.0.2.94", port: 30_000 + index }, BALANCER));
      deaf?.write(noise(2 << 20, index)).catch(() => {});
    }
    for (let index = 0; index < 300; index++) {
      await join(v2({ ip: "192.0.2.95", port: 30_000 + index }, BALANCER));
    }
    await eventually(
      async () => (await program.sample("mmproxy_accept_pauses_total") ?? 0) > 0,
      "a want of descriptors",
    );
    const metrics = Number(new URL(program.url).port);
    for (let index = 0; index < 200; index++) crowd.push(await Stream.connect(metrics));
    await isWell();
    await assertGoOn(those, "beside a crowd of bad peers");

    for (const stream of crowd) stream[Symbol.dispose]();
    await eventually(async () => {
      using client = await Stream.connect(port);
      await client.send(v2({ ip: "192.0.2.96", port: 40_096 }, BALANCER));
      return await client.line() === "192.0.2.96:40096";
    }, "service to new clients");

    for (const one of those) await one.end();
    assert.equal(
      await program.sample("mmproxy_worker_restarts_total"),
      1,
      "no other worker failed",
    );
    program.signal("SIGTERM");
    assert.equal((await within(program.ended, "end of the program")).code, 0);
  } finally {
    for (const stream of crowd) stream[Symbol.dispose]();
    for (const peer of peers) await peer[Symbol.asyncDispose]();
  }
});
