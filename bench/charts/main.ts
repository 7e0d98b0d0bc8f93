/**
 * Draws a run's result: `deno run -A bench/charts/main.ts RESULT.json DIRECTORY` writes one SVG a chart.
 */

import * as vega from "vega";
import { compile, type TopLevelSpec } from "vega-lite";
import type { Metric, RunResult, WorkResult } from "../result.ts";
import { formatNumber } from "../report.ts";
import { NO_PROXY, OURS, programsOf, ratioToBestPeer, summaryOf } from "../summary.ts";
import { eachCoreTable, fairTable } from "../tables.ts";
import { COST } from "../works.ts";

/** One small picture: a work by one of its metrics. */
interface Panel {
  readonly title: string;
  readonly work: string;
  /** The metric's name. */
  readonly metric: string;
}

interface Chart {
  readonly file: string;
  /** Of one-threaded programs. */
  readonly eachCore?: boolean;
  readonly title: string;
  readonly subtitle: string;
  readonly columns: number;
  readonly panels: readonly Panel[];
}

const COLOURS = { ours: "#0f766e", peer: "#94a3b8", none: "#e2e8f0" };
const INK = { strong: "#0f172a", weak: "#475569" };
const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
/** Of one panel's bars, in pixels. */
const PANEL = { width: 250, row: 20 };

const SPAN = "Bars: median of the rounds. Lines: lowest to highest round.";
const FAULTY = "†: with faults, see the table.";

const CHARTS: readonly Chart[] = [
  {
    file: "throughput.svg",
    title: "Throughput, a thread on each of two cores, which the load shares",
    subtitle: `More is better. ${SPAN}`,
    columns: 2,
    panels: [
      { title: "TCP bulk each way, 50 connections", work: "bulk-50", metric: "each_way_gbit" },
      { title: "New TCP connections", work: "rate-32", metric: "per_second" },
      { title: "TCP ping-pong, 32 connections", work: "pingpong-32", metric: "per_second" },
      { title: "TCP bulk each way, 4 connections", work: "bulk-4", metric: "each_way_gbit" },
      { title: "UDP into a sink, 16 clients", work: "sink-16-200", metric: "delivered_per_second" },
      { title: "UDP echo, 16 clients", work: "echo-16-200", metric: "returned_per_second" },
    ],
  },
  {
    file: "cpu.svg",
    title: "Processor time of the proxy, user and system, all its processes",
    subtitle: `Less is better. ${SPAN}`,
    columns: 2,
    panels: [
      { title: "TCP bulk, 50 connections", work: "bulk-50", metric: COST },
      { title: "New TCP connections", work: "rate-32", metric: COST },
      { title: "TCP ping-pong, 32 connections", work: "pingpong-32", metric: COST },
      { title: "TCP bulk, 4 connections", work: "bulk-4", metric: COST },
      { title: "UDP into a sink, 16 clients", work: "sink-16-200", metric: COST },
      { title: "UDP echo at 150,000/s", work: "echo-16-200-150k", metric: COST },
    ],
  },
  {
    file: "each-core.svg",
    eachCore: true,
    title: "One thread each: throughput, and processor time of the proxy",
    subtitle: `Left: more is better. Right: less is better. ${SPAN}`,
    columns: 2,
    panels: [
      { title: "TCP bulk each way, 4 connections", work: "bulk-4", metric: "each_way_gbit" },
      { title: "TCP bulk, 4 connections", work: "bulk-4", metric: COST },
      { title: "New TCP connections", work: "rate-32", metric: "per_second" },
      { title: "New TCP connections", work: "rate-32", metric: COST },
      { title: "TCP ping-pong, 32 connections", work: "pingpong-32", metric: "per_second" },
      { title: "TCP ping-pong, 32 connections", work: "pingpong-32", metric: COST },
    ],
  },
  {
    file: "open.svg",
    title: "Ping-pong on 10 connections, by how many are open, and memory",
    subtitle: `Rate: more is better. CPU and memory: less is better. ${SPAN}`,
    columns: 3,
    panels: [
      ...[10, 1000, 7000].map((open) => ({
        title: `Rate, ${formatNumber(open)} open`,
        work: `open-${open}`,
        metric: "per_second",
      })),
      ...[10, 1000, 7000].map((open) => ({
        title: `CPU, ${formatNumber(open)} open`,
        work: `open-${open}`,
        metric: COST,
      })),
      { title: "Memory, one thread", work: "memory", metric: "one_mb" },
      { title: "Memory, a second thread adds", work: "memory", metric: "further_mb" },
      { title: "Idle connections, memory", work: "idle", metric: "kib_per_connection" },
    ],
  },
  {
    file: "udp.svg",
    title: "UDP, PROXY header on every datagram, 200 bytes",
    subtitle: `More is better. ${SPAN}`,
    columns: 3,
    panels: [
      ...[1, 16, 512].map((clients) => ({
        title: `Flood into a sink, clients: ${clients}`,
        work: `sink-${clients}-200`,
        metric: "delivered_per_second",
      })),
      ...[1, 16, 512].map((clients) => ({
        title: `Flood, replies returned, clients: ${clients}`,
        work: `echo-${clients}-200`,
        metric: "returned_per_second",
      })),
    ],
  },
  {
    file: "latency.svg",
    title: "How long it takes",
    subtitle: `Less is better. ${SPAN}`,
    columns: 2,
    panels: [
      { title: "New connection, 1 at once, p50", work: "rate-1", metric: "p50_us" },
      { title: "New connection, 32 at once, p99", work: "rate-32", metric: "p99_us" },
      { title: "Ping-pong, 32 connections, p99.9", work: "pingpong-32", metric: "p999_us" },
      { title: "The same in a storm, p99.9", work: "pingpong-32-storm", metric: "p999_us" },
      { title: "UDP echo at 50,000/s, p99", work: "echo-16-200-50k", metric: "p99_us" },
      { title: "Start to first accept", work: "startup", metric: "accepted_ms" },
    ],
  },
];

/** The panels of a chart that the result has something for, as one specification. */
function barChart(chart: Chart, result: RunResult): TopLevelSpec | undefined {
  const panels = chart.panels.flatMap((panel) => {
    const work = result.works.find(({ name }) => name === panel.work);
    const metric = work?.metrics.find(({ name }) => name === panel.metric);
    return work === undefined || metric === undefined ? [] : bars(panel, work, metric, result);
  });
  if (panels.length === 0) return undefined;
  return {
    ...frame(chart.title, [chart.subtitle, FAULTY]),
    columns: chart.columns,
    concat: panels,
  } as TopLevelSpec;
}

function bars(panel: Panel, work: WorkResult, metric: Metric, result: RunResult): object[] {
  const order = result.programs.map(({ name }) => name);
  const values = programsOf(work, order).flatMap((program) => {
    const summary = summaryOf(work, program, metric);
    if (summary === undefined) return [];
    const kind = program === OURS ? "ours" : program === NO_PROXY ? "none" : "peer";
    const faulty = work.samples.some((sample) =>
      sample.program === program && sample.faults.length > 0
    );
    const label = `${formatNumber(summary.median)}${faulty ? " †" : ""}`;
    return [{ program, kind, ...summary, label }];
  });
  if (values.length === 0) return [];
  const most = Math.max(...values.map(({ max }) => max));
  const y = { field: "program", type: "nominal", sort: null, title: null };
  // Room at the right end for the numbers.
  const scale = { domain: [0, most * 1.28], nice: false };
  const labelExpr = "datum.value < 1000 ? datum.value : format(datum.value, '~s')";
  const axis = { title: null, tickCount: 4, labelExpr };
  return [{
    title: {
      text: `${panel.title}, ${metric.unit}`,
      fontSize: 12,
      fontWeight: 600,
      anchor: "start",
    },
    width: PANEL.width,
    height: { step: PANEL.row },
    data: { values },
    encoding: { y },
    layer: [
      {
        mark: { type: "bar", height: 13 },
        encoding: {
          x: { field: "median", type: "quantitative", scale, axis },
          color: {
            field: "kind",
            type: "nominal",
            legend: null,
            scale: { domain: Object.keys(COLOURS), range: Object.values(COLOURS) },
          },
        },
      },
      {
        mark: { type: "rule", color: INK.strong, opacity: 0.6 },
        encoding: { x: { field: "min", type: "quantitative" }, x2: { field: "max" } },
      },
      {
        mark: { type: "text", align: "left", dx: 5, fontSize: 11, color: INK.strong },
        encoding: {
          x: { field: "max", type: "quantitative" },
          text: { field: "label", type: "nominal" },
        },
      },
    ],
  }];
}

/** A long label in two lines of about the same length. */
function wrapped(label: string): string[] {
  if (label.length <= 50) return [label];
  const middle = label.lastIndexOf(" ", label.length / 2 + 6);
  return [label.slice(0, middle), label.slice(middle + 1)];
}

/**
 * Every work's ratio to the best peer, round by round: the median, and all rounds as a line. Not
 * the start and the memory of a thread, which are to be small enough and no race.
 */
function ratioChart(result: RunResult): TopLevelSpec | undefined {
  const works = result.works.filter(({ name }) => name !== "startup" && name !== "memory");
  const values = works.flatMap((work) =>
    work.metrics.filter((metric, index) => index === 0 || metric.name === COST).flatMap(
      (metric) => {
        const ratio = ratioToBestPeer(work, metric);
        if (ratio === undefined) return [];
        // Above 1 is ahead, whichever way the metric counts.
        const ahead = metric.better === "more"
          ? ratio
          : { median: 1 / ratio.median, min: 1 / ratio.max, max: 1 / ratio.min };
        const { median, min, max } = ahead;
        const kind = metric.name === COST ? "CPU time" : "the work itself";
        return [{ work: work.title, kind, median, min, max, label: `${median.toFixed(2)}×` }];
      },
    )
  );
  if (values.length === 0) return undefined;
  // Vega cuts what it thinks too wide, and thinks so soon.
  const lines = Object.fromEntries(values.map(({ work }) => [work, wrapped(work)]));
  const axis = { labelExpr: `${JSON.stringify(lines)}[datum.label]` };
  const y = { field: "work", type: "nominal", sort: null, title: null, axis };
  const offset = { field: "kind", sort: null };
  const colour = {
    field: "kind",
    type: "nominal",
    title: null,
    scale: { domain: ["the work itself", "CPU time"], range: [COLOURS.ours, "#b45309"] },
    legend: { orient: "top" },
  };
  const scale = { type: "log", domain: [0.25, 16], clamp: true };
  return {
    ...frame(
      "How many times better than the best peer, round by round",
      ["1 is equal, more is better. Points: median of the rounds. Lines: lowest to highest round."],
    ),
    data: { values },
    width: 460,
    height: { step: 13 },
    encoding: { y, yOffset: offset, color: colour },
    layer: [
      {
        data: { values: [{ equal: 1 }] },
        mark: { type: "rule", color: INK.weak, strokeDash: [4, 3] },
        encoding: {
          x: { field: "equal", type: "quantitative" },
          y: null,
          yOffset: null,
          color: null,
        },
      },
      {
        mark: { type: "rule", strokeWidth: 2, opacity: 0.5 },
        encoding: {
          x: {
            field: "min",
            type: "quantitative",
            scale,
            axis: { title: null, values: [0.25, 0.5, 1, 2, 4, 8, 16], format: "~g" },
          },
          x2: { field: "max" },
        },
      },
      {
        mark: { type: "point", filled: true, size: 50, opacity: 1 },
        encoding: { x: { field: "median", type: "quantitative" } },
      },
      {
        mark: { type: "text", align: "left", dx: 7, fontSize: 10 },
        encoding: {
          x: { field: "max", type: "quantitative" },
          text: { field: "label", type: "nominal" },
        },
      },
    ],
  } as TopLevelSpec;
}

function frame(title: string, subtitle: string[]) {
  return {
    background: "white",
    padding: 16,
    title: {
      text: title,
      subtitle,
      anchor: "start" as const,
      fontSize: 16,
      subtitleFontSize: 12,
      subtitlePadding: 4,
      offset: 14,
      color: INK.strong,
      subtitleColor: INK.weak,
    },
    config: {
      font: FONT,
      view: { stroke: null },
      axis: {
        labelColor: INK.weak,
        labelFontSize: 11,
        domain: false,
        ticks: false,
        gridColor: "#f1f5f9",
      },
      axisY: { labelColor: INK.strong, grid: false, labelLimit: 500 },
    },
  };
}

async function draw(spec: TopLevelSpec): Promise<string> {
  return await new vega.View(vega.parse(compile(spec).spec), { renderer: "none" }).toSVG();
}

if (import.meta.main) {
  const [source, directory] = Deno.args;
  if (source === undefined || directory === undefined) {
    console.error("Usage: deno run -A bench/charts/main.ts RESULT.json DIRECTORY");
    Deno.exit(2);
  }
  const read: RunResult = JSON.parse(await Deno.readTextFile(source));
  const [result, eachCore] = [fairTable(read), eachCoreTable(read)];
  const specs = [
    ...CHARTS.map((chart) =>
      [chart.file, barChart(chart, chart.eachCore ? eachCore : result)] as const
    ),
    ["ratios.svg", ratioChart(result)] as const,
  ];
  await Deno.mkdir(directory, { recursive: true });
  for (const [file, spec] of specs) {
    if (spec === undefined) {
      console.log(`Left ${file} out: the result has nothing for it`);
      continue;
    }
    await Deno.writeTextFile(`${directory}/${file}`, `${await draw(spec)}\n`);
    console.log(`Drew ${directory}/${file}`);
  }
}
