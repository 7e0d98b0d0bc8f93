/**
 * Says whether two runs tell the same: each row's ratio to the best peer in both.
 * `deno run -A bench/compare.ts [--dealt] A.json B.json`
 */

import { table } from "./report.ts";
import type { RunResult } from "./result.ts";
import { ratioToBestPeer } from "./summary.ts";
import { fairTable } from "./tables.ts";

/** A larger difference between the runs is pointed out. */
export const LIMIT = 0.1;

/** The same row of two runs. */
export interface Row {
  readonly work: string;
  readonly metric: string;
  /** Ours to the best peer, the median of the rounds. */
  readonly first: number;
  readonly second: number;
  /** How far the second is from the first, as a part of the first; below 0 when it is less. */
  readonly difference: number;
}

/** The rows of the fair table for which both runs have a ratio. */
export function compare(first: RunResult, second: RunResult): Row[] {
  const others = fairTable(second).works;
  return fairTable(first).works.flatMap((work) => {
    const other = others.find(({ name }) => name === work.name);
    if (other === undefined) return [];
    return work.metrics.flatMap((metric) => {
      const [before, after] = [work, other].map((work) => ratioToBestPeer(work, metric)?.median);
      if (before === undefined || after === undefined) return [];
      const difference = before === after ? 0 : after / before - 1;
      return [{ work: work.name, metric: metric.label, first: before, second: after, difference }];
    });
  });
}

/**
 * Deals the rounds of two runs out alternately: two runs again, both of which have the even rounds of one
 * and the odd of the other, so that the machine was in the same moods for both.
 */
export function deal(first: RunResult, second: RunResult): [RunResult, RunResult] {
  const dealt = (even: RunResult, odd: RunResult): RunResult => ({
    ...even,
    works: even.works.map((work) => {
      const other = odd.works.find(({ name }) => name === work.name)?.samples ?? [];
      const samples = [
        ...work.samples.filter(({ round }) => round % 2 === 0),
        ...other.filter(({ round }) => round % 2 === 1),
      ];
      return { ...work, samples };
    }),
  });
  return [dealt(first, second), dealt(second, first)];
}

/** True for a row that tells another story in each run. */
export function differs({ difference }: Row): boolean {
  return Math.abs(difference) > LIMIT;
}

function describe(rows: readonly Row[]): string {
  const cells = rows.map((row) => [
    row.work,
    row.metric,
    row.first.toFixed(2),
    row.second.toFixed(2),
    `${row.difference < 0 ? "" : "+"}${(row.difference * 100).toFixed(0)} %`,
    differs(row) ? "differs" : "",
  ]);
  const head = ["work", "ours / best peer", "first", "second", "difference", ""];
  const far = rows.filter(differs).length;
  return `${table(head, cells)}\n\n` +
    `${far} of ${rows.length} rows differ by more than ${LIMIT * 100} %`;
}

function read(path: string): RunResult {
  return JSON.parse(Deno.readTextFileSync(path));
}

if (import.meta.main) {
  const dealt = Deno.args[0] === "--dealt";
  const [first, second, ...more] = dealt ? Deno.args.slice(1) : Deno.args;
  if (first === undefined || second === undefined || more.length > 0) {
    console.error("Usage: deno run -A bench/compare.ts [--dealt] A.json B.json");
    Deno.exit(2);
  }
  const runs: [RunResult, RunResult] = [read(first), read(second)];
  console.log(describe(compare(...(dealt ? deal(...runs) : runs))));
}
