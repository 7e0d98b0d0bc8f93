import assert from "node:assert/strict";
import { formatNumber, report, section } from "./report.ts";
import type { RunResult, WorkResult } from "./result.ts";
import { UNMEASURED } from "./unmeasured.ts";

Deno.test("formatNumber: three digits, or whole thousands", () => {
  assert.equal(formatNumber(12_345.6), "12,346");
  assert.equal(formatNumber(12.345), "12.3");
  assert.equal(formatNumber(0.012345), "0.0123");
  assert.equal(formatNumber(512), "512");
});

Deno.test("section: a row for each program, the ratio, and what went wrong", () => {
  const work: WorkResult = {
    name: "work",
    title: "Work",
    metrics: [{ name: "speed", label: "speed", unit: "/s", better: "more" }],
    samples: [
      { program: "ours", round: 1, numbers: { speed: 30, retransmits: 2 }, faults: [] },
      { program: "peer", round: 1, numbers: { speed: 20 }, faults: ["It fell", "It stalled"] },
    ],
  };
  const program = { version: "", command: "" };
  const programs = [{ name: "peer", ...program }, { name: "ours", ...program }];
  assert.deepEqual(section(work, { programs }).split("\n"), [
    "### Work (`work`)",
    "",
    "| program          | speed, /s             | retransmits | faults          |",
    "|------------------|-----------------------|-------------|-----------------|",
    "| peer             | 20 (20–20)            | 0           | 1 of 1: It fell |",
    "| ours             | 30 (30–30)            | 2           | none            |",
    "| ours / best peer | 1.50 (1.50–1.50) peer |             |                 |",
  ]);
});

Deno.test("report: TCP works beside peers with as many threads, then with one each", () => {
  const work: WorkResult = {
    name: "work",
    title: "Work",
    protocol: "tcp",
    metrics: [
      { name: "speed", label: "speed", unit: "/s", better: "more" },
      { name: "p50_us", label: "p50", unit: "µs", better: "less" },
      { name: "cpu_per_operation", label: "CPU", unit: "µs", better: "less" },
    ],
    samples: [
      ["ours", 30],
      ["ours-1", 10],
      ["peer", 20],
      ["peer-1", 20],
    ].map(([program, speed]) => ({
      program: String(program),
      round: 1,
      numbers: { speed: Number(speed), p50_us: 1, cpu_per_operation: 2 },
      faults: program === "peer" ? ["It fell"] : [],
    })),
  };
  const result: RunResult = {
    ...UNMEASURED,
    programs: ["ours", "ours-1", "peer", "peer-1"].map((name) => ({
      name,
      version: "",
      command: "",
      table: name.endsWith("-1") ? "each core" as const : "fair" as const,
    })),
    works: [work, { ...work, name: "udp", protocol: "udp" }],
  };
  const lines = report(result).split("\n");
  const after = (heading: string) => lines.slice(lines.indexOf(heading) + 2).slice(0, 4);
  assert.deepEqual(after("## As many threads as processors"), [
    "| work   |           | ours | peer | ours / best peer      |",
    "|--------|-----------|------|------|-----------------------|",
    "| `work` | speed, /s | 30   | 20 † | 1.50 (1.50–1.50) peer |",
    "|        | CPU, µs   | 2    | 2 †  | 1.00 (1.00–1.00) peer |",
  ]);
  assert.deepEqual(after("## One thread each"), [
    "| work   |           | ours       | peer       | ours / best peer      |",
    "|--------|-----------|------------|------------|-----------------------|",
    "| `work` | speed, /s | 10 (10–10) | 20 (20–20) | 0.50 (0.50–0.50) peer |",
    "|        | CPU, µs   | 2 (2–2)    | 2 (2–2)    | 1.00 (1.00–1.00) peer |",
  ]);
});
