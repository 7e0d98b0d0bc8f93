import assert from "node:assert/strict";
import { bytes, tlv, v2, v2Local } from "./support/headers.ts";
import { NotifySocket } from "./support/notify_socket.ts";
import { Program, runToEnd } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Scratch } from "./support/real_peers.ts";
import { Successors } from "./support/successors.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";

const CLIENT = { ip: "192.0.2.36", port: 40_036 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** A shell command that sets the environment as systemd does, and becomes the program. */
function under(socket: NotifySocket, watchdogUs?: number): string {
  const watchdog = watchdogUs === undefined ? "" : `WATCHDOG_USEC=${watchdogUs} WATCHDOG_PID=$$`;
  return `export NOTIFY_SOCKET=${socket.name} ${watchdog}; exec "$@"`;
}

Deno.test("notify: READY=1 comes when connections are served, STOPPING=1 with the first signal", async () => {
  await using scratch = await Scratch.make();
  using socket = new NotifySocket(`${scratch.path}/notify`);
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address],
    shell: under(socket),
  });
  const ready = await socket.message("READY=1");
  assert.equal(ready.length, 2);
  assert.match(ready[1] ?? "", /^STATUS=Listening on 127\.0\.0\.1:\d+ \(TCP\), forwarding to /);
  using client = await Stream.connect(program.listen.port);
  await client.send(v2Local());
  await client.line();
  assert.equal(socket.count("STOPPING=1"), 0);
  program.signal("SIGTERM");
  const stopping = await socket.message("STOPPING=1");
  assert.deepEqual(stopping.slice(1), [
    // Ten seconds for connections, and as many for what remains.
    "EXTEND_TIMEOUT_USEC=20000000",
    "STATUS=Stopping: 1 connection has 10 s to finish",
  ]);
  await client.finish();
  assert.equal(await program.ended(), 0);
  assert.equal(socket.count("WATCHDOG=1"), 0, "nobody asked for signs of life");
});

Deno.test("notify: an abstract socket is notified as well", async () => {
  using socket = new NotifySocket(`@mmproxy-e2e-${crypto.randomUUID()}`);
  await using program = await Program.start({ shell: under(socket) });
  await socket.message("READY=1");
  await program.stop();
  await socket.message("STOPPING=1");
});

Deno.test("notify: SIGHUP reports the start of a reload, its time, and its end", async () => {
  await using scratch = await Scratch.make();
  const subnets = await scratch.write("subnets", "127.0.0.0/8\n");
  using socket = new NotifySocket(`@mmproxy-e2e-${crypto.randomUUID()}`);
  await using program = await Program.start({ args: ["-a", subnets], shell: under(socket) });
  const ready = await socket.message("READY=1");
  program.signal("SIGHUP");
  const reloading = await socket.message("RELOADING=1");
  assert.match(reloading.at(-1) ?? "", /^MONOTONIC_USEC=\d+$/);
  await eventually(() => socket.count("READY=1") === 2, "its end");
  const messages = socket.messages.filter(([first]) => first !== "FDSTORE=1");
  assert.deepEqual(messages.map(([first]) => first), ["READY=1", "RELOADING=1", "READY=1"]);
  assert.deepEqual(messages[2], ready);
});

Deno.test("notify: a socket that is not there is logged once, and the program serves", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address],
    shell: 'export NOTIFY_SOCKET=/nowhere/notify; exec "$@"',
  });
  const failed = await program.event("notify_failed");
  assert.match(failed.message, /^Cannot notify \/nowhere\/notify: /);
  using client = await Stream.connect(program.listen.port);
  await client.send(v2Local());
  await client.line();
  client[Symbol.dispose]();
  await program.stop();
  assert.equal(program.all("notify_failed").length, 1);
});

Deno.test("notify: the watchdog hears of the program, and not while a worker is down", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  using socket = new NotifySocket(`@mmproxy-e2e-${crypto.randomUUID()}`);
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    root: copy.root,
    args: ["-4", service.address],
    shell: under(socket, 200_000),
  });
  await eventually(() => socket.count("WATCHDOG=1") > 5, "signs of life");

  // Each failure in a row doubles the pause before the next start: the sixth lasts 3.2 s.
  for (let failures = 1; failures <= 6; failures++) {
    using fatal = await Stream.connect(program.listen.port);
    await fatal.send(v2(CLIENT, BALANCER, { tlvs: [tlv(0xee, bytes("mmproxy: panic"))] }));
    await program.event("worker_failed", () => program.all("worker_failed").length === failures);
  }
  const down = socket.count("WATCHDOG=1");
  // Five signs are due in this time.
  await pause(250);
  const quiet = socket.count("WATCHDOG=1");
  assert.equal(program.all("worker_restarted").length, 5, "the worker is down");
  assert.equal(quiet, down);
  await program.event("worker_restarted", () => program.all("worker_restarted").length === 6);
  await eventually(() => socket.count("WATCHDOG=1") > down, "signs of life again");
  await program.stop();
});

Deno.test("notify: an upgrade makes the new program the service, which gives the signs of life", async () => {
  await using scratch = await Scratch.make();
  using socket = new NotifySocket(`${scratch.path}/notify`);
  const control = `${scratch.path}/control`;
  await using program = await Program.start({
    args: ["--control", control],
    shell: under(socket, 400_000),
  });
  await using _successors = new Successors(program);
  await socket.message("READY=1");
  const ended = await runToEnd(["upgrade", "--control", control]);
  assert.equal(ended.code, 0, ended.stderr);
  const { successor } = await program.event("upgraded");
  await socket.message(`MAINPID=${successor}`);
  assert.equal(await program.processEnded(), 0);
  await eventually(() => socket.count("READY=1") === 2, "second READY=1");
  const signs = socket.count("WATCHDOG=1");
  await eventually(() => socket.count("WATCHDOG=1") > signs, "sign of life of the new program");
  assert.equal(socket.count("STOPPING=1"), 0, "the service does not stop");
});
