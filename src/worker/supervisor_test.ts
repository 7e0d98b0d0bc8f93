import assert from "node:assert/strict";
import type { Assignment, Report } from "./worker.ts";
import type { Details } from "../log/log.ts";
import { nextPause, spawnWorker, Supervisor } from "./supervisor.ts";

/** A worker that the supervisor has started. */
interface Started {
  readonly assignment: Assignment;
  readonly ready: () => Promise<void>;
  readonly end: (error?: string) => Promise<void>;
  terminated: boolean;
}

/** Surroundings that a test moves: no worker is real, and no time passes by itself. */
class Stage {
  readonly started: Started[] = [];
  readonly lines: { level: string; message: string; details: Details }[] = [];
  readonly pauses: { milliseconds: number; wake: () => Promise<void> }[] = [];
  clock = 0;
  readonly supervisor = new Supervisor({
    now: () => this.clock,
    log: (level, message, details) => this.lines.push({ level, message, details }),
    sleep: (milliseconds) =>
      new Promise((wake) => this.pauses.push({ milliseconds, wake: settled(wake) })),
    spawn: (assignment, told) => {
      const worker: Started = {
        assignment,
        ready: settled(() => told({ kind: "ready" })),
        end: (error = "") => settled(() => told({ kind: "ended", status: 0, error }))(),
        terminated: false,
      };
      this.started.push(worker);
      return { terminate: () => worker.terminated = true };
    },
  });

  latest(): Started {
    return this.started.at(-1) ?? assert.fail("No worker was started");
  }

  /** The latest worker fails after `served` milliseconds, and its pause goes by; the pause. */
  async fail(served: number): Promise<number> {
    this.clock += served;
    await this.latest().end("boom");
    const pause = this.pauses.at(-1) ?? assert.fail("There was no pause");
    this.clock += pause.milliseconds;
    await pause.wake();
    return pause.milliseconds;
  }
}

/** Does it, and lets everything that waits for it continue. */
function settled(act: () => void): () => Promise<void> {
  return () => {
    act();
    return new Promise((done) => setTimeout(done));
  };
}

/** Whether a promise has come, asked again at any time. */
function watch(promise: Promise<void>): () => boolean {
  let come = false;
  promise.then(() => come = true);
  return () => come;
}

Deno.test("start: gives each worker one thread, and is ready when the last one is", async () => {
  const stage = new Stage();
  const ready = watch(stage.supervisor.start("/lib.so", [7, 8]).ready);
  assert.deepEqual(stage.started.map(({ assignment }) => assignment), [
    { library: "/lib.so", worker: 7 },
    { library: "/lib.so", worker: 8 },
  ]);
  const [first, second] = stage.started;
  await first?.ready();
  assert.equal(ready(), false);
  await second?.ready();
  assert.equal(ready(), true);
});

Deno.test("start: pauses from 100 ms doubling to 10 s while a worker keeps failing", async () => {
  const stage = new Stage();
  stage.supervisor.start("/lib.so", [7]);
  const pauses: number[] = [];
  for (let round = 0; round < 9; round++) pauses.push(await stage.fail(0));
  assert.deepEqual(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
});

Deno.test("start: pauses 100 ms again after 60 s of health", async () => {
  const stage = new Stage();
  stage.supervisor.start("/lib.so", [7]);
  const served = [0, 0, 59_999, 60_000, 0];
  const pauses: number[] = [];
  for (const milliseconds of served) pauses.push(await stage.fail(milliseconds));
  assert.deepEqual(pauses, [100, 200, 400, 100, 200]);
});

Deno.test("start: does not start a failed worker before its pause is over", async () => {
  const stage = new Stage();
  stage.supervisor.start("/lib.so", [7]);
  await stage.latest().end("boom");
  assert.equal(stage.started.length, 1);
  await stage.pauses[0]?.wake();
  assert.deepEqual(stage.latest().assignment, { library: "/lib.so", worker: 7 });
  assert.equal(stage.started.length, 2);
});

Deno.test("start: one that fails is terminated, the others serve on", async () => {
  const stage = new Stage();
  const ended = watch(stage.supervisor.start("/lib.so", [7, 8]).ended);
  await stage.fail(0);
  assert.deepEqual(stage.started.map(({ terminated }) => terminated), [false, true, false]);
  assert.deepEqual(stage.started.map(({ assignment }) => assignment.worker), [7, 8, 8]);
  assert.equal(ended(), false);
});

Deno.test("start: a worker that is ready at its second try counts as ready", async () => {
  const stage = new Stage();
  const ready = watch(stage.supervisor.start("/lib.so", [7]).ready);
  await stage.fail(0);
  assert.equal(ready(), false);
  await stage.latest().ready();
  assert.equal(ready(), true);
});

Deno.test("allServe: from the last worker's start on, but for the pauses of those that fail", async () => {
  const { supervisor, ...stage } = new Stage();
  assert.equal(supervisor.allServe, true, "of no listeners all serve");
  supervisor.start("/lib.so", [7, 8]);
  const [first, second] = stage.started;
  await first?.ready();
  assert.equal(supervisor.allServe, false);
  await second?.ready();
  assert.equal(supervisor.allServe, true);
  await second?.end("boom");
  assert.equal(supervisor.allServe, false);
  await stage.pauses[0]?.wake();
  assert.equal(supervisor.allServe, false);
  await stage.started[2]?.ready();
  assert.equal(supervisor.allServe, true);
});

Deno.test("start: logs a failure with its pause, then the new start, by the listener's index", async () => {
  const stage = new Stage();
  stage.supervisor.start("/lib.so", [7]);
  await stage.fail(0);
  await stage.latest().end();
  assert.deepEqual(stage.lines, [
    {
      level: "error",
      message: "Worker 0 failed: boom; restarting in 100 ms",
      details: { event: "worker_failed", worker: 0, error: "boom", value: 100 },
    },
    {
      level: "info",
      message: "Worker 0 restarted",
      details: { event: "worker_restarted", worker: 0 },
    },
    {
      level: "error",
      message: "Worker 0 failed: it ended by itself; restarting in 200 ms",
      details: { event: "worker_failed", worker: 0, error: "it ended by itself", value: 200 },
    },
  ]);
});

Deno.test("stop: has ended when the last worker has, also one that fails, and starts none", async () => {
  const stage = new Stage();
  const ended = watch(stage.supervisor.start("/lib.so", [7, 8]).ended);
  stage.supervisor.stop();
  const [first, second] = stage.started;
  await first?.end();
  assert.equal(ended(), false);
  await second?.end("boom");
  assert.equal(ended(), true);
  assert.deepEqual([stage.started.length, stage.pauses, stage.lines], [2, [], []]);
});

Deno.test("stop: a pause between two starts is over at once, and none follows", async () => {
  const stage = new Stage();
  const running = stage.supervisor.start("/lib.so", [7]);
  const [ready, ended] = [watch(running.ready), watch(running.ended)];
  await stage.latest().end("boom");
  await settled(() => stage.supervisor.stop())();
  assert.deepEqual([stage.started.length, ready(), ended()], [1, true, true]);
});

Deno.test("nextPause: starts at 100 ms, doubles, and is never longer than 10 s", () => {
  assert.deepEqual(
    [nextPause(0, 0), nextPause(100, 0), nextPause(6400, 0), nextPause(10_000, 59_999)],
    [100, 200, 10_000, 10_000],
  );
  assert.equal(nextPause(10_000, 60_000), 100);
});

/** What a real worker of this source tells first. */
async function firstReport(source: string, assignment: Assignment): Promise<Report> {
  const url = URL.createObjectURL(new Blob([source], { type: "application/javascript" }));
  const { promise, resolve } = Promise.withResolvers<Report>();
  const worker = spawnWorker(url)(assignment, resolve);
  try {
    return await promise;
  } finally {
    worker.terminate();
    URL.revokeObjectURL(url);
  }
}

Deno.test("spawnWorker: passes the assignment in and the reports out", async () => {
  const echo = `self.onmessage = ({ data: { library, worker } }) =>
    self.postMessage({ kind: "ended", status: worker, error: library });`;
  assert.deepEqual(await firstReport(echo, { library: "/lib.so", worker: 7 }), {
    kind: "ended",
    status: 7,
    error: "/lib.so",
  });
});

Deno.test("spawnWorker: a worker that throws has ended, and says why", async () => {
  const report = await firstReport(`throw new Error("boom")`, { library: "", worker: 0 });
  assert(report.kind === "ended" && report.status < 0);
  assert.match(report.error, /boom/);
});
