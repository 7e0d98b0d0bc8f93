/**
 * The benchmark: every program at every work, round by round, each sample in a network of its own.
 * `deno run -A bench/main.ts --help` lists what can be chosen.
 */

import { buildBinary, buildRelease } from "./build.ts";
import { Network, privilege, runInside } from "./namespace.ts";
import { type Options, parseOptions } from "./options.ts";
import { customPeer, haproxy, nginx, noProxy, ours, type Program } from "./programs.ts";
import { line, report } from "./report.ts";
import type { RunResult, Sample } from "./result.ts";
import { type Setting, takeSample } from "./sample.ts";
import { planRounds, planTrial, Schedule, SECONDS, shareOf, type Step } from "./schedule.ts";
import { findTools } from "./tools.ts";
import { type Work, WORKS } from "./works.ts";

/** The load generator's path, in the environment of the run that measures. */
const LOADGEN = "MMPROXY_BENCH_LOADGEN";

/** Builds, then runs itself again where it may make networks. */
async function outside(options: Options): Promise<number> {
  const loadgen = await buildBinary("mmproxy-loadgen");
  if (options.programs.some((name) => name.startsWith("ours"))) await buildRelease();
  const args = ["run", "-A", import.meta.filename ?? "", ...Deno.args];
  return await runInside(args, { [LOADGEN]: loadgen });
}

/** Measures, prints the tables and writes the result. */
async function inside(options: Options): Promise<number> {
  const programs = await choosePrograms(options);
  const works = chooseWorks(options);
  const rounds = planRounds(works, programs, options.rounds);
  const setting: Setting = {
    loadgen: Deno.env.get(LOADGEN) ?? "",
    sysctls: options.sysctls,
    tcpHeader: options.tcpHeader,
    ipv6: options.ipv6,
    tools: findTools(works.flatMap(({ tool }) => tool ?? []), options.tools),
  };
  // Before all else: where networks cannot be made like this, the run ends here.
  const sysctls = await readSysctls(options.sysctls);
  const loadBefore = Deno.loadavg()[0] ?? 0;
  const started = new Date();
  const { samples, seconds } = await measure(setting, rounds, options);
  const result: RunResult = {
    started: started.toISOString(),
    minutes: (Date.now() - started.getTime()) / 60_000,
    mode: options.mode,
    machine: describeMachine(loadBefore),
    settings: {
      rounds: seconds.length,
      seconds,
      tcpHeader: options.tcpHeader,
      ipv6: options.ipv6,
      privilege: privilege() ?? "",
      sysctls,
    },
    programs: programs.map(({ name, version, description, table }) => ({
      name,
      version,
      command: description,
      table,
    })),
    works: works.map(({ name, title, protocol, metrics }) => ({
      name,
      title,
      protocol,
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
    else if (kind === "ours") chosen.push(ours(name, count));
    else if (kind === "haproxy") chosen.push(...found(name, await haproxy(name, count)));
    else if (kind === "nginx") chosen.push(...found(name, await nginx(name, count)));
    else throw new Error(`Unknown program ${JSON.stringify(name)}; use --peer for others`);
  }
  return [...chosen, ...options.peers.map(customPeer)];
}

function found(name: string, program: Program | undefined): Program[] {
  if (program === undefined) console.log(`Skipped ${name}: it is not installed`);
  return program === undefined ? [] : [program];
}

function chooseWorks({ only, mode }: Options): Work[] {
  return WORKS.filter(({ name, byName = false, quick }) =>
    only?.includes(name) ?? (mode === "full" ? !byName : quick)
  );
}

/** All samples of a run, and the lengths of its rounds. */
interface Measured {
  readonly samples: ReadonlyMap<string, readonly Sample[]>;
  readonly seconds: readonly number[];
}

/** Takes every sample that fits the budget, after one of each program that is thrown away. */
async function measure(
  setting: Setting,
  rounds: readonly Step[][],
  { seconds, budgetMinutes }: Options,
): Promise<Measured> {
  const schedule = new Schedule(rounds, budgetMinutes * 60);
  const samples = new Map<string, Sample[]>();
  const lengths: number[] = [];
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  const take = async (step: Step, seconds: number, place: string) => {
    const before = elapsed();
    const asked = seconds * (shareOf(step.work) || 1);
    const sample = await takeSample(setting, { ...step, seconds: asked });
    // A load that failed did not take its time: count what it did take.
    const measured = shareOf(step.work) > 0 ? sample.numbers.seconds ?? 0 : 0;
    schedule.learn(step, elapsed() - before, measured);
    console.log(
      `${place} ${step.work.name.padEnd(20)} ${step.program.name.padEnd(12)} ` +
        line(sample, step.work.metrics),
    );
    return sample;
  };
  for (const step of planTrial(rounds[0] ?? [])) await take(step, SECONDS.least, "[trial]");
  let last = rounds.length;
  for (let round = 1; round <= last; round++) {
    const next = schedule.next(round, elapsed());
    last = seconds === undefined ? next.last : last;
    const length = Number((seconds ?? next.seconds).toFixed(2));
    const steps = rounds[round - 1] ?? [];
    console.log(
      `Round ${round} of ${last}: samples of ${length} s, ${
        (elapsed() / 60).toFixed(1)
      } minutes gone`,
    );
    for (const [index, step] of steps.entries()) {
      const sample = await take(step, length, `[${round}: ${index + 1}/${steps.length}]`);
      samples.set(step.work.name, [...samples.get(step.work.name) ?? [], sample]);
    }
    lengths.push(length);
  }
  if (last < rounds.length) {
    console.log(`Only ${last} of ${rounds.length} rounds fit into ${budgetMinutes} minutes`);
  }
  return { samples, seconds: lengths };
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
