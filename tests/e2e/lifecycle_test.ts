import assert from "node:assert/strict";
import { freePort, show } from "./support/endpoints.ts";
import { bytes, text, tlv, v2, v2Local } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";

const CLIENT = { ip: "192.0.2.66", port: 40_666 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** A connection through the program, its header sent and the service's line read. */
async function opened(program: Program): Promise<Stream> {
  const client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  assert.equal(await client.line(), show(CLIENT));
  return client;
}

/** Waits until new connections are turned away. */
async function assertRefuses(program: Program): Promise<void> {
  await eventually(async () => {
    try {
      using late = await Stream.connect(program.listen.port);
      await late.send(v2Local());
      await late.line();
      return false;
    } catch {
      return true;
    }
  }, "refusal of new connections");
}

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  Deno.test(`lifecycle: ${signal} without connections ends at once with 0`, async () => {
    await using program = await Program.start();
    const begin = performance.now();
    program.signal(signal);
    assert.equal(await program.ended(), 0);
    assert.ok(performance.now() - begin < 5000);
    assert.equal(program.all("stopped").length, 1);
  });

  Deno.test(`lifecycle: ${signal} lets an open connection finish and takes no new one`, async () => {
    await using service = new TcpService(tellAndEcho);
    await using program = await Program.start({ args: ["-4", service.address] });
    using client = await opened(program);
    program.signal(signal);
    await program.event("stopping");
    await assertRefuses(program);
    await client.send("still here");
    assert.equal(text(await client.exactly(10)), "still here");
    const begin = performance.now();
    await client.finish();
    assert.equal(await client.end(), "closed");
    assert.equal(await program.ended(), 0);
    assert.ok(performance.now() - begin < 5000);
  });
}

Deno.test("lifecycle: a connection that does not finish is ended after --drain-timeout, and the exit is 0", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "--drain-timeout", "2"],
  });
  using client = await opened(program);
  const begin = performance.now();
  program.signal("SIGTERM");
  const [code] = await Promise.all([program.ended(), client.end()]);
  assert.equal(code, 0);
  const took = performance.now() - begin;
  assert.ok(took >= 2000 && took < 10_000, `${took} ms`);
  const [stopping] = program.all("stopping");
  assert.equal(stopping?.message, "Stopping: 1 connection has 2 s to finish");
});

Deno.test("lifecycle: --drain-timeout 0 waits for no connection", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "--drain-timeout", "0"],
  });
  using client = await opened(program);
  program.signal("SIGTERM");
  assert.equal(await program.ended(5000), 0);
  await client.end();
});

/** Starts it with a delay before it stops, and a metrics port. */
async function startWithDelay(service: TcpService, delay: string): Promise<[Program, string]> {
  const metrics = show({ ip: "127.0.0.1", port: freePort() });
  const program = await Program.start({
    args: ["-4", service.address, "--shutdown-delay", delay, "--metrics-addr", metrics],
  });
  return [program, `http://${metrics}/readyz`];
}

Deno.test("lifecycle: --shutdown-delay serves new connections while /readyz says no, then stops", async () => {
  await using service = new TcpService(tellAndEcho);
  const [started, readyz] = await startWithDelay(service, "3");
  await using program = started;
  using before = await opened(program);
  const begin = performance.now();
  program.signal("SIGTERM");
  const stopping = await program.event("stopping");
  assert.equal(
    stopping.message,
    "Stopping: accepting new connections for 3 s, then 1 connection has 10 s to finish",
  );
  const ready = await fetch(readyz);
  assert.deepEqual([ready.status, await ready.text()], [503, "not ready: stopping\n"]);
  using during = await Stream.connect(program.listen.port);
  await during.send(v2({ ip: "192.0.2.67", port: 40_667 }, BALANCER));
  assert.equal(await during.line(), "192.0.2.67:40667");
  await assertRefuses(program);
  assert.ok(performance.now() - begin >= 3000);
  for (const client of [before, during]) {
    await client.send("still here");
    assert.equal(text(await client.exactly(10)), "still here");
    await client.finish();
    assert.equal(await client.end(), "closed");
  }
  assert.equal(await program.ended(5000), 0);
});

Deno.test("lifecycle: a second signal ends --shutdown-delay at once", async () => {
  await using service = new TcpService(tellAndEcho);
  const [started] = await startWithDelay(service, "60");
  await using program = started;
  program.signal("SIGTERM");
  await program.event("stopping");
  program.signal("SIGTERM");
  assert.equal(await program.ended(5000), 128 + 15);
});

Deno.test("lifecycle: a second signal ends the program at once", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address] });
  using client = await opened(program);
  program.signal("SIGTERM");
  await program.event("stopping");
  const begin = performance.now();
  program.signal("SIGTERM");
  assert.equal(await program.ended(8000), 128 + 15);
  assert.ok(performance.now() - begin < 5000);
  await client.end();
});

Deno.test("lifecycle: want of file descriptors pauses accepting and ends nothing", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address],
    shell: 'ulimit -n 64; exec "$@"',
  });
  const clients: Stream[] = [];
  try {
    for (let index = 0; index < 60; index++) {
      const client = await Stream.connect(program.listen.port);
      clients.push(client);
      await client.send(v2({ ip: CLIENT.ip, port: 30_000 + index }, BALANCER));
    }
    await program.event("accept_paused");
    assert.equal(await clients[0]?.line(), `${CLIENT.ip}:30000`);
  } finally {
    for (const client of clients) client[Symbol.dispose]();
  }
  using later = await eventually(async () => {
    try {
      return await opened(program);
    } catch {
      return false;
    }
  }, "service after the descriptors are back");
  await later.send("works");
  assert.equal(text(await later.exactly(5)), "works");
  later[Symbol.dispose]();
  assert.ok((await program.stop()).get("accept_pauses") > 0);
});

Deno.test("lifecycle: a program can start again on its port while old connections linger", async () => {
  await using service = new TcpService(tellAndEcho);
  await using first = await Program.start({ args: ["-4", service.address] });
  using client = await opened(first);
  first.signal("SIGTERM");
  await first.event("stopping");
  await using second = await Program.start({
    listen: first.listen,
    args: ["-4", service.address],
  });
  using next = await Stream.connect(second.listen.port);
  await next.send(v2Local());
  assert.match(await next.line(), /^127\.0\.0\.1:/);
  await client.finish();
  assert.equal(await client.end(), "closed");
  assert.equal(await first.ended(), 0);
});

Deno.test("lifecycle: four workers say so and each takes connections", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address, "--workers", "4"] });
  for (let index = 0; index < 60; index++) {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2({ ip: "192.0.2.67", port: 22_000 + index }, BALANCER));
    await client.line();
  }
  const workers = new Set(program.all("connection_opened").map((event) => event.worker));
  assert.deepEqual([...workers].sort(), [0, 1, 2, 3]);
});

Deno.test("lifecycle: a worker that fails comes back, and the others keep serving", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    root: copy.root,
    args: ["-4", service.address, "--listeners", "4"],
  });
  // Enough that every listener has some, whatever the kernel's hash.
  const clients = await Promise.all(
    Array.from({ length: 32 }, async (_, index) => {
      const client = await Stream.connect(program.listen.port);
      await client.send(v2({ ip: CLIENT.ip, port: 31_000 + index }, BALANCER));
      assert.equal(await client.line(), `${CLIENT.ip}:${31_000 + index}`);
      return client;
    }),
  );
  using fatal = await Stream.connect(program.listen.port);
  await fatal.send(v2(CLIENT, BALANCER, { tlvs: [tlv(0xee, bytes("mmproxy: panic"))] }));
  const failed = await program.event("worker_failed");
  assert.match(failed.message, /panicked: a header asked for it/);
  await program.event("worker_restarted");

  let alive = 0;
  for (const client of clients) {
    try {
      await client.send("still");
      alive += text(await client.exactly(5)) === "still" ? 1 : 0;
    } catch {
      // It was the failed worker's.
    }
    client[Symbol.dispose]();
  }
  assert.ok(alive > 0 && alive < clients.length, `${alive} of ${clients.length} live on`);
  // The listening socket outlived its worker: nobody is turned away, whichever listener it meets.
  for (let index = 0; index < 32; index++) {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2({ ip: CLIENT.ip, port: 32_000 + index }, BALANCER));
    assert.equal(await client.line(), `${CLIENT.ip}:${32_000 + index}`);
  }
  await program.stop();
});
