/** What a program and everything that it started cost: processor time and memory, from `/proc`. */

/** USER_HZ, the unit of the times in `/proc/PID/stat`: 100 on every Linux that Deno runs on. */
const TICKS_PER_SECOND = 100;

interface Stat {
  readonly parent: number;
  readonly ticks: number;
}

/** Fields of `/proc/PID/stat`; undefined when the process is gone. See proc_pid_stat(5). */
function readStat(pid: number): Stat | undefined {
  let text: string;
  try {
    text = Deno.readTextFileSync(`/proc/${pid}/stat`);
  } catch {
    return undefined;
  }
  // The name, field 2, may hold anything: count behind its closing bracket.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const [parent, user, system, childUser, childSystem] = [1, 11, 12, 13, 14]
    .map((index) => Number(fields[index]));
  const ticks = (user ?? 0) + (system ?? 0) + (childUser ?? 0) + (childSystem ?? 0);
  return { parent: parent ?? 0, ticks };
}

/** A process and all its descendants. */
export function processTree(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const parent = readStat(Number(name))?.parent;
    if (parent === undefined) continue;
    children.set(parent, [...children.get(parent) ?? [], Number(name)]);
  }
  const tree = [root];
  for (const pid of tree) tree.push(...children.get(pid) ?? []);
  return tree;
}

/** Processor time of some processes at one moment. */
export interface CpuTime {
  /** Nanoseconds on a processor by thread, of those that live. */
  readonly threads: ReadonlyMap<string, number>;
  /** User and system time in ticks, ended threads and children included. */
  readonly ticks: number;
}

/** Reads the processor time of a program and of everything that it started. */
export function readCpu(root: number): CpuTime {
  const threads = new Map<string, number>();
  let ticks = 0;
  for (const pid of processTree(root)) {
    ticks += readStat(pid)?.ticks ?? 0;
    try {
      for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
        const path = `/proc/${pid}/task/${name}/schedstat`;
        threads.set(`${pid}/${name}`, Number(Deno.readTextFileSync(path).split(" ")[0]));
      }
    } catch {
      // It ended meanwhile; its ticks count with its parent's.
    }
  }
  return { threads, ticks };
}

/**
 * Seconds of processor time between two readings: exact from the scheduler while no thread has
 * ended, otherwise in hundredths of a second.
 */
export function cpuSeconds(before: CpuTime, after: CpuTime): number {
  const ended = [...before.threads.keys()].some((thread) => !after.threads.has(thread));
  if (ended) return (after.ticks - before.ticks) / TICKS_PER_SECOND;
  let nanoseconds = 0;
  for (const [thread, time] of after.threads) {
    nanoseconds += time - (before.threads.get(thread) ?? 0);
  }
  return nanoseconds / 1e9;
}

/** Seconds that all processors of the machine were busy since its start, whoever kept them so. */
export function machineBusySeconds(): number {
  const line = Deno.readTextFileSync("/proc/stat").split("\n", 1)[0] ?? "";
  const [user, nice, system, _idle, _wait, irq, softirq] = line.trim().split(/\s+/).slice(1)
    .map(Number);
  const ticks = (user ?? 0) + (nice ?? 0) + (system ?? 0) + (irq ?? 0) + (softirq ?? 0);
  return ticks / TICKS_PER_SECOND;
}

/**
 * Memory of a program and of everything that it started, in KiB: with shared pages divided (`Pss`),
 * or counted for each process that has them (`Rss`).
 */
export function readMemory(root: number, kind: "Pss" | "Rss" = "Pss"): number {
  let total = 0;
  for (const pid of processTree(root)) {
    try {
      const text = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
      total += Number(new RegExp(`^${kind}:\\s+(\\d+) kB$`, "m").exec(text)?.[1] ?? 0);
    } catch {
      // It ended meanwhile.
    }
  }
  return total;
}

/** Ends a program and everything that it started, at once, and waits until it is gone. */
export async function killTree(child: Deno.ChildProcess): Promise<void> {
  for (const pid of processTree(child.pid)) {
    try {
      Deno.kill(pid, "SIGKILL");
    } catch {
      // It ended by itself.
    }
  }
  await child.status;
}
