import assert from "node:assert/strict";
import { layOutForCompile } from "../../deploy/compile.ts";
import { freePort, show, tcpListens } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { command, killAtEnd, Program, runToEnd, type Start } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause, within } from "./support/time.ts";

const CLIENT = { ip: "203.0.113.61", port: 40_061 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
const UNIT = new URL("../../deploy/mmproxy.service", import.meta.url);
/** Where Deno's debugger listens, and how long after the start Deno sets its handler. */
const DEBUGGER = 9229;
const DENO_LISTENS_MS = 500;
/** Linux's number, as a bit of the masks in /proc/pid/status. */
const USR1_BIT = 1n << 9n;

/** Sends SIGUSR1 again and again, from now until well after Deno has set its handler. */
async function signalFor(ms: number, signal: () => void): Promise<void> {
  const end = performance.now() + ms;
  while (performance.now() < end) {
    signal();
    assert.ok(!tcpListens(DEBUGGER), "a debugger listens");
    await pause(5);
  }
  await pause(100);
  assert.ok(!tcpListens(DEBUGGER), "a debugger listens");
}

/** Asserts that SIGUSR1 does nothing to a program that runs, and is told of. */
async function assertIgnored(start: Start): Promise<void> {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ ...start, args: ["-4", service.address] });
  using client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  assert.equal(await client.line(), show(CLIENT));
  await signalFor(3 * DENO_LISTENS_MS, () => program.signal("SIGUSR1"));
  const told = await program.event("signal_ignored");
  assert.match(told.message, /^SIGUSR1 has no effect: .*SIGHUP reloads the subnet file$/);
  await client.send("still");
  assert.equal(new TextDecoder().decode(await client.exactly(5)), "still");
  await client.finish();
  await program.stop();
}

Deno.test("usr1: opens no debugger under deno run, and the log says that it does nothing", async () => {
  await assertIgnored({ permissions: [] });
});

Deno.test("usr1: opens no debugger in the layout that is compiled", async () => {
  await using scratch = await Scratch.make();
  const root = `${scratch.path}/stage`;
  await layOutForCompile(root);
  await assertIgnored({ root });
});

/** The signals that a process ignores; nothing once it has ended. */
function ignoredBy(pid: number): bigint | undefined {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    return BigInt(`0x${/^SigIgn:\t(\w+)$/m.exec(status)?.[1] ?? "0"}`);
  } catch {
    return undefined;
  }
}

Deno.test("usr1: under the unit's command the program lives from its first moment on", async () => {
  const unit = await Deno.readTextFile(UNIT);
  const [, line = ""] = /^ExecStart=(.*)$/m.exec(unit) ?? [];
  assert.equal(line, "/opt/mmproxy/bin/mmproxy $MMPROXY_OPTIONS");
  const listen = show({ ip: "127.0.0.1", port: freePort() });
  const child = command(["-l", listen, "--log-format", "json"], {}).spawn();
  using _end = killAtEnd(child);
  const output = child.output();
  // The launcher is a shell: until it has begun, it is env that gets the signal.
  await eventually(() => ((ignoredBy(child.pid) ?? 0n) & USR1_BIT) !== 0n, "the first moment");
  await signalFor(3 * DENO_LISTENS_MS, () => child.kill("SIGUSR1"));
  await eventually(() => tcpListens(Number(listen.split(":")[1])), "listening socket");
  child.kill("SIGTERM");
  const { code, stderr } = await within(output, "end of the program");
  const said = new TextDecoder().decode(stderr);
  assert.equal(code, 0, said);
  assert.match(said, /"event":"signal_ignored"/);
});

Deno.test("usr1: a program that was asked before it had started does not start with a debugger", async () => {
  await using copy = await ProgramCopy.make();
  // A machine so slow that Deno has set its handler before the program's first line.
  const main = await Deno.readTextFile(`${copy.root}/main.ts`);
  await Deno.writeTextFile(`${copy.root}/main.ts`, `import "./slow.ts";\n${main}`);
  await Deno.writeTextFile(
    `${copy.root}/slow.ts`,
    "await new Promise((wake) => setTimeout(wake, 1500));\n",
  );
  await copy.addFaultyLibrary();
  const listen = show({ ip: "127.0.0.1", port: freePort() });
  const { code, stderr } = await runToEnd(["-l", listen], {
    root: copy.root,
    shell: '{ sleep 1.2; kill -USR1 $$; } & exec "$@"',
  });
  assert.equal(code, 1, stderr);
  assert.match(
    stderr.trimEnd().split("\n").at(-1) ?? "",
    /^mmproxy: SIGUSR1 opened Deno's debugger on 127\.0\.0\.1:9229 during the start; start mmproxy again$/,
  );
  assert.ok(!tcpListens(DEBUGGER));
});
