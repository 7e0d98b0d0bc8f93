/** Listening sockets in the service manager's store: what waits there while no program runs. */

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { type Listener, Surroundings } from "./support/handover.ts";
import { text, v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { runs, Successors } from "./support/successors.ts";
import { Stream } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const MANAGER = fileURLToPath(new URL("support/service_manager.py", import.meta.url));
/** A start on a machine that has other things to do. */
const START_MS = 40_000;

/** A program under a service manager that has a store. */
async function setUp() {
  const stack = new AsyncDisposableStack();
  const around = stack.use(await Surroundings.make('sandbox = "on"'));
  const { scratch, control } = around;
  const listeners = {
    web: around.tcp("web"),
    spare: around.tcp("spare"),
    game: around.udp("game", "0.0.0.0"),
  };
  const write = (...listeners: readonly Listener[]) => around.write(...listeners);
  const config = await write(...Object.values(listeners));
  const program = stack.use(
    await Program.start({
      config,
      shell: `exec python3 '${MANAGER}' '${scratch.path}/notify' "$@"`,
    }),
  );
  const successors = stack.use(new Successors(program));
  const told = (event: string, count: number) =>
    eventually(
      () => {
        const all = program.all(event);
        return all.length >= count ? all : undefined;
      },
      `${count} of ${event}`,
      START_MS,
    );
  /** How many sockets the service has asked to keep, and to remove, by the port in their names. */
  const count = (event: string, port: number) =>
    program.all(event).filter(({ message }) => message.split("-")[4] === `${port}`).length;
  const { web: { port: web }, spare: { port: spare }, game: { port: game } } = listeners;
  return { stack, program, successors, told, count, web, spare, game, control, write, listeners };
}

/** Connects, and sends all that the service needs for an answer. */
async function client(port: number, number: number): Promise<Stream> {
  const stream = await Stream.connect(port);
  await stream.send(v2({ ip: "203.0.113.60", port: 41_000 + number }, BALANCER));
  return stream;
}

async function assertAnswered(clients: readonly Stream[]): Promise<void> {
  for (const [number, stream] of clients.entries()) {
    assert.match(await stream.line(), new RegExp(`203\\.0\\.113\\.60:${41_000 + number}`));
    stream[Symbol.dispose]();
  }
}

Deno.test("fdstore: connections made while no program runs are accepted by the next one", async () => {
  const { stack, program, told, count, web, spare, game, write, listeners } = await setUp();
  await using _stack = stack;
  await told("told", 1);
  assert.equal(program.all("store_added").length, 6, "two workers, three listeners");
  assert.equal(program.all("told")[0]?.message, "READY=1");

  // A reload that removes a listener: nobody may wait at its sockets.
  await write(listeners.web, listeners.game);
  program.signal("SIGHUP");
  await told("store_removed", 2);
  assert.equal(count("store_removed", spare), 2);
  await eventually(
    () => Stream.connect(spare).then((stream) => stream[Symbol.dispose](), () => true),
    "a refusal",
  );

  program.signal("SIGUSR1");
  await told("service_ended", 1);
  assert.equal(program.all("service_ended")[0]?.value, 0);
  const waiting = await Promise.all(Array.from({ length: 16 }, (_, number) => client(web, number)));
  await using player = await UdpSocket.open();
  const header = v2({ ip: "203.0.113.61", port: 41_100 }, BALANCER, { datagram: true });
  await player.send({ ip: "127.0.0.1", port: game }, header, "hello");
  program.signal("SIGWINCH");
  const [kept] = await told("sockets_kept", 1);
  await assertAnswered(waiting);
  assert.match(text((await player.receive()).data), /^203\.0\.113\.61:41100 hello$/);
  assert.equal(kept?.value, 4);
  assert.match(
    kept?.message ?? "",
    /; closed 2 that no listener uses$/,
    "the stranger's, and no socket",
  );
  const stranger = Number(
    program.all("store_removed").map(({ message }) => /^mmproxy-1-0-63-(\d+)-/.exec(message)?.[1])
      .find((port) => port !== undefined),
  );
  await assert.rejects(Stream.connect(stranger), Deno.errors.ConnectionRefused);
  assert.equal(program.all("store_added").length, 6, "what is in the store is not sent again");

  // A crash, and a listener that is gone afterwards.
  await write(listeners.web);
  program.signal("SIGUSR2");
  await told("service_ended", 2);
  const survivors = await Promise.all([0, 1, 2, 3].map((number) => client(web, number)));
  program.signal("SIGWINCH");
  const [, again] = await told("sockets_kept", 2);
  await assertAnswered(survivors);
  assert.equal(again?.value, 2);
  await eventually(() => count("store_removed", game) === 2, "the end of the game's sockets");
  program.signal("SIGTERM");
  assert.equal(await program.ended(), 0);
});

Deno.test("fdstore: after an upgrade the store has what the new program listens on", async () => {
  const { stack, program, count, told, web, spare, control, write, listeners } = await setUp();
  await using _stack = stack;
  await told("told", 1);
  await write(listeners.web, listeners.game);
  const ended = await runToEnd(["upgrade", "--control", control]);
  assert.equal(ended.code, 0, ended.stderr + program.transcript());
  const { successor = 0 } = await program.event("upgraded");
  await told("service_ended", 1);
  await eventually(() => count("store_removed", spare) === 2, "the end of the spare's sockets");
  const added = program.all("store_added").reduce((sum, { value = 0 }) => sum + value, 0);
  assert.equal(added, 6, "no other socket came");
  const messages = program.all("told").map(({ message }) => message);
  assert.ok(messages.includes(`MAINPID=${successor}`), messages.join());

  Deno.kill(successor, "SIGTERM");
  await eventually(() => !runs(successor), "end of the new program");
  const waiting = await Promise.all([0, 1, 2, 3].map((number) => client(web, number)));
  program.signal("SIGWINCH");
  const [kept] = await told("sockets_kept", 1);
  assert.equal(kept?.value, 4);
  await assertAnswered(waiting);
  program.signal("SIGTERM");
  assert.equal(await program.ended(), 0);
});
