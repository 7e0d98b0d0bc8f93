/** Programs that an upgrade has started: they are not children of the test. */

import type { Program } from "./program.ts";
import { eventually } from "./time.ts";

/** Ends, at the end of its scope, whatever a program and those after it have started. */
export class Successors implements AsyncDisposable {
  constructor(readonly program: Pick<Program, "all">) {}

  /** Waits until a process has ended by itself. */
  async ended(process: number, ms?: number): Promise<void> {
    await eventually(() => !runs(process), `end of process ${process}`, ms);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { value } of this.program.all("upgrading")) {
      if (value === undefined || !runs(value)) continue;
      Deno.kill(value, "SIGKILL");
      await this.ended(value);
    }
  }
}

/** Whether a process is there, and more than a zombie. */
export function runs(process: number): boolean {
  try {
    const stat = Deno.readTextFileSync(`/proc/${process}/stat`);
    return !/\) Z /.test(stat);
  } catch {
    return false;
  }
}

/** The processes below a process, through any number of generations. */
export function descendants(process: number): number[] {
  const parents = new Map<number, number>();
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = Deno.readTextFileSync(`/proc/${name}/stat`);
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]));
    } catch {
      // It has ended.
    }
  }
  const found: number[] = [];
  for (let at = -1, of = process; at < found.length; of = found[++at] ?? -1) {
    for (const [child, parent] of parents) if (parent === of) found.push(child);
  }
  return found;
}
