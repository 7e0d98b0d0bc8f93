/** A run's result as Markdown, which reads well in a terminal, too. */

import type { Metric, RunResult, Sample, WorkResult } from "./result.ts";
import type { Summary } from "./statistics.ts";
import { bestPeer, foreignShare, programsOf, ratioTo, summaryOf, total } from "./summary.ts";
import { eachCoreTable, fairTable } from "./tables.ts";
import { COST } from "./works.ts";

/** Counters that are shown when any program of a work has them. */
const COUNTERS = {
  rcvq_drops: "receive-queue drops",
  retransmits: "retransmits",
  listen_drops: "listen drops",
  udp_rcvbuf_errors: "UDP buffer errors",
  load_drops: "of them at the load",
} as const;

/**
 * All of it: how it was measured, both tables of the TCP works, and a table for each work.
 *
 * @param judged what stands between the two, with its heading.
 */
export function report(result: RunResult, ...judged: readonly string[]): string {
  const [fair, eachCore] = [fairTable(result), eachCoreTable(result)];
  const works = fair.works.filter(({ samples }) => samples.length > 0);
  return [
    preamble(result),
    ...overview(
      "## As many threads as processors",
      fair,
      (summary) => formatNumber(summary.median),
    ),
    ...overview("## One thread each", eachCore, formatSpan),
    ...judged,
    "## All works",
    ...works.map((work) => section(work, fair)),
  ].join("\n\n");
}

/** The TCP works by what they are ranked by and by their cost, a program in each column. */
function overview(
  title: string,
  { works, programs }: RunResult,
  format: (summary: Summary) => string,
): string[] {
  const names = programs.map(({ name }) => name).filter((name) =>
    works.some((work) => work.protocol === "tcp" && programsOf(work, [name]).length > 0)
  );
  const rows = works.filter(({ protocol }) => protocol === "tcp").flatMap((work) =>
    work.metrics.filter(({ name }, index) => index === 0 || isShown(name)).map((metric, index) => [
      index === 0 ? `\`${work.name}\`` : "",
      `${metric.label}, ${metric.unit}`,
      ...names.map((name) => cell(work, name, metric, format)),
      ratioCell(work, metric),
    ])
  );
  return rows.length === 0 ? [] : [
    title,
    table(["work", "", ...names, "ours / best peer"], rows),
    ...rows.flat().some((cell) => cell.endsWith(MARK)) ? [FAULTY] : [],
  ];
}

/** Beside the metric that a work is ranked by. */
function isShown(name: string): boolean {
  return [COST, "further_mb", "rate_growth", "mib"].includes(name);
}

const MARK = "†";
const FAULTY = `${MARK}: with faults in at least one round, see the work's own table.`;

function cell(
  work: WorkResult,
  program: string,
  metric: Metric,
  format: (summary: Summary) => string,
): string {
  const summary = summaryOf(work, program, metric);
  const samples = work.samples.filter((sample) => sample.program === program);
  const mark = samples.some(({ faults }) => faults.length > 0) ? MARK : "";
  return summary === undefined ? mark : [format(summary), mark].join(" ").trim();
}

function ratioCell(work: WorkResult, metric: Metric): string {
  const peer = bestPeer(work, metric);
  const ratio = peer === undefined ? undefined : ratioTo(work, metric, peer);
  return ratio === undefined ? "" : `${formatRatio(ratio)} ${peer}`;
}

function preamble({ machine, settings, mode, minutes, started, programs }: RunResult): string {
  const versions = programs.filter(({ table }) => table !== "each core")
    .flatMap(({ name, version }) => version ? [`${name} ${version}`] : []);
  return [
    `${started}, ${mode}, ${settings.rounds} rounds of ${formatSeconds(settings.seconds)} s, ` +
    `${minutes.toFixed(1)} minutes`,
    `${machine.cores} cores (${machine.processor}), ${machine.memoryGiB} GiB, ` +
    `Linux ${machine.kernel}, load before ${machine.loadBefore}`,
    `TCP: ${settings.sysctls["net.ipv4.tcp_congestion_control"]}, PROXY ${settings.tcpHeader}, ` +
    `over ${settings.ipv6 ? "IPv6" : "IPv4"}, ` +
    `as ${settings.privilege}. ` +
    versions.join(", "),
  ].join("  \n");
}

function formatSeconds(seconds: number | readonly number[]): string {
  const lengths = [seconds].flat();
  const [least, most] = [Math.min(...lengths), Math.max(...lengths)];
  return least === most ? `${least}` : `${least}–${most}`;
}

/** The table of one work. */
export function section(work: WorkResult, { programs }: Pick<RunResult, "programs">): string {
  const names = programsOf(work, programs.map(({ name }) => name));
  const counters = Object.entries(COUNTERS)
    .filter(([counter]) => names.some((name) => total(work, name, counter) > 0));
  const head = [
    "program",
    ...work.metrics.map(({ label, unit }) => `${label}, ${unit}`),
    ...counters.map(([, label]) => label),
    "faults",
  ];
  const rows = names.map((name) => [
    name,
    ...work.metrics.map((metric) => formatSummary(summaryOf(work, name, metric))),
    ...counters.map(([counter]) => formatNumber(total(work, name, counter))),
    faults(work.samples.filter((sample) => sample.program === name)),
  ]);
  const cells = work.metrics.map((metric) => ratioCell(work, metric));
  if (cells.some((cell) => cell !== "")) {
    rows.push(["ours / best peer", ...cells, ...counters.map(() => ""), ""]);
  }
  const others = foreignShare(work);
  const note = others > 0.1
    ? [`Other programs used up to ${Math.round(others * 100)} % of the machine during this time.`]
    : [];
  return [`### ${work.title} (\`${work.name}\`)`, table(head, rows), ...note].join("\n\n");
}

/** One line that says what a sample brought. */
export function line(sample: Sample, metrics: readonly Metric[]): string {
  const values = metrics.flatMap(({ name, label, unit }) => {
    const value = sample.numbers[name];
    return value === undefined ? [] : [`${label} ${formatNumber(value)} ${unit}`];
  });
  return [...values, ...sample.faults.map((fault) => `FAULT ${fault}`)].join(", ");
}

function faults(samples: readonly Sample[]): string {
  const faulty = samples.filter((sample) => sample.faults.length > 0);
  const first = faulty[0]?.faults[0];
  if (first === undefined) return "none";
  return `${faulty.length} of ${samples.length}: ${first.replaceAll(/\s+/g, " ").slice(0, 80)}`;
}

function formatSummary(summary: Summary | undefined): string {
  return summary === undefined ? "" : formatSpan(summary);
}

function formatSpan({ median, min, max }: Summary): string {
  return `${formatNumber(median)} (${formatNumber(min)}–${formatNumber(max)})`;
}

function formatRatio({ median, min, max }: Summary): string {
  const [middle, low, high] = [median, min, max].map((ratio) => ratio.toFixed(2));
  return `${middle} (${low}–${high})`;
}

/** Three digits that matter, thousands with commas. */
export function formatNumber(value: number): string {
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  if (Number.isInteger(value)) return `${value}`;
  return `${Number(value.toPrecision(3))}`;
}

/** A Markdown table, its columns lined up. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((cell, column) =>
    Math.max(cell.length, ...rows.map((row) => row[column]?.length ?? 0))
  );
  const format = (cells: readonly string[]) =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`;
  const rule = `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`;
  return [format(head), rule, ...rows.map(format)].join("\n");
}
