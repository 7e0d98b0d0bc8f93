import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { bytes, tlv, v2 } from "./support/headers.ts";
import { type LogEvent, Program, runToEnd, type Start } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { assertSeenOverTcp } from "./support/seen.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { without } from "./support/without_calls.ts";

const CLIENT = { ip: "203.0.113.50", port: 40_050 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

const NET_BIND_SERVICE = 1n << 10n;
const NET_ADMIN = 1n << 12n;
const NET_RAW = 1n << 13n;

const EPERM = 1;
const ENOSYS = 38;
/** What is tried by code that has taken the program over, and what comes of it (takeover.rs). */
const CONFINED: Record<string, number> = {
  execve: EPERM,
  fork: EPERM,
  write: EPERM,
  read_write: EPERM,
  create: EPERM,
  truncate_open: EPERM,
  // "Not implemented" lets libraries fall back to the call whose arguments a filter can see.
  openat2: ENOSYS,
  clone3: ENOSYS,
  // SIGHUP reads the subnet file.
  read: 0,
  mkdir: EPERM,
  rename: EPERM,
  unlink: EPERM,
  chmod: EPERM,
  truncate: EPERM,
  memfd: EPERM,
  packet: EPERM,
  raw: EPERM,
  inet_packet: EPERM,
  unix: EPERM,
  audit: EPERM,
  // --auto-routes removes them at the end.
  route: 0,
  kill_parent: EPERM,
  kill_group: EPERM,
  kill_self: 0,
  ptrace: EPERM,
  io_uring: EPERM,
  unshare: EPERM,
  setuid: EPERM,
  keystroke: EPERM,
  securebits: EPERM,
  writable_files: 0,
};

/** Has a worker try them; by name, the errno of each or 0. */
async function takeOver(program: Program): Promise<Record<string, number>> {
  const before = program.otherLines.length;
  using stream = await Stream.connect(program.listen.port);
  await stream.send(v2(CLIENT, BALANCER, { tlvs: [tlv(0xee, bytes("mmproxy: takeover"))] }));
  const line = await eventually(
    () => program.otherLines.slice(before).find((line) => line.startsWith("takeover: ")),
    "report of what was tried",
  );
  const pairs = line.replace("takeover: ", "").split(" ").map((pair) => pair.split("="));
  return Object.fromEntries(pairs.map(([name = "", errno]) => [name, Number(errno)]));
}

/** A program whose workers can be taken over. */
class Faulty implements AsyncDisposable {
  private constructor(
    readonly copy: ProgramCopy,
    readonly service: TcpService,
    readonly program: Program,
  ) {}

  static async start(args: string[], start: Omit<Start, "root" | "args"> = {}): Promise<Faulty> {
    const copy = await ProgramCopy.make();
    await copy.addFaultyLibrary();
    const service = new TcpService(tellAndEcho);
    const all = ["-4", service.address, ...args];
    return new Faulty(
      copy,
      service,
      await Program.start({ ...start, root: copy.root, args: all }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program[Symbol.asyncDispose]();
    await this.service[Symbol.asyncDispose]();
    await this.copy[Symbol.asyncDispose]();
  }
}

interface Thread {
  readonly name: string;
  readonly noNewPrivileges: string;
  readonly seccomp: string;
  /** By set: Prm, Eff, Bnd, Inh, Amb. */
  readonly capabilities: Record<string, bigint>;
}

/** Every thread of a process (proc_pid_status(5)). */
async function threads(pid: number): Promise<Thread[]> {
  const found: Thread[] = [];
  for await (const { name: thread } of Deno.readDir(`/proc/${pid}/task`)) {
    const status = await Deno.readTextFile(`/proc/${pid}/task/${thread}/status`).catch(() => "");
    // One that has ended meanwhile.
    if (status === "") continue;
    const value = (name: string) => new RegExp(`^${name}:\\s+(.*)$`, "m").exec(status)?.[1] ?? "";
    const sets = ["Prm", "Eff", "Bnd", "Inh", "Amb"];
    found.push({
      name: value("Name"),
      noNewPrivileges: value("NoNewPrivs"),
      seccomp: value("Seccomp"),
      capabilities: Object.fromEntries(
        sets.map((set) => [set, BigInt(`0x${value(`Cap${set}`)}`)]),
      ),
    });
  }
  return found;
}

/** Asserts that each thread is confined, with these capabilities. */
async function assertConfined(pid: number, kept: bigint, bounding = kept): Promise<void> {
  const all = await threads(pid);
  // The main thread, V8's and tokio's, and a worker's.
  assert.ok(all.length >= 4, `${all.length} threads`);
  for (const { name, ...thread } of all) {
    assert.deepEqual(thread, {
      noNewPrivileges: "1",
      seccomp: "2",
      capabilities: { Prm: kept, Eff: kept, Bnd: bounding, Inh: 0n, Amb: 0n },
    }, `thread ${name}`);
  }
}

/** Regular files that a process has open for writing, but for its standard output and error. */
async function writableFiles(pid: number): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir(`/proc/${pid}/fd`)) {
    const path = await Deno.readLink(`/proc/${pid}/fd/${name}`).catch(() => "");
    const info = await Deno.readTextFile(`/proc/${pid}/fdinfo/${name}`).catch(() => "");
    const flags = parseInt(/^flags:\s+(\d+)$/m.exec(info)?.[1] ?? "0", 8);
    const regular = path.startsWith("/") && (await Deno.stat(path).catch(() => null))?.isFile;
    if (regular && (flags & 3) !== 0) found.push(path);
  }
  return found;
}

function sandboxEvent(program: Program): LogEvent & { sandbox?: unknown; capabilities?: unknown } {
  const event = program.all("sandbox")[0];
  assert.ok(event, program.transcript());
  return event;
}

Deno.test("sandbox: a worker that is taken over can neither run a program nor write", async () => {
  await using faulty = await Faulty.start(["--sandbox", "on", "--listeners", "2"]);
  const { program } = faulty;
  assert.deepEqual(await takeOver(program), CONFINED);

  // A worker that starts later is as confined as the first ones.
  using fatal = await Stream.connect(program.listen.port);
  await fatal.send(v2(CLIENT, BALANCER, { tlvs: [tlv(0xee, bytes("mmproxy: panic"))] }));
  await program.event("worker_restarted");
  for (let tries = 0; tries < 8; tries++) assert.deepEqual(await takeOver(program), CONFINED);
  await assertConfined(program.pid, NET_RAW | NET_BIND_SERVICE);
  await program.stop();
});

Deno.test("sandbox: without it the same code can do all of that", async () => {
  await using faulty = await Faulty.start(["--sandbox", "off"]);
  const tried = await takeOver(faulty.program);
  for (
    const name of ["execve", "fork", "write", "read_write", "truncate_open", "openat2", "clone3"]
  ) {
    assert.equal(tried[name], 0, name);
  }
  for (const name of ["create", "packet", "raw", "unix", "kill_parent", "kill_group", "setuid"]) {
    assert.equal(tried[name], 0, name);
  }
  assert.match(sandboxEvent(faulty.program).message, /^Sandbox: off$/);
  for (const { seccomp, noNewPrivileges } of await threads(faulty.program.pid)) {
    assert.deepEqual([seccomp, noNewPrivileges], ["0", "0"]);
  }
  await faulty.program.stop();
});

Deno.test("sandbox: Deno's caches stay open for reading alone", async () => {
  await using service = new TcpService(tellAndEcho);
  const start = async (mode: string) => {
    const program = await Program.start({ args: ["-4", service.address, "--sandbox", mode] });
    const files = await writableFiles(program.pid);
    await program.stop();
    return files;
  };
  const caches = (files: string[]) => files.filter((path) => !path.endsWith("-shm"));
  assert.notDeepEqual(caches(await start("off")), [], "Deno has caches open for writing");
  assert.deepEqual(caches(await start("on")), []);
});

Deno.test("sandbox: a start leaves no worker's modules in Deno's cache", async () => {
  // Where the sandbox forbids it, Deno would try five times before the worker starts.
  const info = await new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).output();
  const { typescriptCache } = JSON.parse(new TextDecoder().decode(info.stdout));
  const stored = async () =>
    (await Array.fromAsync(Deno.readDir(`${typescriptCache}/blob`)).catch(() => [])).length;
  await using service = new TcpService(tellAndEcho);
  const before = await stored();
  await using program = await Program.start({ args: ["-4", service.address, "--sandbox", "off"] });
  assert.equal(await stored(), before);
  await program.stop();
});

Deno.test("sandbox: by default every thread is confined, and the log shows it", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "--metrics-addr", `127.0.0.1:${freePort()}`],
  });
  await assertConfined(program.pid, NET_RAW | NET_BIND_SERVICE);
  const { message, level, sandbox, capabilities } = sandboxEvent(program);
  assert.equal(
    message,
    "Sandbox: no new privileges, no capability except CAP_NET_BIND_SERVICE and CAP_NET_RAW, " +
      "no file open for writing, system calls filtered",
  );
  assert.equal(level, "info");
  assert.deepEqual(sandbox, {
    no_new_privileges: "set",
    lowered: "set",
    files: "set",
    filter: "set",
  });
  assert.deepEqual(capabilities, ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]);
  await assertSeenOverTcp(program.listen, CLIENT, BALANCER);
  // A port below 1024 takes a capability.
  await assertSeenOverTcp(program.listen, { ...CLIENT, port: 1023 }, BALANCER);
  await program.stop();
});

Deno.test("sandbox: who may change routes keeps that, for --auto-routes alone", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "--auto-routes", "--table", "7354", "--sandbox", "on"],
  });
  await assertConfined(program.pid, NET_RAW | NET_BIND_SERVICE | NET_ADMIN);
  assert.notEqual(await rules(7_354), "");
  await program.stop();
  const removed = program.all("routes_removed");
  assert.equal(removed.length, 1);
  // Both, as they were set: a route is known by the name of its device.
  assert.match(removed[0]?.message ?? "", /rule.*route/);
  assert.equal(await rules(7_354), "");
});

Deno.test("sandbox: a user with one capability gets the complete sandbox", async () => {
  const sets = ["inh-caps", "ambient-caps", "bounding-set"].map((set) => `--${set}=-all,+net_raw`);
  await using faulty = await Faulty.start(["--sandbox", "on"], {
    shell: `exec setpriv --no-new-privs --securebits=+noroot ${sets.join(" ")} "$@"`,
  });
  await assertConfined(faulty.program.pid, NET_RAW);
  assert.deepEqual(await takeOver(faulty.program), CONFINED);
  // Another port: that of the connection before may be in TIME_WAIT.
  const client = { ...CLIENT, port: CLIENT.port + 1 };
  await assertSeenOverTcp(faulty.program.listen, client, BALANCER);
  assert.match(
    sandboxEvent(faulty.program).message,
    /no new privileges \(already\), no capability except CAP_NET_RAW \(already\)/,
  );
  await faulty.program.stop();
});

/** The rules that look in a routing table. */
async function rules(table: number): Promise<string> {
  const { stdout } = await new Deno.Command("ip", { args: ["rule", "show", "table", `${table}`] })
    .output();
  return new TextDecoder().decode(stdout).trim();
}

Deno.test("sandbox: where calls cannot be filtered, auto serves and says what is missing", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address],
    shell: without("seccomp"),
  });
  const { message, level, sandbox } = sandboxEvent(program);
  assert.equal(level, "warn");
  assert.match(
    message,
    /^Sandbox: incomplete: system calls cannot be filtered: operation not permitted \(EPERM\); see docs\/sandbox\.md\. In force: no new privileges \(already\), no capability except CAP_NET_BIND_SERVICE and CAP_NET_RAW/,
  );
  assert.equal((sandbox as Record<string, string>).filter, "missing");
  for (const { capabilities } of await threads(program.pid)) {
    assert.equal(capabilities.Eff, NET_RAW | NET_BIND_SERVICE);
  }
  await assertSeenOverTcp(program.listen, CLIENT, BALANCER);
  await program.stop();
});

for (
  const { call, problem } of [
    { call: "seccomp", problem: "system calls cannot be filtered" },
    { call: "capset", problem: "capabilities cannot be dropped" },
  ]
) {
  Deno.test(`sandbox: without ${call}(2), on refuses to start and leaves no routes`, async () => {
    const table = 7_353;
    const { code, stderr } = await runToEnd(
      ["-l", `127.0.0.1:${freePort()}`, "--sandbox", "on", "--auto-routes", "--table", `${table}`],
      { shell: without(call) },
    );
    assert.equal(code, 2, stderr);
    const last = stderr.trimEnd().split("\n").at(-1);
    assert.equal(
      last,
      `mmproxy: Option --sandbox on: ${problem}: operation not permitted (EPERM); ` +
        "allow it in this environment, or use --sandbox auto (docs/sandbox.md)",
    );
    assert.match(stderr, /Routes are set/);
    assert.equal(await rules(table), "");
  });
}

Deno.test("sandbox: the doctor tries it, and sees that of a proxy that runs", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address] });
  const doctor = async (start: Omit<Start, "args"> = {}) => {
    const listen = `127.0.0.1:${program.listen.port}`;
    const args = ["doctor", "--json", "-l", listen, "-4", service.address];
    const { stdout } = await runToEnd(args, start);
    const { checks } = JSON.parse(stdout) as {
      checks: { name: string; state: string; detail: string }[];
    };
    return checks.filter(({ name }) => name === "sandbox").map(({ state, detail }) =>
      `${state}: ${detail}`
    );
  };
  const running = `ok: running mmproxy (process ${program.pid}): no new privileges, ` +
    "system calls filtered, CAP_NET_BIND_SERVICE, CAP_NET_RAW";
  assert.deepEqual(await doctor(), [
    "ok: Available here: no new privileges, no capability except CAP_NET_BIND_SERVICE and " +
    "CAP_NET_RAW, no file open for writing, system calls filtered",
    running,
  ]);
  const [here] = await doctor({ shell: without("seccomp") });
  assert.match(
    here ?? "",
    /^warning: system calls cannot be filtered: operation not permitted \(EPERM\)/,
  );
  await program.stop();
});
