/** Upgrades under load: what was promised is that nobody notices. */
import assert from "node:assert/strict";
import { DatagramLoad } from "./support/datagram_load.ts";
import { freePort } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { Successors } from "./support/successors.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const STANDING = 1000;
/** New connections a second. */
const RATE = 500;
const DATAGRAMS = 20_000;
const FLOWS = 200;
const UPGRADES = 3;
/** Connections that are opened at once. */
const AT_ONCE = 50;

/** Opens a connection as a client, and checks that the service sees it. */
async function open(port: number, number: number): Promise<Stream> {
  const client = {
    ip: `192.0.2.${1 + number % 250}`,
    port: 1024 + Math.floor(number / 250) % 60_000,
  };
  const stream = await Stream.connect(port);
  await stream.send(v2(client, BALANCER));
  assert.equal(await stream.line(), `${client.ip}:${client.port}`);
  return stream;
}

/** New connections at a rate, until `stop`: each is seen by the service, or its error is kept. */
class Arrivals {
  readonly errors: string[] = [];
  #done = 0;
  #stopped = false;
  readonly #end: Promise<void>;

  constructor(readonly ports: readonly number[], first: number) {
    this.#end = this.#run(first);
  }

  async stop(): Promise<number> {
    this.#stopped = true;
    await this.#end;
    return this.#done;
  }

  async #run(first: number): Promise<void> {
    const began = performance.now();
    const open = new Set<Promise<void>>();
    for (let begun = 0; !this.#stopped;) {
      const due = (performance.now() - began) * RATE / 1000;
      if (begun >= due || open.size >= AT_ONCE) {
        await pause(1);
        continue;
      }
      const one = this.#one(first + begun++).finally(() => open.delete(one));
      open.add(one);
    }
    await Promise.all(open);
  }

  async #one(number: number): Promise<void> {
    try {
      using stream = await open(this.ports[number % this.ports.length] ?? 0, number);
      await stream.finish();
      assert.equal(await stream.end(), "closed");
      this.#done++;
    } catch (error) {
      this.errors.push(String(error));
    }
  }
}

Deno.test("upgrade: under 1,000 connections, 20,000 datagrams/s and 500 new connections/s nothing is lost or refused", async () => {
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho);
  const [web, other, game, second, datagrams] = Array.from({ length: 5 }, freePort) as [
    number,
    number,
    number,
    number,
    number,
  ];
  const control = `${scratch.path}/control`;
  const config = await scratch.write(
    "m.toml",
    `control = "${control}"
workers = 2
sandbox = "on"
[defaults]
allowed-subnets = ["127.0.0.0/8"]
[[listener]]
name = "web"
listen = ["127.0.0.1:${web}", "0.0.0.0:${other}"]
ipv4 = "${service.address}"
[[listener]]
name = "game"
protocol = "udp"
listen = ["0.0.0.0:${game}", "127.0.0.1:${second}"]
ipv4 = "127.0.0.1:${datagrams}"
`,
  );
  await using program = await Program.start({ config, logLevel: "info" });
  await using _successors = new Successors(program);

  const standing: Stream[] = [];
  for (let at = 0; at < STANDING; at += AT_ONCE) {
    const some = Array.from({ length: AT_ONCE }, (_, index) => open(web, at + index));
    standing.push(...await Promise.all(some));
  }
  // By turns at both ports: as many clients at each. Their own ports are below those of freePort: one at the
  // port of a wildcard listener would be forwarded from another port.
  const clients = Array.from({ length: FLOWS }, (_, index) => 5_000 + index);
  await using load = await DatagramLoad.start({
    to: [game, second].map((port) => ({ ip: "127.0.0.1", port })),
    service: { ip: "127.0.0.1", port: datagrams },
    headers: clients.map((port) => v2({ ip: "203.0.113.9", port }, BALANCER, { datagram: true })),
    ports: clients,
    rate: DATAGRAMS,
  });
  const arrivals = new Arrivals([web, other], STANDING);
  for (let upgrade = 1; upgrade <= UPGRADES; upgrade++) {
    await pause(300);
    const ended = await runToEnd(["upgrade", "--control", control]);
    assert.equal(ended.code, 0, ended.stderr + program.transcript());
    await eventually(() => program.all("upgraded").length === upgrade, `upgrade ${upgrade}`);
  }
  await pause(300);
  const opened = await arrivals.stop();
  const outcome = await load.stop();
  assert.deepEqual(arrivals.errors, [], `of ${opened} connections`);
  assert.ok(opened > 0);
  const { sent, arrived, twice, foreign, overflowed } = outcome;
  assert.deepEqual(
    { lost: sent - arrived - overflowed, twice, foreign },
    { lost: 0, twice: 0, foreign: 0 },
    `${JSON.stringify(outcome)}\n${program.transcript()}`,
  );
  const seen = new Set<string>();
  for (const [index, stream] of standing.entries()) {
    await stream.send(`${index}\n`);
    seen.add(await stream.line());
    stream[Symbol.dispose]();
  }
  assert.equal(seen.size, STANDING);
  assert.equal(await program.processEnded(), 0);
});
