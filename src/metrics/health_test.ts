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

/** A readiness whose clock, workers and probes a test moves. */
class Stage {
  clock = 0;
  workers = WELL;
  listeners = ["mail"];
  /** The probes that were begun, by listener. */
  readonly probes: string[] = [];
  readonly #running = new Map<string, (problem: string | undefined) => void>();
  #expire: () => void = () => {};
  readonly readiness = new Readiness(
    {
      listeners: () => this.listeners,
      workers: () => this.workers,
      probe: (listener) => {
        this.probes.push(listener);
        return new Promise((found) => this.#running.set(listener, found));
      },
    },
    () => this.clock,
    async (event, milliseconds) => {
      assert.equal(milliseconds, 1_000);
      await Promise.race([event, new Promise<void>((resolve) => this.#expire = resolve)]);
    },
  );

  /** Ends the probe that runs. */
  async finish(problem?: string, listener = "mail"): Promise<void> {
    this.#running.get(listener)?.(problem);
    await settled();
  }

  /** Asks, lets the probe that this begins end, and the text of the answer. */
  async ask(problem?: string): Promise<string> {
    const answer = this.readiness.get();
    await this.finish(problem);
    return textOf(await answer);
  }

  /** Asks, and lets the second go by. */
  async askInVain(listener?: string): Promise<string> {
    const answer = this.readiness.get(listener);
    this.#expire();
    return textOf(await answer);
  }
}

const settled = () => new Promise((settled) => setTimeout(settled));

function textOf(health: { good: boolean; text: string } | undefined): string {
  const { good, text } = health ?? assert.fail();
  assert.equal(good, text.startsWith("ready"));
  return text;
}

Deno.test("Readiness: the first request waits for a probe", async () => {
  const stage = new Stage();
  assert.equal(await stage.ask(), "ready");
  assert.deepEqual(stage.probes, ["mail"]);
});

Deno.test("Readiness: a flood of requests makes one probe in five seconds", async () => {
  const stage = new Stage();
  const flood = Array.from({ length: 50 }, () => stage.readiness.get());
  await stage.finish();
  await Promise.all(flood);
  stage.clock = 4_999;
  assert.equal(textOf(await stage.readiness.get()), "ready");
  assert.equal(stage.probes.length, 1);
  stage.clock = 5_000;
  await stage.ask();
  assert.equal(stage.probes.length, 2);
});

Deno.test("Readiness: asked every 20 seconds, it says what is the case now", async () => {
  const stage = new Stage();
  assert.equal(await stage.ask(), "ready");
  stage.clock = 20_000;
  assert.equal(await stage.ask("no answer"), "not ready: no answer");
  stage.clock = 40_000;
  assert.equal(await stage.ask(), "ready");
});

Deno.test("Readiness: a request waits one second, and an old result is not its answer", async () => {
  const stage = new Stage();
  assert.match(await stage.askInVain(), /^not ready: no result within 1 s/);
  await stage.finish();
  assert.equal(textOf(await stage.readiness.get()), "ready");
  stage.clock = 5_000;
  assert.match(await stage.askInVain(), /^not ready: no result within 1 s/);
  assert.match(await stage.askInVain(), /^not ready: no result within 1 s/);
  assert.equal(stage.probes.length, 2, "a probe that runs is not begun again");
  await stage.finish();
  assert.equal(textOf(await stage.readiness.get()), "ready");
});

Deno.test("Readiness: a listener whose upstream is slow does not hold up another", async () => {
  const stage = new Stage();
  stage.listeners = ["mail", "web"];
  const both = stage.askInVain();
  await stage.finish();
  assert.match(
    await both,
    /^not ready: 1 of 2 listeners\nmail: ready\nweb: not ready: no result within 1 s.*$/,
  );
  stage.clock = 5_000;
  const mail = stage.readiness.get("mail");
  await stage.finish();
  assert.equal(textOf(await mail), "ready");
  assert.deepEqual(stage.probes, ["mail", "web", "mail"]);
});

Deno.test("Readiness: a listener that a reload brings is probed, one that it removes is forgotten", async () => {
  const stage = new Stage();
  await stage.ask();
  stage.listeners = ["web"];
  assert.equal(await stage.readiness.get("mail"), undefined);
  const web = stage.readiness.get();
  await stage.finish("down", "web");
  assert.equal(textOf(await web), "not ready: down");
  stage.listeners = ["mail"];
  assert.equal(await stage.ask("down as well"), "not ready: down as well");
});

Deno.test("Readiness: no probe runs while workers are down or the program stops", async () => {
  const stage = new Stage();
  stage.workers = { ...WELL, stopping: true };
  assert.equal(await stage.ask(), "not ready: stopping");
  stage.workers = { ...WELL, serving: 1 };
  assert.match((await stage.readiness.get())?.text ?? "", /1 of 2/);
  assert.deepEqual(stage.probes, []);
});

Deno.test("Readiness: a probe that throws is a problem", async () => {
  const probe = () => Promise.reject(new Error("boom"));
  const subjects = { listeners: () => ["mail"], workers: () => WELL, probe };
  const readiness = new Readiness(subjects, () => 0);
  assert.match((await readiness.get())?.text ?? "", /^not ready: the check failed: Error: boom$/);
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
