import assert from "node:assert/strict";
import { join } from "node:path";
import type { Connections, Status } from "../../src/control/protocol.ts";
import { freePort } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { atTerminal } from "./support/terminal.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };

/** A folder of a test's own. */
class Folder implements AsyncDisposable {
  private constructor(readonly path: string) {}

  static async make(): Promise<Folder> {
    return new Folder(await Deno.makeTempDir({ prefix: "mmproxy-control-" }));
  }

  file(name: string): string {
    return join(this.path, name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

/** What a command prints; it ends with this code. */
async function run(args: string[], code = 0): Promise<string> {
  const ended = await runToEnd(args);
  assert.equal(ended.code, code, ended.stderr);
  return (ended.stdout + ended.stderr).trimEnd();
}

/** A program with the listeners `web` (TCP) and `game` (UDP), a client of each, and its configuration. */
async function setUp(folder: Folder) {
  const stack = new AsyncDisposableStack();
  const service = stack.use(new TcpService(tellAndEcho));
  const datagrams = stack.use(await UdpService.start(tell));
  const [web, game] = [freePort(), freePort()];
  const control = folder.file("control");
  const config = folder.file("m.toml");
  await Deno.writeTextFile(
    config,
    `control = "${control}"
workers = 2
[defaults]
allowed-subnets = "${folder.file("subnets")}"
[[listener]]
name = "web"
listen = "127.0.0.1:${web}"
ipv4 = "${service.address}"
[[listener]]
name = "game"
protocol = "udp"
listen = "127.0.0.1:${game}"
ipv4 = "${datagrams.address}"
`,
  );
  await Deno.writeTextFile(folder.file("subnets"), "127.0.0.0/8\n");
  const program = stack.use(await Program.start({ config }));
  return { stack, program, control, config, web, game };
}

async function client(port: number, number: number): Promise<Stream> {
  const stream = await Stream.connect(port);
  await stream.send(v2({ ip: `192.0.2.${number}`, port: 20_000 + number }, BALANCER));
  assert.equal(await stream.line(), `192.0.2.${number}:${20_000 + number}`);
  return stream;
}

async function player(port: number, number: number): Promise<UdpSocket> {
  const socket = await UdpSocket.open();
  const header = v2({ ip: `203.0.113.${number}`, port: 4000 }, BALANCER, { datagram: true });
  await socket.send({ ip: "127.0.0.1", port }, header, "hi");
  assert.equal(text((await socket.receive()).data), `203.0.113.${number}:4000 hi`);
  return socket;
}

Deno.test("control: status, connections and close, of connections and flows, with --allow-ffi alone", async () => {
  await using folder = await Folder.make();
  const { stack, program, control, config, web, game } = await setUp(folder);
  await using _stack = stack;
  using one = await client(web, 1);
  using two = await client(web, 2);
  await using _player = await player(game, 3);
  using _silent = await Stream.connect(web);
  assert.equal((await Deno.stat(control)).mode! & 0o777, 0o600);

  const status = JSON.parse(await run(["status", "--config", config, "--json"])) as Status;
  assert.equal(status.pid, program.pid);
  assert.deepEqual(status.workers, { configured: 2, serving: 2 });
  assert.deepEqual(
    status.listeners.map(({ name, protocol, connections, flows }) => [
      name,
      protocol,
      connections,
      flows,
    ]),
    [["web", "tcp", 3, 0], ["game", "udp", 0, 1]],
  );
  assert.match(
    await run(["status", "--control", control]),
    /^web +127\.0\.0\.1:\d+\/tcp .* 3 +0 /m,
  );

  const list = async (...args: string[]) =>
    JSON.parse(await run(["connections", "--control", control, "--json", ...args])) as Connections;
  const all = await list();
  assert.equal(all.found, 4);
  const flow = all.connections.find(({ protocol }) => protocol === "udp");
  assert.equal(flow?.client, "203.0.113.3:4000");
  assert.deepEqual([flow?.bytesUp, flow?.bytesDown], [2, "203.0.113.3:4000 hi".length]);
  assert.equal(all.connections.filter(({ phase }) => phase === "header").length, 1);
  const [mine, ...others] = (await list("--listener", "web", "--client", "192.0.2.1")).connections;
  assert.deepEqual(others, []);
  assert.deepEqual([mine?.client, mine?.peer, mine?.phase], [
    "192.0.2.1:20001",
    one.local,
    "relayed",
  ]);
  assert.equal((await list("--limit", "1")).connections.length, 1);

  assert.equal(await run(["close", "--control", control, "--client", "192.0.2.1/32"]), "Closed 1");
  await one.end();
  await two.send("still here");
  assert.equal(text(await two.exactly(10)), "still here");
  assert.equal(await run(["close", "--control", control, "--listener", "game"]), "Closed 1");
  assert.equal(await run(["close", "--control", control, "--listener", "web"]), "Closed 2");
  await two.end();
  assert.equal(await run(["connections", "--control", control]), "No connections or flows");
  await program.stop();
});

Deno.test("control: reload does what SIGHUP does, and says what it came to", async () => {
  await using folder = await Folder.make();
  const { stack, program, control, web } = await setUp(folder);
  await using _stack = stack;
  const reload = ["reload", "--control", control];
  assert.match(await run(reload), /Reloaded/);
  await Deno.writeTextFile(folder.file("subnets"), "no subnet\n");
  assert.match(await run(reload, 1), /"no subnet" is not an IP address/);
  await program.event("reload_failed");
  assert.match(await run(["status", "--control", control]), /the last reload failed/);
  (await client(web, 1))[Symbol.dispose]();
  await program.stop();
});

Deno.test("control: a stranger's garbage and a slow client harm nobody", async () => {
  await using folder = await Folder.make();
  const { stack, program, control, web } = await setUp(folder);
  await using _stack = stack;
  const slow: Deno.UnixConn[] = [];
  try {
    for (let index = 0; index < 7; index++) {
      slow.push(await Deno.connect({ transport: "unix", path: control }));
    }
    for (const garbage of ["\n", "{}\n", "null\n", "[1]\n", '{"command":"fly"}\n', "\0\xff\n"]) {
      using connection = await Deno.connect({ transport: "unix", path: control });
      await connection.write(new TextEncoder().encode(garbage));
      const answer = new Uint8Array(4096);
      const length = await connection.read(answer);
      assert.match(text(answer.subarray(0, length ?? 0)), /^\{"error":".*"\}\n$/);
    }
    const endless = await Deno.connect({ transport: "unix", path: control });
    await endless.write(new Uint8Array(64 << 10)).catch(() => {});
    endless.close();
    assert.match(await run(["status", "--control", control]), /2 workers/);
    (await client(web, 1))[Symbol.dispose]();
    // Who has said nothing for five seconds is closed.
    const buffer = new Uint8Array(1);
    for (const connection of slow) {
      assert.equal(await connection.read(buffer).catch(() => null), null);
    }
  } finally {
    for (const connection of slow) connection.close();
  }
  await program.stop();
});

Deno.test("control: a stale socket is replaced, a live one refuses the start", async () => {
  await using folder = await Folder.make();
  const control = folder.file("control");
  const args = ["--control", control];
  {
    await using program = await Program.start({ args });
    const second = await run([...args, "-l", `127.0.0.1:${freePort()}`], 1);
    assert.match(second, /another program answers there; stop that/);
    program.signal("SIGKILL");
    await program.ended();
  }
  assert.match(
    await run(["status", ...args], 1),
    /Nothing answers at the control socket .*\/control/,
  );
  await using program = await Program.start({ args });
  assert.match(await run(["status", ...args]), /1 worker/);
  await program.stop();
  await Deno.remove(control).catch(() => {});
  await Deno.writeTextFile(control, "precious");
  assert.match(await run([...args, "-l", `127.0.0.1:${freePort()}`], 1), /is not a socket/);
});

Deno.test("control: without the sandbox the socket is removed at the end", async () => {
  await using folder = await Folder.make();
  const control = folder.file("control");
  await using program = await Program.start({ args: ["--control", control, "--sandbox", "off"] });
  await program.stop();
  await assert.rejects(Deno.stat(control), Deno.errors.NotFound);
});

Deno.test("control: what a command cannot do is a line", async () => {
  await using folder = await Folder.make();
  const { stack, control } = await setUp(folder);
  await using _stack = stack;
  assert.equal(
    await run(["close", "--control", control, "--listener", "mail"], 1),
    'mmproxy: Cannot close: there is no listener "mail"; there are: web, game',
  );
  assert.match(await run(["close", "--control", control], 2), /needs --listener or --client/);
  assert.match(
    await run(["status"], 2),
    /Give the running program's control socket with --control/,
  );
  assert.match(
    await run(["connections", "--control", control, "--client", "10.0.0.1/8"], 2),
    /Option --client: client "10\.0\.0\.1\/8" has host bits set/,
  );
});

Deno.test("control: top shows listeners, rates, refusals and clients, and leaves the terminal as it was", async () => {
  await using folder = await Folder.make();
  const { stack, program, control, web } = await setUp(folder);
  await using _stack = stack;
  using one = await client(web, 1);
  using refused = await Stream.connect(web);
  await refused.send("GET / HTTP/1.0\r\n\r\n");
  await program.event("header_refused");
  for (const keys of ["q", "\\x03"]) {
    const shell = 'NO_COLOR=1 exec "$@"';
    const top = atTerminal(["top", "--control", control], { keys, seconds: 4, shell });
    for (let round = 0; round < 40; round++) {
      await one.send("x".repeat(10_000));
      await one.exactly(10_000);
      await new Promise((wake) => setTimeout(wake, 50));
    }
    const { written, code, raw, restored } = await top;
    assert.deepEqual({ code, raw, restored }, { code: 0, raw: true, restored: true });
    assert.ok(written.endsWith("\x1b[?25h\x1b[?1049l"), JSON.stringify(written.slice(-40)));
    // deno-lint-ignore no-control-regex
    const frames = written.split("\x1b[24A").map((it) => it.replace(/\x1b\[[?\d;]*[A-Za-z]/g, ""));
    assert.ok(frames.length > 3, `${frames.length} frames`);
    const busy = frames.find((it) => /^web +1 +0 +0 +[\d.]+ kB\/s +[\d.]+ kB\/s/m.test(it));
    assert.ok(busy, frames.join("\n---\n"));
    assert.match(busy, /^not_proxy +1 /m);
    assert.match(busy, /^192\.0\.2\.1 +1 +[\d.]+ kB\/s/m);
    for (const line of frames.flatMap((it) => it.split("\r\n"))) assert.ok(line.length <= 80, line);
  }
  const piped = await run(["top", "--control", control], 1);
  assert.match(piped, /top needs a terminal/);
});

Deno.test("control: top ends with a line and a restored terminal when the program ends", async () => {
  await using folder = await Folder.make();
  const control = folder.file("control");
  await using program = await Program.start({ args: ["--control", control] });
  const top = atTerminal(["top", "--control", control]);
  await new Promise((wake) => setTimeout(wake, 2000));
  await program.stop();
  const { written, code, raw, restored } = await top;
  assert.deepEqual({ code, raw, restored }, { code: 1, raw: true, restored: true });
  const [, afterwards = ""] = written.split("\x1b[?1049l");
  assert.match(afterwards, /^mmproxy: Nothing answers at the control socket/);
});
