import assert from "node:assert/strict";
import { formatNumber, section } from "./report.ts";
import type { WorkResult } from "./result.ts";

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
