import assert from "node:assert/strict";
import { healthOf, Readiness, readinessOf, type Workers } from "./health.ts";

const WELL: Workers = { workers: 2, serving: 2, stopping: false };

Deno.test("healthOf: well while every worker runs, and while it stops", () => {
  assert.ok(healthOf(WELL).good);
  assert.ok(healthOf({ ...WELL, serving: 0, stopping: true }).good);
  const { good, text } = healthOf({ ...WELL, serving: 1 });
  assert.ok(!good);
  assert.match(text, /1 of 2 workers run/);
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
      return new Promise((found) =>
        this.finish = () => found([{ listener: "mail", problem: this.problem }])
      );
    },
    () => this.workers,
    () => this.clock,
  );

  /** Asks, and lets the probe that this begins come to its end. */
  async ask(): Promise<string> {
    const answer = this.readiness.get();
    this.finish();
    const { good, text } = await answer ?? assert.fail();
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
  assert.equal((await stage.readiness.get())?.text, "ready", "it does not wait");
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
  assert.match((await readiness.get())?.text ?? "", /^not ready: the check failed: Error: boom$/);
});

Deno.test("Readiness: of one listener, of one that there is not, and of all when the probe fails", async () => {
  const reached = [{ listener: "mail", problem: undefined }, { listener: "web", problem: "down" }];
  const readiness = new Readiness(() => Promise.resolve(reached), () => WELL, () => 0);
  assert.equal((await readiness.get("mail"))?.text, "ready");
  assert.equal((await readiness.get("web"))?.text, "not ready: down");
  assert.equal(await readiness.get("dns"), undefined);
  const broken = new Readiness(() => Promise.reject(new Error("boom")), () => WELL, () => 0);
  assert.match((await broken.get("mail"))?.text ?? "", /boom/);
});

Deno.test("readinessOf: of several listeners each has a line", () => {
  const mail = { listener: "mail", problem: undefined };
  const web = { listener: "web", problem: "no answer" };
  assert.deepEqual(readinessOf([mail, web]), {
    good: false,
    text: "not ready: 1 of 2 listeners\nmail: ready\nweb: not ready: no answer",
  });
  assert.deepEqual(readinessOf([mail, { ...web, problem: undefined }]), {
    good: true,
    text: "ready\nmail: ready\nweb: ready",
  });
  assert.deepEqual(readinessOf([web]), { good: false, text: "not ready: no answer" });
});
