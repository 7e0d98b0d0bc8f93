import assert from "node:assert/strict";
import { compare, deal, differs } from "./compare.ts";
import type { Metric, RunResult, Sample } from "./result.ts";
import { UNMEASURED } from "./unmeasured.ts";

const SPEED: Metric = { name: "speed", label: "speed", unit: "/s", better: "more" };

function sample(program: string, speed: number): Sample {
  return { program, round: 1, numbers: { speed }, faults: [] };
}

/** A run in which each work's ratio to the only peer is the one given. */
function run(ratios: Record<string, number>): RunResult {
  return {
    ...UNMEASURED,
    works: Object.entries(ratios).map(([name, ratio]) => ({
      name,
      title: name,
      metrics: [SPEED],
      samples: [sample("ours", ratio), sample("peer", 1)],
    })),
  };
}

Deno.test("compare: the ratios of the works that both runs have", () => {
  const rows = compare(run({ a: 2, b: 1, c: 0 }), run({ c: 0, a: 1, d: 5 }));
  assert.deepEqual(rows, [
    { work: "a", metric: "speed", first: 2, second: 1, difference: -0.5 },
    { work: "c", metric: "speed", first: 0, second: 0, difference: 0 },
  ]);
});

Deno.test("deal: each run has the even rounds of one and the odd of the other", () => {
  const rounds = (ratio: number): RunResult => {
    const one = run({ a: ratio });
    const twice = one.works.map((work) => ({
      ...work,
      samples: [1, 2].flatMap((round) => work.samples.map((sample) => ({ ...sample, round }))),
    }));
    return { ...one, works: twice };
  };
  const [first, second] = deal(rounds(2), rounds(6));
  const [row] = compare(first, second);
  assert.deepEqual([row?.first, row?.second], [4, 4]);
  const ours = first.works[0]?.samples.filter(({ program }) => program === "ours");
  assert.deepEqual(ours?.map(({ round, numbers }) => [round, numbers.speed]), [[2, 2], [1, 6]]);
});

Deno.test("differs: more than a tenth, either way", () => {
  const far = (first: number, second: number) =>
    compare(run({ a: first }), run({ a: second })).map(differs);
  assert.deepEqual(far(1, 1.09), [false]);
  assert.deepEqual(far(1, 1.11), [true]);
  assert.deepEqual(far(1, 0.91), [false]);
  assert.deepEqual(far(1, 0.89), [true]);
  assert.deepEqual(far(0, 0.1), [true]);
});
