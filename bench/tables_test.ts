import assert from "node:assert/strict";
import type { RunResult, Sample, WorkResult } from "./result.ts";
import { ratioToBestPeer } from "./summary.ts";
import { eachCoreTable, fairTable } from "./tables.ts";
import { UNMEASURED } from "./unmeasured.ts";

const RATE = { name: "per_second", label: "rate", unit: "/s", better: "more" } as const;

function sample(program: string, round: number, numbers: Sample["numbers"]): Sample {
  return { program, round, numbers, faults: [] };
}

function run(works: WorkResult[]): RunResult {
  const program = { version: "", command: "" };
  return {
    ...UNMEASURED,
    programs: [
      { name: "no proxy", ...program, table: "fair" },
      { name: "ours", ...program, table: "fair" },
      { name: "ours-1", ...program, table: "each core" },
      { name: "haproxy", ...program },
      { name: "haproxy-1", ...program, table: "each core" },
    ],
    works,
  };
}

const RUN = run([{
  name: "rate-32",
  title: "",
  protocol: "tcp",
  metrics: [RATE],
  samples: [
    sample("no proxy", 1, { per_second: 100 }),
    sample("ours", 1, { per_second: 30 }),
    sample("ours-1", 1, { per_second: 20 }),
    sample("haproxy", 1, { per_second: 20 }),
    sample("haproxy-1", 1, { per_second: 80 }),
  ],
}]);

Deno.test("fairTable: one-threaded programs are not peers in it", () => {
  const { works: [work], programs } = fairTable(RUN);
  assert.deepEqual(programs.map(({ name }) => name), ["no proxy", "ours", "haproxy"]);
  assert.equal(work && ratioToBestPeer(work, RATE)?.median, 1.5);
});

Deno.test("eachCoreTable: one-threaded programs alone, compared with each other", () => {
  const { works: [work], programs } = eachCoreTable(RUN);
  assert.deepEqual(programs.map(({ name }) => name), ["ours", "haproxy"]);
  assert.equal(work && ratioToBestPeer(work, RATE)?.median, 0.25);
});

Deno.test("eachCoreTable: nothing of a result without one-threaded programs", () => {
  const programs = RUN.programs.filter(({ table }) => table !== "each core");
  assert.deepEqual(eachCoreTable({ ...RUN, programs }).works, []);
});

Deno.test("fairTable: memory for each port, of the samples of the same round", () => {
  const ports = (name: string, mib: [number, number]): WorkResult => ({
    name,
    title: "",
    protocol: "tcp",
    metrics: [],
    samples: mib.map((mib, index) => sample("ours", index + 1, { mib })),
  });
  const { works } = fairTable(
    run([ports("ports-1", [40, 41]), ports("ports-1000", [139.9, 240.8])]),
  );
  assert.deepEqual(works.map(({ name }) => name), ["ports-1", "ports-1000", "port-memory"]);
  const found = works[2]?.samples.map(({ numbers }) => numbers.mib_per_port?.toFixed(3));
  assert.deepEqual(found, ["0.100", "0.200"]);
});

Deno.test("fairTable: the growth of a peer that failed has its failures and faults", () => {
  const open = (name: string, cost: number, faults: string[]): WorkResult => {
    const numbers = { cpu_per_operation: cost, per_second: 100, failed: faults.length };
    const samples = [{ program: "haproxy", round: 1, numbers, faults }];
    return { name, title: "", protocol: "tcp", metrics: [], samples };
  };
  const { works } = fairTable(run([open("open-10", 5, []), open("open-7000", 6, ["3 failed"])]));
  assert.deepEqual(works.at(-1)?.samples, [{
    program: "haproxy",
    round: 1,
    numbers: { cost_growth: 1.2, rate_growth: 1, failed: 1 },
    faults: ["3 failed"],
  }]);
});

Deno.test("fairTable: without a first work, nothing follows from the second", () => {
  const work: WorkResult = { name: "ports-1000", title: "", metrics: [], samples: [] };
  assert.deepEqual(fairTable(run([work])).works.map(({ name }) => name), ["ports-1000"]);
});
