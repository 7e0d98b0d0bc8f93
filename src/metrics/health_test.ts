import assert from "node:assert/strict";
import { healthOf, Readiness, type Workers } from "./health.ts";

const WELL: Workers = { listeners: 2, serving: 2, stopping: false };

Deno.test("healthOf: well while every listener has a worker, and while it stops", () => {
  assert.ok(healthOf(WELL).good);
  assert.ok(healthOf({ ...WELL, serving: 0, stopping: true }).good);
  const { good, text } = healthOf({ ...WELL, serving: 1 });
  assert.ok(!good);
  assert.match(text, /1 of 2 listener workers serve/);
});

/** A readiness whose clock, workers and probe a test moves. */
class Stage {
  clock = 0;
  workers = WELL;
  problem: string | undefined;
  probes = 0;
  /** Ends the probe that runs. */
  finish: () => void = () => {};
  readonly readiness = new Readiness(
    () => {
      this.probes++;
      return new Promise((found) => this.finish = () => found(this.problem));
    },
    () => this.workers,
    () => this.clock,
  );

  /** Asks, and lets the probe that this begins come to its end. */
  async ask(): Promise<string> {
    const answer = this.readiness.get();
    this.finish();
    const { good, text } = await answer;
    // Whatever was begun meanwhile is over before the next question.
    await new Promise((settled) => setTimeout(settled));
    assert.equal(good, text === "ready");
    return text;
  }
}

Deno.test("Readiness: the first question waits for a probe", async () => {
  const stage = new Stage();
  assert.equal(await stage.ask(), "ready");
  assert.equal(stage.probes, 1);
});

Deno.test("Readiness: a flood of questions makes one probe in five seconds", async () => {
  const stage = new Stage();
  const flood = Array.from({ length: 50 }, () => stage.readiness.get());
  stage.finish();
  await Promise.all(flood);
  stage.clock = 4_999;
  await stage.ask();
  assert.equal(stage.probes, 1);
  stage.clock = 5_000;
  await stage.ask();
  assert.equal(stage.probes, 2);
});

Deno.test("Readiness: an old result is given while the next is found, a stale one is not", async () => {
  const stage = new Stage();
  await stage.ask();
  stage.problem = "no answer";
  stage.clock = 10_000;
  assert.equal((await stage.readiness.get()).text, "ready", "it does not wait");
  stage.finish();
  await new Promise((settled) => setTimeout(settled));
  assert.equal(await stage.ask(), "not ready: no answer");
  stage.problem = undefined;
  stage.clock = 40_000;
  assert.equal(await stage.ask(), "ready");
});

Deno.test("Readiness: no probe runs while workers are down or the program stops", async () => {
  const stage = new Stage();
  stage.workers = { ...WELL, stopping: true };
  assert.equal(await stage.ask(), "not ready: stopping");
  stage.workers = { ...WELL, serving: 1 };
  assert.match(await stage.ask(), /1 of 2/);
  assert.equal(stage.probes, 0);
});

Deno.test("Readiness: a probe that throws is a problem", async () => {
  const readiness = new Readiness(() => Promise.reject(new Error("boom")), () => WELL, () => 0);
  assert.match((await readiness.get()).text, /^not ready: the check failed: Error: boom$/);
});
