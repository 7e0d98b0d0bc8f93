import assert from "node:assert/strict";
import { judge } from "./goals.ts";
import type { RunResult, Sample } from "./result.ts";

/** A run of connections, with the rates of each round; a one-threaded peer is better than all. */
function run(ours: number[], haproxy: number[], failed: number): RunResult {
  const samples = (program: string, rates: number[]): Sample[] =>
    rates.map((rate, round) => ({
      program,
      round: round + 1,
      numbers: { per_second: rate, failed: program === "ours" ? failed : 0 },
      faults: [],
    }));
  const metrics = [{ name: "per_second", label: "rate", unit: "/s", better: "more" as const }];
  const works = [{
    name: "rate-32",
    title: "",
    metrics,
    samples: [
      ...samples("ours", ours),
      ...samples("haproxy", haproxy),
      ...samples("haproxy-1", haproxy.map((rate) => rate * 2)),
    ],
  }];
  const programs = [
    { name: "ours" },
    { name: "haproxy", table: "fair" },
    { name: "haproxy-1", table: "each core" },
  ];
  return { works, programs } as unknown as RunResult;
}

Deno.test("judge: a ratio is the median of the rounds', and its goal stands beside it", () => {
  const [rate, failed, ...others] = judge(run([140, 300, 150], [100, 200, 100], 0));
  assert.deepEqual(others, []);
  assert.equal(rate?.goal, "≥ 1.2 × best peer");
  assert.equal(rate?.found, "1.50 (1.40–1.50)");
  assert.equal(rate?.reached, true);
  assert.equal(failed?.reached, true);
});

Deno.test("judge: what falls short, or fails once in all rounds, is not reached", () => {
  const [rate, failed] = judge(run([119, 119, 119], [100, 100, 100], 1));
  assert.equal(rate?.reached, false);
  assert.equal(failed?.found, "3.00");
  assert.equal(failed?.reached, false);
});

Deno.test("judge: a goal against one peer, whoever is the best", () => {
  const sample = (program: string, each_way_gbit: number): Sample => ({
    program,
    round: 1,
    numbers: { each_way_gbit },
    faults: [],
  });
  const result = {
    programs: [],
    works: [{
      name: "bulk-4",
      title: "",
      metrics: [{ name: "each_way_gbit", label: "", unit: "", better: "more" }],
      samples: [sample("ours", 33), sample("mmproxy-rs", 30), sample("nginx", 40)],
    }],
  } as unknown as RunResult;
  const [bulk, worst] = judge(result);
  assert.equal(bulk?.goal, "≥ 1 × mmproxy-rs");
  assert.equal(bulk?.found, "1.10 (1.10–1.10)");
  assert.equal(worst?.goal, "≥ 0.85");
});

Deno.test("judge: a second worker's memory has a goal of its own", () => {
  const metrics = ["one_mb", "further_mb"].map((name) => ({
    ...{ name, label: "", unit: "MB", better: "less" },
  }));
  const numbers = { one_mb: 59, further_mb: 7 };
  const samples = [{ program: "ours", round: 1, numbers, faults: [] }];
  const works = [{ name: "memory", title: "", metrics, samples }];
  const judged = judge({ programs: [], works } as unknown as RunResult);
  assert.deepEqual(judged.map(({ goal, reached }) => [goal, reached]), [
    ["≤ 60", true],
    ["≤ 6", false],
  ]);
});
