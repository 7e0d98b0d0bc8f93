/** Connections that last: hosts that vanish, readers that pause, and connections that carry nothing. */

import assert from "node:assert/strict";
import { text, v2Local } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { type LogEvent, Program } from "./support/program.ts";
import { type Handler, noise, sha256, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";

const HERE = "192.0.2.1";
const THERE = "192.0.2.2";
const PORT = 8443;
/** With `--keepalive 1` a host that is silent for ten seconds is dead. */
const DEAD_MS = 10_000;
/** More than fits into any buffer on the way. */
const MUCH = noise(24 * 1024 * 1024, 8);

type Line = LogEvent & Record<string, unknown>;

/** Two hosts and a wire between them. The other one is gone once it has lost its address. */
class TwoHosts implements Disposable {
  private constructor(readonly here: Host, readonly there: Host) {}

  static async make(): Promise<TwoHosts> {
    const hosts = new TwoHosts(await Host.make(), await Host.make());
    await hosts.here.connect("wire", hosts.there, "wire");
    await hosts.here.run(`ip address add ${HERE}/24 dev wire`);
    await hosts.there.run(`ip address add ${THERE}/24 dev wire`);
    const show = "cat /sys/class/net/wire/address 2>/dev/null || ip -br link show wire";
    const address = (await hosts.there.run(`ip -br link show wire || ${show}`))
      .match(/(?:[0-9a-f]{2}:){5}[0-9a-f]{2}/)?.[0] ?? "";
    // So that nothing says that the host is gone: not even ARP.
    await hosts.here.run(`ip neighbour replace ${THERE} lladdr ${address} nud permanent dev wire`);
    return hosts;
  }

  async vanish(): Promise<void> {
    await this.there.run("ip address flush dev wire");
  }

  [Symbol.dispose](): void {
    this.here[Symbol.dispose]();
    this.there[Symbol.dispose]();
  }
}

function start(service: { address: string }, ...args: string[]): Promise<Program> {
  return Program.start({
    listen: { ip: "0.0.0.0", port: PORT },
    args: ["-4", service.address, ...args],
    logLevel: "access",
  });
}

/** How the connections so far have ended, in the access log's words. */
function endings(program: Program): unknown[] {
  return program.all("connection").map((line) => (line as Line).ended);
}

/** Sends as much as is requested in a line: nothing, or much. */
const onDemand: Handler = async (stream) => {
  if (await stream.line() === "much") await stream.write(MUCH);
  await stream.rest();
};

/** A connection to the program that has asked the service for something. */
async function ask(what: "nothing" | "much", ip: string): Promise<Stream> {
  const client = await Stream.connect(PORT, ip);
  await client.send(v2Local(), `${what}\n`);
  return client;
}

Deno.test("lasting: a peer's host that vanishes ends its connections, idle, reading or stalled", async () => {
  using hosts = await TwoHosts.make();
  await hosts.here.act(async () => {
    await using service = new TcpService(onDemand);
    await using program = await start(service, "--keepalive", "1");
    const clients: Stream[] = [];
    let reading = true;
    let busy: Promise<void> | undefined;
    try {
      await hosts.there.act(async () => {
        for (let index = 0; index < 5; index++) clients.push(await ask("nothing", HERE));
        for (let index = 0; index < 2; index++) clients.push(await ask("much", HERE));
      });
      const reader = clients.at(-1)!;
      busy = (async () => {
        while (reading && await reader.read(4096, 60_000) !== null) await pause(5);
      })().catch(() => {});
      await pause(2000);
      assert.deepEqual(endings(program), []);
      await hosts.vanish();
      await eventually(() => endings(program).length === 7, "end of all connections", 60_000);
      assert.deepEqual(endings(program), new Array(7).fill("client_timeout"));
      await eventually(() => service.clients.length === 7, "the service's connections");
    } finally {
      reading = false;
      for (const client of clients) client[Symbol.dispose]();
      await busy;
    }
    assert.equal((await program.stop()).get("connections_active"), 0);
  });
});

Deno.test("lasting: an upstream's host that vanishes ends its connections, idle or sent to", async () => {
  using hosts = await TwoHosts.make();
  await hosts.here.act(async () => {
    await using service = await hosts.there.act(() => new TcpService(onDemand, THERE));
    await using program = await start(service, "--keepalive", "1");
    using idle = await ask("nothing", HERE);
    using sending = await ask("nothing", HERE);
    await pause(3000);
    assert.deepEqual(endings(program), []);
    await hosts.vanish();
    await sending.send("nobody reads this");
    assert.equal(await idle.end(60_000), "reset");
    assert.equal(await sending.end(60_000), "reset");
    await eventually(() => endings(program).length === 2, "lines of the access log");
    assert.deepEqual(endings(program), ["service_timeout", "service_timeout"]);
  });
});

Deno.test("lasting: a reader that pauses for longer than a host may be silent gets all", async () => {
  using hosts = await TwoHosts.make();
  await hosts.here.act(async () => {
    await using service = new TcpService(onDemand);
    await using program = await start(service, "--keepalive", "1");
    using client = await hosts.there.act(() => ask("much", HERE));
    using idle = await hosts.there.act(() => ask("nothing", HERE));
    await pause(2 * DEAD_MS);
    assert.deepEqual(endings(program), []);
    assert.equal(sha256(await exactly(client, MUCH.length)), sha256(MUCH));
    await idle.finish();
    assert.equal(await idle.end(), "closed");
  });
});

async function exactly(stream: Stream, count: number): Promise<Uint8Array> {
  const all = await stream.exactly(count);
  await stream.finish();
  return all;
}

Deno.test("lasting: --idle-timeout ends a connection that carries nothing, and no other", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "--idle-timeout", "2"],
    logLevel: "access",
  });
  using idle = await Stream.connect(program.listen.port);
  using busy = await Stream.connect(program.listen.port);
  for (const client of [idle, busy]) {
    await client.send(v2Local());
    await client.line();
  }
  const began = performance.now();
  const ended = idle.end().then((end) => [end, performance.now() - began] as const);
  for (let round = 0; round < 12; round++) {
    await busy.send("x");
    assert.equal(text(await busy.exactly(1)), "x");
    await pause(500);
  }
  const [end, took] = await ended;
  assert.equal(end, "closed");
  assert.ok(took > 1900 && took < 5500, `${took} ms`);
  assert.deepEqual(endings(program), ["idle"]);
  await busy.finish();
  assert.equal(await busy.end(), "closed");
  assert.equal((await program.stop()).get("idle_timeouts"), 1);
});
