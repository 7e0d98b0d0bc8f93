import assert from "node:assert/strict";
import { join } from "node:path";
import { freePort } from "./support/endpoints.ts";
import { Surroundings } from "./support/handover.ts";
import { text, v2 } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { Program, runToEnd } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Scratch } from "./support/real_peers.ts";
import { descendants, Successors } from "./support/successors.ts";
import { Stream } from "./support/tcp.ts";
import { UdpSocket } from "./support/udp.ts";
import { eventually, within } from "./support/time.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
/** A start on a machine that has other things to do. */
const UPGRADE_MS = 40_000;

/** A program with a listener of each kind, and what stands before and behind it. */
async function setUp(options: { lines?: string; root?: string; sandbox?: string } = {}) {
  const stack = new AsyncDisposableStack();
  const { lines = "", root, sandbox = "auto" } = options;
  const around = stack.use(await Surroundings.make(`sandbox = "${sandbox}"\n${lines}`));
  const { scratch, control, datagrams } = around;
  const [web, game] = [around.tcp("web"), around.udp("game", "0.0.0.0")];
  const session = around.udp("session", "127.0.0.1", 'udp-header = "session"');
  const config = await around.write(web, game, session);
  const program = stack.use(await Program.start({ config, ...root !== undefined && { root } }));
  const successors = stack.use(new Successors(program));
  const upgrade = async (code = 0) => {
    const before = program.all("upgraded").length;
    const ended = await runToEnd(["upgrade", "--control", control]);
    assert.equal(ended.code, code, ended.stderr + program.transcript());
    if (code === 0) {
      const event = await eventually(
        () => program.all("upgraded")[before],
        "event upgraded",
      );
      return { said: ended.stdout.trimEnd(), process: event.successor ?? 0 };
    }
    return { said: (ended.stdout + ended.stderr).trimEnd(), process: 0 };
  };
  return {
    ...{ stack, around, scratch, program, successors, upgrade, datagrams, control, config },
    ...{ web: web.port, game: game.port, session: session.port, listeners: { web, game, session } },
  };
}

async function client(port: number, number: number): Promise<Stream> {
  const stream = await Stream.connect(port);
  await stream.send(v2({ ip: `192.0.2.${number}`, port: 20_000 + number }, BALANCER));
  assert.equal(await stream.line(), `192.0.2.${number}:${20_000 + number}`);
  return stream;
}

/** A player whose client is `203.0.113.<number>`. */
class Player implements AsyncDisposable {
  readonly header: Uint8Array;

  private constructor(
    readonly socket: UdpSocket,
    readonly port: number,
    readonly number: number,
  ) {
    const client = { ip: `203.0.113.${number}`, port: 4000 };
    this.header = v2(client, BALANCER, { datagram: true });
  }

  static async join(port: number, number: number): Promise<Player> {
    const player = new Player(await UdpSocket.open(), port, number);
    await player.says("hi");
    return player;
  }

  /** Sends with its header, or in its session without one; its own client is what the service sees. */
  async says(words: string, bare = false): Promise<void> {
    const to = { ip: "127.0.0.1", port: this.port };
    await this.socket.send(to, ...bare ? [words] : [this.header, words]);
    const { data } = await this.socket.receive();
    assert.equal(text(data), `203.0.113.${this.number}:4000 ${words}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.socket[Symbol.asyncDispose]();
  }
}

Deno.test("upgrade: connections continue in the old program, flows in the new one, and the old one drains", async () => {
  const { stack, program, successors, upgrade, web, game, session } = await setUp();
  await using _stack = stack;
  using before = await client(web, 1);
  await using player = await Player.join(game, 2);
  await using silent = await Player.join(session, 3);
  using half = await Stream.connect(web);
  const header = v2({ ip: "192.0.2.9", port: 20_009 }, BALANCER);
  await half.send(header.subarray(0, 9));

  const { said, process } = await upgrade();
  assert.match(
    said,
    new RegExp(
      `^Upgraded: process ${process} runs [0-9.]+ and has 2 UDP flows; process ${program.pid} ` +
        "drains 2 connections for up to 300 s$",
    ),
  );
  await player.says("with its header");
  await silent.says("in its session", true);
  await half.send(header.subarray(9));
  assert.equal(await half.line(), "192.0.2.9:20009");
  await before.send("still here\n");
  assert.equal(await before.line(), "still here");
  using after = await client(web, 4);
  await half.finish();
  await before.finish();
  assert.equal(await program.processEnded(), 0);
  await after.send("and I\n");
  assert.equal(await after.line(), "and I");
  await player.says("and I");
  await after.finish();
  Deno.kill(process, "SIGTERM");
  await successors.ended(process);
});

Deno.test("upgrade: one after the other, by SIGUSR2 and by command, within the sandbox", async () => {
  const { stack, program, successors, upgrade, web, game } = await setUp({ sandbox: "on" });
  await using _stack = stack;
  await using player = await Player.join(game, 2);
  program.signal("SIGUSR2");
  const { successor: first = 0 } = await program.event("upgraded", () => true, UPGRADE_MS);
  assert.equal(await program.processEnded(), 0);
  await player.says("one");
  const second = (await upgrade()).process;
  await successors.ended(first);
  await player.says("two");
  const third = (await upgrade()).process;
  await successors.ended(second);
  await player.says("three");
  using _stream = await client(web, 1);
  assert.deepEqual(program.all("upgraded").length, 3);
  // Each has forked a process of its own for the next upgrade; those of the others are gone.
  const left = descendants(Deno.pid).filter((process) => process === program.pid);
  assert.deepEqual(left, []);
  assert.equal(descendants(third).length, 1);
});

Deno.test("upgrade: a new program that does not start leaves the old one as it is, and says why", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  const { stack, program, upgrade, config, scratch, web, game } = await setUp({ root: copy.root });
  await using _stack = stack;
  const good = await Deno.readTextFile(config);
  await using player = await Player.join(game, 2);
  using before = await client(web, 1);

  await scratch.write("m.toml", good.replace("workers = 2", "workers = 0"));
  const wrong = await upgrade(1);
  assert.match(
    wrong.said,
    /^Cannot upgrade: the new program failed: .*m\.toml, line 2: workers = 0: .*; this program continues$/,
  );

  await scratch.write("m.toml", good.replace("workers = 2", "workers = 1"));
  const fewer = await upgrade(1);
  assert.match(fewer.said, /from a program of 2 workers with 1: restart it to have fewer/);

  await scratch.write("m.toml", good);
  const main = join(copy.root, "main.ts");
  const source = await Deno.readTextFile(main);
  await Deno.writeTextFile(main, `import "./src/there_is_no_such_file.ts";\n${source}`);
  const broken = await upgrade(1);
  assert.match(broken.said, /the new program failed: .*there_is_no_such_file\.ts/);
  await Deno.writeTextFile(main, "await new Promise(() => {});");
  const silent = await upgrade(1);
  assert.match(silent.said, /^Cannot upgrade: the new program failed: /);

  assert.equal(program.all("upgrade_failed").length, 4);
  await player.says("still here");
  using _after = await client(web, 3);
  await before.send("still here\n");
  assert.equal(await before.line(), "still here");
  assert.deepEqual(descendants(program.pid).length, 1, "the process that upgrades start from");
  await Deno.writeTextFile(main, source);
  await upgrade();
  await player.says("at the new one");
});

Deno.test("upgrade: the new program has the new file: a listener more, and one less", async () => {
  const { stack, around, program, upgrade, listeners, web, game, session } = await setUp();
  await using _stack = stack;
  await using silent = await Player.join(session, 2);
  using before = await client(web, 1);
  const added = around.tcp("more");
  await around.write(listeners.game, listeners.session, added);
  await upgrade();
  using _added = await client(added.port, 3);
  await silent.says("in its session", true);
  await using _new = await Player.join(game, 4);
  await assert.rejects(Stream.connect(web), Deno.errors.ConnectionRefused);
  await before.send("still here\n");
  assert.equal(await before.line(), "still here");
  await before.finish();
  assert.equal(await program.processEnded(), 0);
});

Deno.test("upgrade: what is left after --upgrade-drain is cut, and counted in the log", async () => {
  const { stack, program, upgrade, web } = await setUp({ lines: "upgrade-drain = 1" });
  await using _stack = stack;
  using one = await client(web, 1);
  using two = await client(web, 2);
  await upgrade();
  const cut = await program.event("upgrade_drain_over");
  assert.equal(cut.value, 2);
  assert.equal(cut.message, "Closing 2 connections after 1 s (--upgrade-drain)");
  assert.deepEqual([await one.end(), await two.end()], ["closed", "closed"]);
  assert.equal(await program.processEnded(), 0);
});

Deno.test("upgrade: without a control socket SIGUSR2 changes nothing, and the log says what to do", async () => {
  await using program = await Program.start();
  program.signal("SIGUSR2");
  const { message } = await program.event("upgrade_failed");
  assert.equal(
    message,
    "Cannot upgrade: there is no control socket for the hand-over: start mmproxy with --control; " +
      "this program continues",
  );
  await program.stop();
});

Deno.test("upgrade: a program that is started by hand with --take-over takes over, too", async () => {
  const { stack, program, control, config, web, game } = await setUp();
  await using _stack = stack;
  await using player = await Player.join(game, 2);
  await using taking = await Program.start({ config, args: ["--take-over", control] });
  assert.equal(await program.processEnded(), 0);
  await player.says("at the new one");
  using _stream = await client(web, 1);
  assert.equal(taking.all("taken_over")[0]?.flows, 1);
});

Deno.test("upgrade: --take-over where nobody answers is a start like any other", async () => {
  await using scratch = await Scratch.make();
  const control = `${scratch.path}/control`;
  await using program = await Program.start({
    args: ["--control", control, "--take-over", control],
  });
  await program.event("no_predecessor");
  await program.stop();
});

/** Frames of a hand-over (ffi/src/proxy/handover/wire.rs) that are nothing but their kind. */
const frame = (kind: number) => Uint8Array.of(0xd7, kind, 0, 0, 0, 0, 0, 0);
const [LISTED, READY, MOVED, GOT, GO] = [4, 5, 8, 9, 10];

/** Reads frames up to one of this kind. */
async function readTo(conn: Deno.Conn, kind: number): Promise<void> {
  const read = async (length: number) => {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length;) {
      const count = await within(conn.read(bytes.subarray(at)), "frame");
      if (count === null) throw new Error(`The connection ended before frame ${kind}`);
      at += count;
    }
    return bytes;
  };
  for (;;) {
    const head = await read(8);
    await read(new DataView(head.buffer).getUint32(4, true));
    if (head[1] === kind) return;
  }
}

for (
  const [when, act] of [
    ["before it has the flows", async () => {}],
    ["once it has the flows", (conn: Deno.Conn) => readTo(conn, MOVED)],
    ["once it may read", async (conn: Deno.Conn) => {
      await readTo(conn, MOVED);
      await conn.write(frame(GOT));
      await readTo(conn, GO);
    }],
  ] as const
) {
  Deno.test(`upgrade: a new program that ends ${when} leaves the old one with all that it had`, async () => {
    const { stack, program, control, web, game, session } = await setUp({
      lines: "drain-timeout = 0",
    });
    await using _stack = stack;
    await using player = await Player.join(game, 2);
    await using silent = await Player.join(session, 3);
    using before = await client(web, 1);
    const conn = await Deno.connect({ transport: "unix", path: control });
    await conn.write(new TextEncoder().encode('{"command":"take-over","version":"9"}\n'));
    // Not before: what comes with the line is read as a part of it.
    await readTo(conn, LISTED);
    await conn.write(frame(READY));
    await act(conn);
    conn.close();
    const { message } = await program.event("upgrade_failed");
    assert.match(message, /^Cannot hand over: .*; this program continues$/);
    await player.says("with its header");
    await silent.says("in its session", true);
    await before.send("still here\n");
    assert.equal(await before.line(), "still here");
    using _after = await client(web, 4);
    await using _new = await Player.join(game, 5);
    const counters = await program.stop();
    assert.deepEqual([counters.get("flows_opened"), counters.get("port_fallbacks")], [3, 0]);
  });
}

Deno.test("upgrade: another protocol version is refused, and a second hand-over has to wait", async () => {
  const { stack, program, control, web } = await setUp();
  await using _stack = stack;
  const first = await Deno.connect({ transport: "unix", path: control });
  await first.write(new TextEncoder().encode('{"command":"take-over","version":"9"}\n'));
  await readTo(first, LISTED);
  const second = await Deno.connect({ transport: "unix", path: control });
  await second.write(new TextEncoder().encode('{"command":"take-over","version":"9"}\n'));
  await first.write(new TextEncoder().encode("GET / HTTP/1.1\r\n"));
  first.close();
  const { message } = await program.event("upgrade_failed");
  assert.match(message, /^Cannot hand over: GET .*; this program continues$/);
  second.close();
  using _stream = await client(web, 1);
});

Deno.test("upgrade: the routes of --auto-routes stay, and go with the last program", async () => {
  using host = await Host.make();
  const routing = () =>
    host.run(
      `for family in -4 -6; do
         ip $family rule
         ip $family route show table 123 2> /dev/null || true
       done`,
    );
  const before = await routing();
  await host.act(async () => {
    const { stack, program, successors, upgrade, web } = await setUp({
      lines: "auto-routes = true",
    });
    await using _stack = stack;
    const set = await routing();
    assert.notEqual(set, before);
    using old = await client(web, 1);
    const { process } = await upgrade();
    assert.equal(await routing(), set);
    using fresh = await client(web, 2);
    await old.finish();
    assert.equal(await program.processEnded(), 0);
    assert.equal(await routing(), set, "the end of the old program leaves them");
    await fresh.send("still here\n");
    assert.equal(await fresh.line(), "still here");
    await fresh.finish();
    Deno.kill(process, "SIGTERM");
    await successors.ended(process);
    assert.equal(await routing(), before);
  });
});

Deno.test("upgrade: the status shows each program that was replaced, until it has drained", async () => {
  const { stack, program, successors, upgrade, control, web } = await setUp({ sandbox: "on" });
  await using _stack = stack;
  const draining = async () => {
    const { stdout } = await runToEnd(["status", "--control", control]);
    return stdout.split("\n").filter((line) => line.startsWith("Draining: "))
      .map((line) => line.replace(/ \d+s ago/, " …s ago"));
  };
  assert.deepEqual(await draining(), []);
  using one = await client(web, 1);
  using two = await client(web, 2);
  const first = (await upgrade()).process;
  const oldest = `Draining: process ${program.pid}, replaced …s ago with 2 connections`;
  assert.deepEqual(await draining(), [oldest]);
  using three = await client(web, 3);
  await upgrade();
  const older = `Draining: process ${first}, replaced …s ago with 1 connection`;
  assert.deepEqual(await draining(), [oldest, older]);
  for (const stream of [one, two]) await stream.finish();
  assert.equal(await program.processEnded(), 0);
  assert.deepEqual(await draining(), [older]);
  await three.finish();
  await successors.ended(first);
  assert.deepEqual(await draining(), []);
});

Deno.test("upgrade: the metrics port answers from the new program", async () => {
  const metrics = `127.0.0.1:${freePort()}`;
  const { stack, program, upgrade, web } = await setUp({ lines: `metrics-addr = "${metrics}"` });
  await using _stack = stack;
  const answering = async () => {
    const { status } = await (await fetch(`http://${metrics}/status.json`)).json();
    return status.pid;
  };
  assert.equal(await answering(), program.pid);
  using _old = await client(web, 1);
  const { process } = await upgrade();
  const after = await eventually(() => answering().catch(() => undefined), "an answer");
  assert.equal(after, process);
  using _new = await client(web, 2);
  const text = await (await fetch(`http://${metrics}/metrics`)).text();
  assert.match(text, /^mmproxy_connections_accepted_total\{[^}]*listener="web"[^}]*\} 1$/m);
});
