import assert from "node:assert/strict";
import type { Metric, Sample, WorkResult } from "./result.ts";
import { bestPeer, NO_PROXY, OURS, ratioTo, ratioToBestPeer, summaryOf, total } from "./summary.ts";

const SPEED: Metric = { name: "speed", label: "speed", unit: "/s", better: "more" };
const TIME: Metric = { name: "time", label: "time", unit: "µs", better: "less" };

function sample(program: string, round: number, speed: number, time: number): Sample {
  return { program, round, numbers: { speed, time }, faults: [] };
}

const WORK: WorkResult = {
  name: "work",
  title: "Work",
  metrics: [SPEED, TIME],
  samples: [
    ...[sample(NO_PROXY, 1, 100, 1), sample(OURS, 1, 30, 4), sample("a", 1, 20, 8)],
    ...[sample("b", 1, 10, 5), sample(NO_PROXY, 2, 100, 1), sample(OURS, 2, 20, 6)],
    ...[sample("a", 2, 10, 2), sample("b", 2, 40, 3)],
  ],
};

Deno.test("ratioToBestPeer: the peer with the best median, no proxy left out", () => {
  assert.equal(bestPeer(WORK, SPEED), "b");
  assert.deepEqual(ratioToBestPeer(WORK, SPEED), { median: 1.75, min: 0.5, max: 3, count: 2 });
  assert.equal(bestPeer(WORK, TIME), "b");
  assert.deepEqual(ratioToBestPeer(WORK, TIME), { median: 1.4, min: 0.8, max: 2, count: 2 });
});

Deno.test("ratioToBestPeer: a round that failed does not count", () => {
  const failed: Sample = { program: OURS, round: 2, numbers: {}, faults: ["It fell"] };
  const samples = WORK.samples.map((sample) =>
    sample.program === OURS && sample.round === 2 ? failed : sample
  );
  assert.equal(ratioToBestPeer({ ...WORK, samples }, SPEED)?.count, 1);
});

for (const counter of ["failed", "lost_up", "lost_down"]) {
  const mark = (isMarked: (sample: Sample) => boolean): WorkResult => ({
    ...WORK,
    samples: WORK.samples.map((sample) =>
      isMarked(sample) ? { ...sample, numbers: { ...sample.numbers, [counter]: 1 } } : sample
    ),
  });

  Deno.test(`ratioToBestPeer: a peer's round with ${counter} is left out`, () => {
    const work = mark(({ program, round }) => program === "b" && round === 2);
    assert.equal(bestPeer(work, SPEED), "a");
    assert.deepEqual(ratioTo(work, SPEED, "b"), { median: 3, min: 3, max: 3, count: 1 });
  });

  Deno.test(`bestPeer: not one that did the work in too few rounds, for its ${counter}`, () => {
    const work = mark(({ program }) => program === "b");
    assert.equal(bestPeer(work, TIME), "a");
    assert.equal(bestPeer(mark(({ program }) => program !== OURS), TIME), undefined);
  });
}

Deno.test("ratioToBestPeer: nothing for a metric that is not to be compared", () => {
  assert.equal(ratioToBestPeer(WORK, { ...SPEED, absolute: true }), undefined);
});

Deno.test("ratioTo: one peer alone", () => {
  assert.deepEqual(ratioTo(WORK, SPEED, "b"), { median: 1.75, min: 0.5, max: 3, count: 2 });
});

Deno.test("ratioToBestPeer: nothing without a peer", () => {
  const samples = WORK.samples.filter(({ program }) => program === OURS || program === NO_PROXY);
  assert.equal(ratioToBestPeer({ ...WORK, samples }, SPEED), undefined);
});

Deno.test("summaryOf: one program alone", () => {
  assert.deepEqual(summaryOf(WORK, "a", SPEED), { median: 15, min: 10, max: 20, count: 2 });
  assert.equal(summaryOf(WORK, "absent", SPEED), undefined);
});

Deno.test("total: adds up over the rounds", () => {
  assert.equal(total(WORK, "b", "speed"), 50);
  assert.equal(total(WORK, "b", "unknown"), 0);
});
