/**
 * The benchmark: every program at every work, round by round, each sample in a network of its own.
 * `deno run -A bench/main.ts --help` lists what can be chosen.
 */

import { buildBinary, buildLibrary } from "./build.ts";
import { Network, privilege, runInside } from "./namespace.ts";
import { type Options, parseOptions } from "./options.ts";
import { customPeer, haproxy, nginx, noProxy, ours, type Program } from "./programs.ts";
import { line, report } from "./report.ts";
import type { RunResult, Sample } from "./result.ts";
import { type Setting, takeSample } from "./sample.ts";
import { type Work, WORKS } from "./works.ts";

/** The load generator's path, in the environment of the run that measures. */
const LOADGEN = "MMPROXY_BENCH_LOADGEN";

/** What a sample takes beside its measured time: network, start, warm-up, drain. */
const OVERHEAD_SECONDS = 0.9;
/** What a sample takes whose time does not follow from the measured one. */
const FIXED_SECONDS = { idle: 3, startup: 0.6, "highest-rate": 10 } as const;
/** Shorter samples say nothing, longer ones say no more. */
const SECONDS = { least: 0.4, most: 4 };

/** One entry of the plan. */
interface Step {
  readonly round: number;
  readonly work: Work;
  readonly program: Program;
}

/** Builds, then runs itself again where it may make networks. */
async function outside(options: Options): Promise<number> {
  const loadgen = await buildBinary("mmproxy-loadgen");
  if (options.programs.includes("ours")) await buildLibrary();
  const args = ["run", "-A", import.meta.filename ?? "", ...Deno.args];
  return await runInside(args, { [LOADGEN]: loadgen });
}

/** Measures, prints the tables and writes the result. */
async function inside(options: Options): Promise<number> {
  const programs = await choosePrograms(options);
  const works = chooseWorks(options);
  const steps = plan(works, programs, options.rounds);
  const setting: Setting = {
    loadgen: Deno.env.get(LOADGEN) ?? "",
    sysctls: options.sysctls,
    tcpHeader: options.tcpHeader,
    seconds: options.seconds ?? secondsWithin(options.budgetMinutes, steps),
  };
  // Before all else: where networks cannot be made like this, the run ends here.
  const sysctls = await readSysctls(options.sysctls);
  const loadBefore = Deno.loadavg()[0] ?? 0;
  const started = new Date();
  const samples = await measure(steps, setting);
  const result: RunResult = {
    started: started.toISOString(),
    minutes: (Date.now() - started.getTime()) / 60_000,
    mode: options.mode,
    machine: describeMachine(loadBefore),
    settings: {
      rounds: options.rounds,
      seconds: setting.seconds,
      tcpHeader: options.tcpHeader,
      privilege: privilege() ?? "",
      sysctls,
    },
    programs: programs.map(({ name, version, description }) => ({
      name,
      version,
      command: description,
    })),
    works: works.map(({ name, title, metrics }) => ({
      name,
      title,
      metrics,
      samples: samples.get(name) ?? [],
    })),
  };
  console.log(`\n${report(result)}\n`);
  const path = options.output ?? defaultPath(started, options.mode);
  await Deno.writeTextFile(path, `${JSON.stringify(result, null, 1)}\n`);
  console.log(`Written to ${path}`);
  return 0;
}

async function choosePrograms(options: Options): Promise<Program[]> {
  const chosen: Program[] = [];
  for (const name of options.programs) {
    const [, kind, threads] = /^(none|ours|haproxy|nginx)(?:-(\d+))?$/.exec(name) ?? [];
    const count = threads === undefined ? undefined : Number(threads);
    if (kind === "none") chosen.push(noProxy);
    else if (kind === "ours") chosen.push(ours());
    else if (kind === "haproxy") chosen.push(...found(name, await haproxy(name, count)));
    else if (kind === "nginx") chosen.push(...found(name, await nginx(name, count)));
    else throw new Error(`There is no program ${JSON.stringify(name)}; use --peer for others`);
  }
  return [...chosen, ...options.peers.map(customPeer)];
}

function found(name: string, program: Program | undefined): Program[] {
  if (program === undefined) console.log(`Skipped ${name}: it is not installed`);
  return program === undefined ? [] : [program];
}

function chooseWorks({ only, mode }: Options): Work[] {
  return WORKS.filter((work) => only?.includes(work.name) ?? (mode === "full" || work.quick));
}

/** Round by round, work by work, program by program; who comes first changes with the round. */
function plan(works: readonly Work[], programs: readonly Program[], rounds: number): Step[] {
  const steps: Step[] = [];
  for (let round = 1; round <= rounds; round++) {
    for (const work of works) {
      if (round > (work.mostRounds ?? rounds)) continue;
      const able = programs.filter((program) =>
        program.protocols.includes(work.protocol) &&
        // Without a program there is none to start, and none whose memory could be measured.
        (program !== noProxy || work.kind === "load" || work.kind === "highest-rate")
      );
      const first = (round - 1) % Math.max(1, able.length);
      for (const program of [...able.slice(first), ...able.slice(0, first)]) {
        steps.push({ round, work, program });
      }
    }
  }
  return steps;
}

/** The measured time of a sample, in seconds, with which all steps stay within a budget. */
function secondsWithin(minutes: number, steps: readonly Step[]): number {
  const kinds = steps.map(({ work }) => work.kind);
  const fixed = kinds.reduce((sum, kind) => sum + (kind === "load" ? 0 : FIXED_SECONDS[kind]), 0);
  const loads = kinds.filter((kind) => kind === "load").length;
  const each = (minutes * 60 - fixed) / Math.max(1, loads) - OVERHEAD_SECONDS;
  return Number(Math.min(SECONDS.most, Math.max(SECONDS.least, each)).toFixed(2));
}

async function measure(
  steps: readonly Step[],
  setting: Setting,
): Promise<ReadonlyMap<string, readonly Sample[]>> {
  const samples = new Map<string, Sample[]>();
  const width = Math.max(...steps.map(({ program }) => program.name.length));
  for (const [index, { round, work, program }] of steps.entries()) {
    const sample = await takeSample(setting, work, program, round);
    samples.set(work.name, [...samples.get(work.name) ?? [], sample]);
    const place = `${index + 1}`.padStart(`${steps.length}`.length);
    console.log(
      `[${place}/${steps.length}] round ${round} ${work.name.padEnd(20)} ` +
        `${program.name.padEnd(width)} ${line(sample, work.metrics)}`,
    );
  }
  return samples;
}

function describeMachine(loadBefore: number): RunResult["machine"] {
  const model = /^model name\s*:\s*(.+)$/m.exec(Deno.readTextFileSync("/proc/cpuinfo"))?.[1];
  return {
    kernel: Deno.osRelease(),
    processor: model ?? Deno.build.arch,
    cores: navigator.hardwareConcurrency,
    memoryGiB: Math.round(Deno.systemMemoryInfo().total / 2 ** 30),
    loadBefore: Number(loadBefore.toFixed(2)),
  };
}

async function readSysctls(sysctls: Options["sysctls"]): Promise<Record<string, string>> {
  await using network = await Network.open(sysctls);
  return await network.sysctls();
}

function defaultPath(started: Date, mode: string): string {
  const stamp = started.toISOString().slice(0, 16).replaceAll(":", "");
  return new URL(`results/${stamp}-${mode}.json`, import.meta.url).pathname;
}

if (import.meta.main) {
  const options = parseOptions(Deno.args);
  try {
    Deno.exit(await (privilege() === undefined ? outside(options) : inside(options)));
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    Deno.exit(1);
  }
}
