import assert from "node:assert/strict";
import type { Details } from "../log/log.ts";
import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import { ServiceManager } from "./systemd.ts";

const PROXY = 7;

/** A service manager that keeps what it is told, and the log next to it. */
class Stage {
  readonly told: string[] = [];
  readonly lines: { message: string; details: Details }[] = [];
  /** What a notification throws, if anything. */
  failure: Error | undefined;
  /** What the store had from the run before. */
  came = { kept: 0, closed: 0 };
  readonly manager: ServiceManager;

  constructor(watchdog = 0) {
    const native = {
      notify: (state: string) => {
        if (this.failure) throw this.failure;
        this.told.push(state);
        return true;
      },
      storeListening: (proxy: number) => {
        if (this.failure) throw this.failure;
        this.told.push(`store of ${proxy}`);
        const came = this.came;
        this.came = { kept: 0, closed: 0 };
        return came;
      },
      watchdogMilliseconds: () => watchdog,
    };
    this.manager = new ServiceManager(native, (_, message, details) => {
      this.lines.push({ message, details });
    }, PROXY);
  }

  count(state: string): number {
    return this.told.filter((told) => told === state).length;
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((wake) => setTimeout(wake, milliseconds));
}

Deno.test("ready, stopping: are sent with their status, in one line each", () => {
  const { manager, told } = new Stage();
  manager.ready("Listening on 192.0.2.1:80");
  manager.stopping("2 connections\nmay finish", 13);
  assert.deepEqual(told, [
    `store of ${PROXY}`,
    "READY=1\nSTATUS=Listening on 192.0.2.1:80",
    "STOPPING=1\nEXTEND_TIMEOUT_USEC=23000000\nSTATUS=2 connections may finish",
  ]);
});

Deno.test("reload: the service manager is notified of the start and of the result", async () => {
  const { manager, told } = new Stage();
  manager.ready("Listening");
  const result = await manager.reload(() => {
    assert.equal(told.at(-1), "RELOADING=1\nSTATUS=Reloading");
    return Promise.resolve(7);
  }, () => "Listening elsewhere");
  assert.equal(result, 7);
  assert.equal(told.at(-1), "READY=1\nSTATUS=Listening elsewhere");
});

Deno.test("reload: one that throws leaves the service ready", async () => {
  const { manager, told } = new Stage();
  manager.ready("Listening");
  const boom = () => Promise.reject(new Error("boom"));
  await assert.rejects(manager.reload(boom, () => "Listening"), /boom/);
  assert.equal(told.at(-1), "READY=1\nSTATUS=Listening");
});

Deno.test("reload: before the service is ready, and while it stops, nothing is sent", async () => {
  const { manager, told } = new Stage();
  const status = () => "Listening";
  assert.equal(await manager.reload(() => Promise.resolve(1), status), 1);
  assert.deepEqual(told, []);
  manager.ready("Listening");
  await manager.reload(() => Promise.resolve(manager.stopping("Stopping", 10)), status);
  assert.match(told.at(-1) ?? "", /^STOPPING=1/);
  const before = told.length;
  assert.equal(await manager.reload(() => Promise.resolve(2), status), 2);
  assert.equal(told.length, before);
});

Deno.test("watch: gives signs of life as long as all is well", async () => {
  const stage = new Stage(40);
  let well = true;
  stage.manager.watch(() => well);
  try {
    assert.equal(stage.count("WATCHDOG=1"), 1);
    await pause(200);
    assert(stage.count("WATCHDOG=1") > 3, `${stage.told}`);
    well = false;
    const before = stage.count("WATCHDOG=1");
    await pause(100);
    assert.equal(stage.count("WATCHDOG=1"), before);
    well = true;
    await pause(100);
    assert(stage.count("WATCHDOG=1") > before);
  } finally {
    stage.manager.close();
  }
  const last = stage.count("WATCHDOG=1");
  await pause(100);
  assert.equal(stage.count("WATCHDOG=1"), last);
});

Deno.test("watch: gives none where nobody asks", async () => {
  const { manager, told } = new Stage(0);
  manager.watch(() => true);
  await pause(20);
  assert.deepEqual(told, []);
});

Deno.test("ready: a notification that fails is logged once, and stops nothing", () => {
  const stage = new Stage();
  stage.failure = new NativeError(Status.system, "Cannot notify /run/x: No such file");
  stage.manager.ready("Listening");
  stage.manager.stopping("Stopping", 10);
  assert.deepEqual(stage.lines.map(({ details }) => details.event), ["notify_failed"]);
  assert.match(stage.lines[0]?.message ?? "", /^Cannot notify \/run\/x: No such file; /);
});

Deno.test("ready: an error that is not a refusal of the native core is not hidden", () => {
  const stage = new Stage();
  stage.failure = new TypeError("a fault of ours");
  assert.throws(() => stage.manager.ready("Listening"), TypeError);
});

Deno.test("ready: the sockets of the run before are logged once", async () => {
  const stage = new Stage();
  const { manager, lines, told } = stage;
  stage.came = { kept: 1, closed: 2 };
  manager.ready("Listening");
  const [line] = lines;
  assert.equal(
    line?.message,
    "Resumed 1 listening socket from the service manager's store; closed 2 that no listener uses",
  );
  assert.deepEqual(line.details, { event: "sockets_kept", value: 1, closed: 2 });
  await manager.reload(() => Promise.resolve(), () => "Listening elsewhere");
  assert.equal(lines.length, 1);
  assert.equal(told.filter((what) => what === `store of ${PROXY}`).length, 2);
});
