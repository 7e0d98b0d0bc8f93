import assert from "node:assert/strict";
import { freePort, show } from "./support/endpoints.ts";
import { bytes, text, Tlv, tlv, v2 } from "./support/headers.ts";
import { command, killAtEnd, Program } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stalled } from "./support/stalled.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { atTerminal } from "./support/terminal.ts";
import { eventually, within } from "./support/time.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
/** Makes a line of the access log 7 kB long. */
const LONG = [tlv(Tlv.authority, bytes("x".repeat(3_500)))];
/** Lines of that length that neither the pipe nor the queue has room for. */
const FLOOD = 2_000;

/** Connections that come and go, each with a long line in the access log. */
async function flood(port: number, count: number): Promise<void> {
  const header = v2({ ip: "192.0.2.62", port: 0 }, BALANCER, { tlvs: LONG });
  for (let done = 0; done < count; done += 50) {
    await Promise.all(Array.from({ length: 50 }, async () => {
      using client = await Stream.connect(port);
      await client.send(header);
      await client.line();
    }));
  }
}

Deno.test("log output: a pipe that nobody reads stops neither health nor signals, and lines are counted", async () => {
  await using scratch = await Scratch.make();
  const subnets = await scratch.write("subnets", "127.0.0.0/8\n");
  const pipe = `${scratch.path}/stderr`;
  await using service = new TcpService(tellAndEcho);
  const args = ["-4", service.address, "-a", subnets, "--log-level", "access"];
  await using program = await Stalled.start(pipe, [...args, "--log-format", "json"]);
  using client = await Stream.connect(program.port);
  await client.send(v2({ ip: "192.0.2.63", port: 40_063 }, BALANCER));
  await client.line();

  await flood(program.port, FLOOD);
  await eventually(
    async () => (await program.sample("mmproxy_log_lines_lost_total") ?? 0) > 0,
    "lost lines",
  );
  assert.equal(await program.get("/healthz"), "ok\n");
  assert.equal(await program.get("/readyz"), "ready\n");

  await scratch.write("subnets", "nonsense\n");
  program.signal("SIGHUP");
  const reloaded = async () => await program.sample("mmproxy_last_reload_successful") === 0;
  await eventually(reloaded, "reload");
  await client.send("still");
  assert.equal(text(await client.exactly(5)), "still");

  await client.finish();
  await client.end();
  const begun = performance.now();
  program.signal("SIGTERM");
  assert.equal((await within(program.ended, "end of the program")).code, 0);
  assert.ok(performance.now() - begun < 6_000, "it waits a second for the log's reader");
});

Deno.test("log output: who reads again reads what was taken, in order, and how much was left out", async () => {
  await using scratch = await Scratch.make();
  const pipe = `${scratch.path}/stderr`;
  await using service = new TcpService(tellAndEcho);
  const args = ["-4", service.address, "--log-level", "access", "--log-format", "json"];
  await using program = await Stalled.start(pipe, args);
  await flood(program.port, FLOOD);
  await eventually(
    async () => (await program.sample("mmproxy_log_lines_lost_total") ?? 0) > 0,
    "lost lines",
  );
  const reader = new Deno.Command("cat", { args: [pipe], stdout: "piped" }).spawn();
  const output = reader.output();
  const lost = async () => await program.sample("mmproxy_log_lines_lost_total") ?? 0;
  const before = await lost();
  // It takes lines again.
  await eventually(async () => {
    const now = await lost();
    await flood(program.port, 50);
    return await lost() === now;
  }, "room for lines");
  program.signal("SIGTERM");
  assert.equal((await within(program.ended, "end of the program")).code, 0);
  const said = text((await within(output, "end of the log")).stdout).trimEnd().split("\n");
  const events = said.map((line) => JSON.parse(line));
  const told = events.filter(({ event }) => event === "log_lines_lost");
  const total = told.reduce((sum, { value }) => sum + value, 0);
  assert.ok(total >= before, `${total} told of, ${before} lost`);
  const lines = events.filter(({ event }) => event === "connection").length;
  const { counters } = events.at(-1);
  assert.equal(events.at(-1).event, "stopped");
  assert.equal(counters.log_lines_lost, total);
  assert.equal(lines + total + (counters.events_lost ?? 0), counters.accepted);
  // The number of lost lines is told when the next line has its time already.
  const times = events.filter((event) => !told.includes(event)).map(({ time }) => time);
  assert.deepEqual(times, times.toSorted(), "the order stays");
});

const UNWRITABLE: [name: string, redirection: string][] = [
  ["a full disk", "2>/dev/full"],
  ["a closed standard error", "2>&-"],
  // The test closes its end of the pipe.
  ["a reader that is gone", ""],
];

for (const [name, redirection] of UNWRITABLE) {
  Deno.test(`log output: ${name} ends nothing`, async () => {
    await using service = new TcpService(tellAndEcho);
    const port = freePort();
    const args = ["-l", show({ ip: "127.0.0.1", port }), "-4", service.address];
    const child = command([...args, "--log-level", "debug"], {
      shell: `exec "$@" ${redirection}`,
    }).spawn();
    using _end = killAtEnd(child);
    await Promise.all([child.stdout.cancel(), child.stderr.cancel()]);
    for (let index = 0; index < 20; index++) {
      using client = await eventually(
        () => Stream.connect(port).catch(() => undefined),
        "connection",
      );
      await client.send(v2({ ip: "192.0.2.64", port: 41_000 + index }, BALANCER));
      assert.equal(await client.line(), `192.0.2.64:${41_000 + index}`);
    }
    child.kill("SIGTERM");
    assert.equal((await within(child.status, "end of the program")).code, 0);
  });
}

Deno.test("log output: a program that cannot start ends in time where nobody reads why", async () => {
  await using scratch = await Scratch.make();
  await using taken = new TcpService(tellAndEcho);
  const pipe = `${scratch.path}/stderr`;
  // 64 KiB are all that a pipe takes.
  const fill = `mkfifo ${pipe} && exec 3<>${pipe} && head -c 65536 /dev/zero >&3`;
  const child = command(["-l", taken.address], { shell: `${fill} && exec 2>${pipe} "$@"` }).spawn();
  using _end = killAtEnd(child);
  const { code } = await within(child.output(), "end of the program", 30_000);
  assert.equal(code, 1);
});

Deno.test("log output: a worker that panics comes back where nobody reads standard error", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  await using program = await Program.start({ root: copy.root });
  using fatal = await Stream.connect(program.listen.port);
  const wanted = { tlvs: [tlv(0xee, bytes("mmproxy: panic"))] };
  await fatal.send(v2({ ip: "192.0.2.65", port: 40_065 }, BALANCER, wanted));
  const failed = await program.event("worker_failed");
  assert.match(failed.message, /panicked: a header asked for it at \S+\.rs:\d+/);
  await program.event("worker_restarted");
  await program.stop();
  assert.deepEqual(program.otherLines, [], "nothing is written past the log");
});

Deno.test("log output: text has colours on a terminal, and none in a pipe", async () => {
  const args = ["-4", "127.0.0.1:9", "-l", show({ ip: "127.0.0.1", port: freePort() })];
  const interrupt = { keys: "\\x03", after: "Listening on " };
  const shown = await atTerminal(args, interrupt);
  assert.equal(shown.code, 0, shown.written);
  assert.match(
    shown.written,
    // deno-lint-ignore no-control-regex
    /\x1b\[2m\d{4}-\S+Z\x1b\[22m \x1b\[32mINFO {2}\x1b\[39m Listening on /,
  );
  const without = await atTerminal([...args, "--color", "never"], interrupt);
  assert.match(without.written, /Z INFO {3}Listening on /);
  assert.ok(!without.written.includes("\x1b["));
  const piped = await untilListening(args);
  assert.match(piped, /Z INFO {3}Listening on /);
  assert.ok(!piped.includes("\x1b["));
  const json = await untilListening([...args, "--color", "always", "--log-format", "json"]);
  assert.match(json, /"event":"listening"/);
  assert.ok(!json.includes("\x1b["));
});

/** What the program writes into a pipe from its start to its stop, which follows when it listens. */
async function untilListening(args: string[]): Promise<string> {
  const child = command(args, {}).spawn();
  using _end = killAtEnd(child);
  let written = "";
  let isStopped = false;
  for await (const chunk of child.stderr) {
    written += new TextDecoder().decode(chunk);
    if (isStopped || !written.includes("Listening on ")) continue;
    isStopped = true;
    child.kill("SIGINT");
  }
  assert.ok((await child.status).success, written);
  return written;
}
