import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const RANGE = "/proc/sys/net/ipv4/ip_local_port_range";
/** Above those that `freePort` gives to listeners. */
const FIRST = 31_000;
const PORTS = 100;

/** With so few ports for connections from one address to one service; nobody listens on any of them. */
async function withFewPorts(act: () => Promise<void>): Promise<void> {
  const before = await Deno.readTextFile(RANGE);
  await Deno.writeTextFile(RANGE, `${FIRST} ${FIRST + PORTS - 1}`);
  try {
    await act();
  } finally {
    await Deno.writeTextFile(RANGE, before);
  }
}

let opened = 0;

/**
 * A connection whose header names this client. The peers need ports too, of the same range: each tenth
 * connects to another address. They must not bind: the kernel gives no port away that anybody has bound.
 */
async function open(program: Program, ip: string, port: number): Promise<Stream> {
  const stream = await Stream.connect(
    program.listen.port,
    `127.0.0.${20 + Math.floor(opened++ / 10)}`,
  );
  await stream.send(v2({ ip, port }, BALANCER));
  return stream;
}

async function assertServed(program: Program, ip: string, port = 0): Promise<void> {
  using stream = await open(program, ip, port);
  assert.match(await stream.line(), new RegExp(`^${ip.replaceAll(".", "\\.")}:\\d+$`));
}

Deno.test("ports: a client without a free port is distinguished from a host without an address family", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    listen: { ip: "0.0.0.0", port: freePort() },
    args: ["-4", service.address],
    logLevel: "info",
  });
  const failures = 60;
  await withFewPorts(async () => {
    const held: Stream[] = [];
    try {
      for (let index = 0; index < PORTS; index++) {
        const stream = await open(program, "192.0.2.180", 0);
        held.push(stream);
        assert.match(await stream.line(), /^192\.0\.2\.180:310\d\d$/);
      }
      for (let index = 0; index < failures; index++) {
        using refused = await open(program, "192.0.2.180", 0);
        await refused.end();
      }
      // Neither other clients nor a port that needs no search are in the way.
      await assertServed(program, "192.0.2.181");
      await assertServed(program, "192.0.2.180", 5555);
      // A port of its own that is taken leads to the search, too.
      using taken = await open(program, "192.0.2.180", FIRST + 7);
      await taken.end();
    } finally {
      for (const stream of held) stream[Symbol.dispose]();
    }
    await eventually(
      () => assertServed(program, "192.0.2.180").then(() => true, () => false),
      "service once ports are free",
      // The port of a connection that the client ended first is in TIME_WAIT for a minute.
      90_000,
    );
  });
  const { message, error } = await program.event("ports_exhausted");
  assert.match(
    message,
    /^Cannot connect to 127\.0\.0\.1:\d+ as 192\.0\.2\.180:0: no free source port/,
  );
  assert.equal(error, "EADDRNOTAVAIL");
  const counters = await program.stop();
  assert.ok(counters.get("ports_exhausted") > failures);
  assert.equal(counters.get("connect_errors"), counters.get("ports_exhausted"));
  assert.deepEqual(program.all("family_unavailable"), []);
  assert.ok(program.all("ports_exhausted").length < 20);
});
