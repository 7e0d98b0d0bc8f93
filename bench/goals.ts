/**
 * What this program is to reach, and what a run says of it. As Markdown, with all tables of the run, in
 * the order of docs/performance.md:
 * `deno run -A bench/goals.ts RESULT.json`
 */

import { report, table } from "./report.ts";
import type { Metric, RunResult, Sample, WorkResult } from "./result.ts";
import { summarize, type Summary } from "./statistics.ts";
import { OURS, ratioTo, ratioToBestPeer } from "./summary.ts";
import { fairTable } from "./tables.ts";
import { COST } from "./works.ts";

/** One thing to reach. */
interface Goal {
  readonly work: string;
  /** Among the work's metrics; a counter's name for a total. */
  readonly metric: string;
  readonly title: string;
  readonly against: Against;
  readonly limit: number;
}

type Against =
  /** The median of the rounds' ratios to the best peer of the fair table. */
  | "best peer"
  /** The same to one peer. */
  | "nginx"
  | "mmproxy-rs"
  /** Our worst round, as a part of our median. */
  | "worst round"
  /** Our median itself. */
  | "number"
  /** Our sum over all rounds. */
  | "total";

/** Whether a goal was reached, and the measurement that shows it. */
export interface Judgement {
  readonly title: string;
  readonly goal: string;
  readonly found: string;
  readonly reached: boolean;
}

function goal(work: string, metric: string, title: string, limit: number, against: Against): Goal {
  return { work, metric, title, limit, against };
}

const GOALS: readonly Goal[] = [
  goal("bulk-50", "each_way_gbit", "bulk, 50 connections", 1.3, "best peer"),
  goal("bulk-50", COST, "… CPU a byte", 0.5, "best peer"),
  goal("bulk-50", "each_way_gbit", "… worst round", 0.85, "worst round"),
  goal("bulk-4", "each_way_gbit", "bulk, 4 connections", 1, "mmproxy-rs"),
  goal("bulk-4", COST, "… CPU a byte", 0.55, "nginx"),
  goal("bulk-4", "each_way_gbit", "… worst round", 0.85, "worst round"),
  goal("rate-32", "per_second", "new connections, 32 at once", 1.2, "best peer"),
  goal("rate-32", COST, "… CPU a connection", 0.75, "best peer"),
  goal("rate-32", "failed", "… failed", 0, "total"),
  goal("rate-1", "p50_us", "set-up, 1 at once, p50", 0.85, "best peer"),
  goal("pingpong-32", "per_second", "ping-pong, 32 connections", 1.1, "best peer"),
  goal("pingpong-32", "p999_us", "… p99.9", 1, "best peer"),
  goal("pingpong-32-storm", "p999_us", "… p99.9 in a storm of headers", 1, "best peer"),
  goal("sink-1-200", "delivered_per_second", "UDP sink, 1 client", 3, "best peer"),
  goal("sink-1-200", COST, "… CPU a datagram", 0.25, "best peer"),
  goal("sink-16-200", "delivered_per_second", "UDP sink, 16 clients", 3, "best peer"),
  goal("sink-16-200", COST, "… CPU a datagram", 0.3, "best peer"),
  goal("sink-512-200", "delivered_per_second", "UDP sink, 512 clients", 2.2, "best peer"),
  goal("sink-512-200", COST, "… CPU a datagram", 0.45, "best peer"),
  goal("echo-1-200", "returned_per_second", "UDP echo, 1 client", 2, "best peer"),
  goal("echo-16-200", "returned_per_second", "UDP echo, 16 clients", 1.7, "best peer"),
  goal("echo-512-200", "returned_per_second", "UDP echo, 512 clients", 1.4, "best peer"),
  goal("echo-512-200", "lost_replies", "… lost replies", 0, "total"),
  goal("echo-16-200-50k", COST, "UDP echo at 50,000/s, CPU", 0.55, "best peer"),
  goal("echo-16-200-150k", COST, "UDP echo at 150,000/s, CPU", 0.55, "best peer"),
  goal("echo-16-200-150k", "lost_share", "… lost", 0, "number"),
  goal("idle", "kib_per_connection", "idle connection, memory", 0.25, "best peer"),
  goal("startup", "accepted_ms", "start to first accept, ms", 50, "number"),
  goal("memory", "one_mb", "one worker, resident, MB", 60, "number"),
  goal("memory", "further_mb", "… each further one, MB", 6, "number"),
];

/** What a run says of each goal; those of works that it did not measure are left out. */
export function judge(result: RunResult): Judgement[] {
  const { works } = fairTable(result);
  return GOALS.flatMap((goal) => {
    const work = works.find(({ name }) => name === goal.work);
    const found = work && find(goal, work);
    if (!work || !found) return [];
    const more = goal.against === "worst round" ||
      metricOf(work, goal.metric)?.better === "more";
    const value = goal.against === "worst round" ? found.min / found.median : found.median;
    const ratio = ["best peer", "nginx", "mmproxy-rs"].includes(goal.against);
    return [{
      title: goal.title,
      goal: `${more ? "≥" : "≤"} ${goal.limit}${ratio ? ` × ${goal.against}` : ""}`,
      found: ratio ? `${short(value)} (${short(found.min)}–${short(found.max)})` : short(value),
      reached: more ? value >= goal.limit : value <= goal.limit,
    }];
  });
}

function find({ metric, against }: Goal, work: WorkResult): Summary | undefined {
  const measured = metricOf(work, metric);
  const ours = numbers(work.samples.filter(({ program }) => program === OURS), metric);
  switch (against) {
    case "best peer":
      return measured && ratioToBestPeer(work, measured);
    case "nginx":
    case "mmproxy-rs":
      return measured && ratioTo(work, measured, against);
    case "total":
      return ours.length === 0 ? undefined : summarize([ours.reduce((sum, one) => sum + one)]);
    default:
      return summarize(ours);
  }
}

function numbers(samples: readonly Sample[], metric: string): number[] {
  return samples.flatMap((sample) => sample.numbers[metric] ?? []);
}

function metricOf({ metrics }: WorkResult, name: string): Metric | undefined {
  return metrics.find((metric) => metric.name === name);
}

function short(value: number): string {
  return value >= 10 ? value.toFixed(0) : value.toFixed(2);
}

/** The judgements as a table. */
export function goalsTable(judgements: readonly Judgement[]): string {
  const rows = judgements.map(({ title, goal, found, reached }) => [
    title,
    goal,
    found,
    reached ? "reached" : "**not reached**",
  ]);
  return table(["work", "goal", "found", ""], rows);
}

if (import.meta.main) {
  const [path, ...more] = Deno.args;
  if (path === undefined || more.length > 0) {
    console.error("Usage: deno run -A bench/goals.ts RESULT.json");
    Deno.exit(2);
  }
  const result: RunResult = JSON.parse(Deno.readTextFileSync(path));
  console.log(report(result, "## Against the goals", goalsTable(judge(result))));
}
