import assert from "node:assert/strict";
import fc from "fast-check";
import { customPeer, noProxy, ours, type Program } from "./programs.ts";
import { planRounds, planTrial, Schedule, SECONDS, shareOf, type Step } from "./schedule.ts";
import { type Work, WORKS } from "./works.ts";

const PROGRAMS: readonly Program[] = [
  noProxy,
  ...["ours=x {protocol}", "a=x", "b/udp=x"].map(customPeer),
];

function work(name: string): Work {
  const found = WORKS.find((work) => work.name === name);
  assert.ok(found, name);
  return found;
}

Deno.test("planRounds: every program that can, in another order each round", () => {
  const rounds = planRounds([work("rate-32")], PROGRAMS, 3);
  const names = rounds.map((steps) => steps.map(({ program }) => program.name));
  assert.deepEqual(names, [
    ["no proxy", "ours", "a"],
    ["no proxy", "a", "ours"],
    ["a", "no proxy", "ours"],
  ]);
});

Deno.test("planRounds: no memory of no program, and no more rounds than a work has", () => {
  const rounds = planRounds([work("idle")], PROGRAMS, 5);
  assert.deepEqual(rounds.map((steps) => steps.length), [2, 2, 0, 0, 0]);
});

Deno.test("planRounds: no proxy in the first rounds alone", () => {
  const rounds = planRounds([work("rate-32")], PROGRAMS, 7);
  assert.deepEqual(rounds.map((steps) => steps.length), [3, 3, 3, 3, 2, 2, 2]);
});

Deno.test("planRounds: one-threaded programs at works for them, in the first rounds alone", () => {
  const programs = [ours(), ours("ours-1", 1)];
  const names = (work: Work, rounds: number) =>
    planRounds([work], programs, rounds).map((steps) => steps.map(({ program }) => program.name));
  assert.deepEqual(names(work("rate-32"), 6), [
    ["ours", "ours-1"],
    ["ours", "ours-1"],
    ["ours", "ours-1"],
    ["ours", "ours-1"],
    ["ours"],
    ["ours"],
  ]);
  assert.deepEqual(names(work("idle"), 1), [["ours"]]);
});

Deno.test("planRounds: memory of those alone that take a number of threads", () => {
  const [steps = []] = planRounds([work("memory")], [ours(), ...PROGRAMS], 1);
  assert.deepEqual(steps.map(({ program }) => program.name), ["ours"]);
});

Deno.test("planTrial: every program once a protocol, at a load", () => {
  const [steps = []] = planRounds(WORKS, PROGRAMS, 1);
  const trial = planTrial(steps).map(({ work, program }) => `${work.name} ${program.name}`);
  assert.deepEqual(trial, [
    ...["bulk-50 no proxy", "bulk-50 ours", "bulk-50 a"],
    ...["sink-1-200 no proxy", "sink-1-200 ours", "sink-1-200 b"],
  ]);
});

/** Lets a schedule lead a run whose steps take so long beside their measured time. */
function simulate(rounds: readonly Step[][], budget: number, beside: (step: Step) => number) {
  const schedule = new Schedule(rounds, budget);
  let elapsed = 0;
  let last = rounds.length;
  const lengths: number[] = [];
  const take = (step: Step, seconds: number) => {
    const measured = seconds * shareOf(step.work);
    elapsed += measured + beside(step);
    schedule.learn(step, measured + beside(step), measured);
  };
  for (const step of planTrial(rounds[0] ?? [])) take(step, SECONDS.least);
  for (let round = 1; round <= last; round++) {
    const next = schedule.next(round, elapsed);
    last = next.last;
    lengths.push(next.seconds);
    for (const step of rounds[round - 1] ?? []) take(step, next.seconds);
  }
  return { elapsed, lengths };
}

Deno.test("Schedule: a run ends within its budget and uses it, whatever its samples take", () => {
  const rounds = planRounds(WORKS, PROGRAMS, 7);
  const besides = fc.dictionary(
    fc.constantFrom(...WORKS.map(({ name }) => name)),
    fc.double({
      min: 0.2,
      max: 5,
      noNaN: true,
    }),
  );
  fc.assert(fc.property(besides, fc.integer({ min: 12, max: 40 }), (besides, minutes) => {
    const beside = ({ work }: Step) => besides[work.name] ?? 1;
    const { elapsed, lengths } = simulate(rounds, minutes * 60, beside);
    assert.ok(elapsed <= minutes * 60, `${elapsed} s of ${minutes} minutes`);
    const most = lengths.some((seconds) => seconds === SECONDS.most);
    const complete = lengths.length === rounds.length;
    assert.ok(most || !complete || elapsed > minutes * 60 * 0.95, `only ${elapsed} s`);
  }));
});

Deno.test("Schedule: what does not fit is left out from the end, but never all", () => {
  const rounds = planRounds([work("rate-32")], PROGRAMS, 7);
  assert.equal(simulate(rounds, 20, () => 1).lengths.length, 3);
  assert.deepEqual(simulate(rounds, 1, () => 1).lengths, [SECONDS.least]);
});

Deno.test("Schedule: every share gets its part", () => {
  const rounds = planRounds([work("bulk-50"), work("rate-32"), work("flows")], [noProxy], 1);
  const schedule = new Schedule(rounds, 10);
  for (const step of rounds.flat()) schedule.learn(step, 2, 1);
  // Of the 9.8 s that are not kept back, 3 s pass next to the measured 4 + 1 + 0 shares.
  assert.equal(schedule.next(1, 0).seconds.toFixed(3), (6.8 / 5).toFixed(3));
});
