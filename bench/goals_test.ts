import assert from "node:assert/strict";
import { judge } from "./goals.ts";
import type { RunResult, Sample } from "./result.ts";

/** A run of connections, with the rates of each round. */
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
    samples: [...samples("ours", ours), ...samples("haproxy", haproxy)],
  }];
  return { works } as unknown as RunResult;
}

Deno.test("judge: a ratio is the median of the rounds', and its goal stands beside it", () => {
  const [rate, failed, ...others] = judge(run([140, 300, 150], [100, 200, 100], 0));
  assert.deepEqual(others, []);
  assert.equal(rate?.goal, "≥ 1.4 × best peer");
  assert.equal(rate?.found, "1.50 (1.40–1.50)");
  assert.equal(rate?.reached, true);
  assert.equal(failed?.reached, true);
});

Deno.test("judge: what falls short, or fails once in all rounds, is not reached", () => {
  const [rate, failed] = judge(run([139, 139, 139], [100, 100, 100], 1));
  assert.equal(rate?.reached, false);
  assert.equal(failed?.found, "3.00");
  assert.equal(failed?.reached, false);
});
