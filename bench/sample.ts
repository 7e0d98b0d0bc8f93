/** One program at one work, once: in a network of its own, from its start to its end. */

import { openPorts, readCounters } from "./counters.ts";
import { Network } from "./namespace.ts";
import { cpuSeconds, killTree, machineBusySeconds, readCpu, readMemory } from "./processes.ts";
import type { Place, Program } from "./programs.ts";
import type { Sample } from "./result.ts";
import { runTool, type ToolPaths, type ToolTask } from "./tools.ts";
import { COST, type Work } from "./works.ts";

/** What is the same for all samples of a run. */
export interface Setting {
  /** The load generator's path. */
  readonly loadgen: string;
  /** Of the networks. */
  readonly sysctls: Readonly<Record<string, string>>;
  readonly tcpHeader: string;
  /** All of it runs over IPv6. */
  readonly ipv6: boolean;
  /** Where the programs are that make loads of their own. */
  readonly tools: ToolPaths;
}

type Numbers = Record<string, number>;

const LISTEN_PORT = 8443;
const SERVER_PORT = 5000;
/** Who may send headers: the load, at loopback and at its own addresses for IPv6. */
const SUBNETS = ["127.0.0.0/8", "::1/128", "2001:db8:ffff::/48"];

/** How long a program may take until it listens. */
const START_LIMIT = 10_000;
/** The same, for each port more. */
const START_LIMIT_A_PORT = 50;
/**
 * How long it is given from there on at least, for what comes before it serves may be lost; and at
 * most, until its processor time stands still: what its start costs is not the load's.
 */
const SETTLE = { least: 100, most: 600 };
/** So long must it stand still, in milliseconds. */
const QUIET = 40;
/** The measured time of one step of the search for the highest rate, and how many steps. */
const SEARCH_SECONDS = 0.5;
const SEARCH_STEPS = 8;
/** Between these, in datagrams a second, the search looks. */
const SEARCH_RANGE = { from: 10_000, to: 1_600_000 };
/** The share that may be lost at the highest rate. */
const LOSS_LIMIT = 0.001;
/** A paced load that sent less than this share of its rate did not keep up. */
const PACE_LIMIT = 0.98;
/** What makes a sample no result when it is above 0, in words. */
const FAULTS: Readonly<Record<string, string>> = {
  failed: "operations failed",
  storm_failed: "connections of the storm failed",
  wrong_client: "came from another address than their client's",
  lost_up: "bytes lost on the way to the service",
  lost_down: "bytes lost on the way to the client",
  unfinished: "connections did not end",
  lost_replies: "replies lost",
};

/** What a sample is taken of. */
export interface Subject {
  readonly work: Work;
  readonly program: Program;
  /** From 1. */
  readonly round: number;
  /** Measured time of a load, in seconds. */
  readonly seconds: number;
}

/**
 * Takes a sample. A program that fails to start, or a load that fails, is a sample without numbers
 * and with the fault in words.
 */
export async function takeSample(setting: Setting, subject: Subject): Promise<Sample> {
  const { work, program, round, seconds } = subject;
  const directory = await Deno.makeTempDir({ prefix: "mmproxy-bench-" });
  try {
    const subnets = `${directory}/subnets`;
    await Deno.writeTextFile(subnets, `${SUBNETS.join("\n")}\n`);
    const place: Place = {
      protocol: work.protocol,
      bulk: work.bulk ?? false,
      listen: local(setting, LISTEN_PORT),
      ports: work.ports ?? 1,
      v4: `127.0.0.1:${SERVER_PORT}`,
      v6: `[::1]:${SERVER_PORT}`,
      service: local(setting, SERVER_PORT),
      ipv6: setting.ipv6,
      subnets,
      directory,
    };
    await using network = await Network.open({ ...setting.sysctls, ...work.sysctls });
    const task = { setting, work, network, seconds };
    const numbers = work.kind === "memory"
      ? await compareThreads(task, (threads) => program.command({ ...place, threads }))
      : await measure({ ...task, command: program.command(place) });
    return { program: program.name, round, numbers, faults: findFaults(work, numbers) };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { program: program.name, round, numbers: {}, faults: [message] };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

interface Task {
  readonly setting: Setting;
  readonly work: Work;
  readonly network: Network;
  /** The program's; empty for no proxy. */
  readonly command: readonly string[];
  /** Measured time of a load, in seconds. */
  readonly seconds: number;
}

async function measure(task: Task): Promise<Numbers> {
  const { work, network, command } = task;
  if (work.kind === "startup") return await runLoad(task, ["--", ...command]);
  if (command.length === 0) return await withCounters(task, undefined);
  const started = performance.now();
  const child = network.command(command, {
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const errors = new Response(child.stderr).text();
  try {
    await untilListening(task, child, errors);
    const listening_ms = performance.now() - started;
    await untilSettled(child.pid);
    return { ...await withCounters(task, child.pid), listening_ms };
  } finally {
    await killTree(child);
    await errors;
  }
}

/** Resident memory with one thread, and the difference with two, in megabytes. */
async function compareThreads(
  task: Omit<Task, "command">,
  commandOf: (threads: number) => string[],
): Promise<Numbers> {
  const { resident_kib: one = 0 } = await measure({ ...task, command: commandOf(1) });
  const { resident_kib: two = 0 } = await measure({ ...task, command: commandOf(2) });
  const megabytes = (kib: number) => kib * 1024 / 1e6;
  return { one_mb: megabytes(one), two_mb: megabytes(two), further_mb: megabytes(two - one) };
}

async function untilListening(
  { network, work }: Task,
  child: Deno.ChildProcess,
  errors: Promise<string>,
): Promise<void> {
  let ended = false;
  child.status.then(() => ended = true);
  const ports = Array.from({ length: work.ports ?? 1 }, (_, index) => LISTEN_PORT + index);
  const timeout = START_LIMIT + ports.length * START_LIMIT_A_PORT;
  const limit = performance.now() + timeout;
  const areOpen = () => {
    const open = openPorts(network, work.protocol);
    return ports.every((port) => open.has(port));
  };
  while (!areOpen()) {
    if (ended) throw new Error(`Ended before it listened: ${(await errors).trim().slice(-500)}`);
    if (performance.now() > limit) throw new Error(`Did not listen within ${timeout} ms`);
    await sleep(10);
  }
}

async function untilSettled(pid: number): Promise<void> {
  const started = performance.now();
  await sleep(SETTLE.least - QUIET);
  let busy = true;
  while (busy && performance.now() - started < SETTLE.most) {
    const before = readCpu(pid);
    await sleep(QUIET);
    busy = cpuSeconds(before, readCpu(pid)) > 0.001;
  }
}

/** Measures, and adds what the kernel and the machine counted meanwhile. */
async function withCounters(task: Task, pid: number | undefined): Promise<Numbers> {
  const before = readCounters(task.network);
  const numbers = await byKind(task, pid);
  const after = readCounters(task.network);
  for (const [name, value] of Object.entries(after)) numbers[name] = value - (before[name] ?? 0);
  return numbers;
}

async function byKind(task: Task, pid: number | undefined): Promise<Numbers> {
  switch (task.work.kind) {
    case "idle":
      return await measureIdle(task, pid);
    case "highest-rate":
      return await findHighestRate(task);
    case "ports": {
      const numbers = await measureLoad(task, pid);
      return { ...numbers, mib: pid === undefined ? 0 : readMemory(pid) / 1024 };
    }
    case "open":
      return await measureOpen(task, pid);
    case "memory":
      return await measureResident(task, pid);
    default:
      return await measureLoad(task, pid);
  }
}

async function measureLoad(task: Task, pid: number | undefined): Promise<Numbers> {
  const started = performance.now();
  const busyBefore = machineBusySeconds();
  const cpuBefore = pid === undefined ? undefined : readCpu(pid);
  const { tool } = task.work;
  const numbers = tool === undefined
    ? await runLoad(task, ["--seconds", `${task.seconds}`])
    : await runTool(tool, toolTask(task));
  const cpu = pid === undefined || cpuBefore === undefined
    ? 0
    : cpuSeconds(cpuBefore, readCpu(pid));
  const busy = machineBusySeconds() - busyBefore;
  const elapsed = (performance.now() - started) / 1000;

  const { operations = 0, up_gbit, down_gbit, load_cpu_seconds } = numbers;
  if (up_gbit !== undefined && down_gbit !== undefined) {
    numbers.each_way_gbit = (up_gbit + down_gbit) / 2;
  }
  if (pid !== undefined) {
    numbers.cpu_seconds = cpu;
    if (operations > 0) numbers[COST] = cpu * 1e6 / operations * task.work.operationsPerCost;
  }
  if (load_cpu_seconds !== undefined) {
    // What neither the program nor the load used: the harness itself, and others on the machine.
    const foreign = busy - cpu - load_cpu_seconds;
    numbers.foreign_cpu_share = Math.max(0, foreign) / elapsed / navigator.hardwareConcurrency;
  }
  return numbers;
}

function toolTask({ setting, network, command, seconds }: Task): ToolTask {
  return {
    network,
    seconds,
    tools: setting.tools,
    loadgen: setting.loadgen,
    service: local(setting, SERVER_PORT),
    proxy: command.length === 0 ? undefined : local(setting, LISTEN_PORT),
  };
}

async function measureIdle(task: Task, pid: number | undefined): Promise<Numbers> {
  if (pid === undefined) throw new Error("Without a program there is no memory to measure");
  // The first connection has the program set up what it sets up once.
  const once: Work = { ...task.work, load: ["tcp-idle", "--connections", "1"] };
  await runLoad({ ...task, work: once }, ["--seconds", "0"]);
  const before = readMemory(pid);
  const load = new TalkingLoad(task, ["--seconds", "30"]);
  const { ready = 0 } = await load.next();
  // Buffers of the last exchanges are given back.
  await sleep(1000);
  const after = readMemory(pid);
  const numbers = await load.end();
  // Memory of fewer connections, or of a program that gave up, is no answer.
  if ((numbers.failed ?? 0) > 0) throw new Error(`${numbers.failed} connections failed`);
  return {
    ...numbers,
    ready,
    kib_per_connection: (after - before) / ready,
    kib_before: before,
    kib_after: after,
  };
}

/**
 * A load that says when all idle connections are open, and before and after what it measures; the processor
 * time is what was used in between.
 */
async function measureOpen(task: Task, pid: number | undefined): Promise<Numbers> {
  const load = new TalkingLoad(task, ["--seconds", `${task.seconds}`]);
  await load.next();
  await load.go();
  const { exchanged: first = 0 } = await load.next();
  const before = pid === undefined ? undefined : readCpu(pid);
  const { exchanged: last = 0 } = await load.next();
  const cpu = pid === undefined || before === undefined ? 0 : cpuSeconds(before, readCpu(pid));
  const numbers = await load.end();
  return pid === undefined || last === first ? numbers : {
    ...numbers,
    cpu_seconds: cpu,
    [COST]: cpu * 1e6 / (last - first) * task.work.operationsPerCost,
  };
}

async function measureResident(task: Task, pid: number | undefined): Promise<Numbers> {
  if (pid === undefined) throw new Error("Without a program there is no memory to measure");
  const numbers = await runLoad(task, ["--seconds", "0"]);
  // Buffers of the last exchanges are given back.
  await sleep(1000);
  return { ...numbers, resident_kib: readMemory(pid, "Rss") };
}

/** Halves, in steps of the same ratio, the range in which the highest rate is. */
async function findHighestRate(task: Task): Promise<Numbers> {
  let { from, to } = SEARCH_RANGE;
  let carried: Numbers = {};
  let highest = 0;
  for (let step = 0; step < SEARCH_STEPS; step++) {
    const rate = Math.round(Math.sqrt(from * to));
    const numbers = await runLoad(task, ["--seconds", `${SEARCH_SECONDS}`, "--rate", `${rate}`]);
    const kept = (numbers.sent_per_second ?? 0) >= rate * PACE_LIMIT;
    if (kept && (numbers.lost_share ?? 1) <= LOSS_LIMIT) {
      from = rate;
      highest = rate;
      carried = numbers;
    } else {
      to = rate;
    }
  }
  return { ...carried, highest_rate: highest };
}

async function runLoad(task: Task, options: readonly string[]): Promise<Numbers> {
  const { stdout, stderr, success } = await task.network.command(loadCommand(task, options), {
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  if (!success) throw new Error(decoder.decode(stderr).trim().slice(-500));
  const lines = decoder.decode(stdout).trim().split("\n");
  return parseNumbers(lines.at(-1) ?? "");
}

/** A load that prints lines while it runs, and waits for its standard input. */
class TalkingLoad {
  readonly #child: Deno.ChildProcess;
  readonly #errors: Promise<string>;
  readonly #lines: AsyncGenerator<string, void>;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;

  constructor(task: Task, options: readonly string[]) {
    this.#child = task.network.command(loadCommand(task, options), {
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#errors = new Response(this.#child.stderr).text();
    this.#lines = linesOf(this.#child.stdout);
    this.#input = this.#child.stdin.getWriter();
  }

  /** The next line that it prints. */
  async next(): Promise<Numbers> {
    const line = await this.#lines.next();
    if (!line.done) return parseNumbers(line.value);
    await this.end();
    throw new Error("The load ended before it said what is awaited");
  }

  /** Lets it start. */
  async go(): Promise<void> {
    await this.#input.write(new TextEncoder().encode("\n"));
  }

  /**
   * Ends its standard input, and waits until it has ended.
   *
   * @returns what its last line says.
   */
  async end(): Promise<Numbers> {
    // A load that has failed does not read it any more.
    await this.#input.close().catch(() => {});
    let last: Numbers = {};
    for await (const line of this.#lines) last = parseNumbers(line);
    const { success } = await this.#child.status;
    if (!success) throw new Error((await this.#errors).trim().slice(-500));
    return last;
  }
}

/** The loopback address of the run's family, with a port. */
function local({ ipv6 }: Setting, port: number): string {
  return `${ipv6 ? "[::1]" : "127.0.0.1"}:${port}`;
}

function loadCommand({ setting, work, command }: Task, options: readonly string[]): string[] {
  const [name = "", ...own] = work.load;
  const server = local(setting, SERVER_PORT);
  const header = work.protocol === "udp" ? "v2" : setting.tcpHeader;
  const target = command.length === 0
    ? ["--target", server, "--header", "none"]
    : ["--target", local(setting, LISTEN_PORT), "--header", header];
  return [setting.loadgen, name, ...own, "--server", server, ...target, ...options];
}

async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
  let rest = "";
  for await (const part of stream.pipeThrough(new TextDecoderStream())) {
    const lines = `${rest}${part}`.split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
}

function parseNumbers(line: string): Numbers {
  const parsed: unknown = JSON.parse(line);
  if (typeof parsed !== "object" || parsed === null) throw new Error(`No result: ${line}`);
  return Object.fromEntries(Object.entries(parsed).map(([name, value]) => [name, Number(value)]));
}

function findFaults(work: Work, numbers: Numbers): string[] {
  const faults = Object.entries(FAULTS).flatMap(([name, words]) => {
    const value = numbers[name] ?? 0;
    return value > 0 ? [`${value} ${words}`] : [];
  });
  const rate = Number(work.load[work.load.indexOf("--rate") + 1]);
  const { sent_per_second } = numbers;
  if (work.load.includes("--rate") && (sent_per_second ?? rate) < rate * PACE_LIMIT) {
    faults.push(`the load sent only ${Math.round(sent_per_second ?? 0)}/s`);
  }
  return faults;
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
