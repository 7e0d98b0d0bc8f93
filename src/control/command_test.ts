import assert from "node:assert/strict";
import { Status as Code } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import { runControl } from "./command.ts";
import { countsOf } from "./counts.ts";
import { ControlError } from "./error.ts";
import type { Status } from "./protocol.ts";

const STATUS: Status = {
  version: "1.2.3",
  pid: 4711,
  uptime: 60,
  workers: { configured: 2, serving: 2 },
  stopping: false,
  lastReloadGood: true,
  total: countsOf({ get: () => 0, refusals: new Map() }),
  listeners: [],
};

/** What `status` prints and its exit code, where the program gives this answer. */
async function statusOf(answer: () => Status, json = false): Promise<[number, string]> {
  let printed = "";
  const code = await runControl(
    { kind: "control", request: { command: "status" }, socket: { path: "/run/x" }, json },
    {
      askControl: () => Promise.resolve(JSON.stringify(answer())),
      readFile: () => assert.fail("no file is needed"),
    },
    (text) => printed += text,
  );
  return [code, printed];
}

Deno.test("status: exits with 0 while every worker runs, or the program stops", async () => {
  assert.equal((await statusOf(() => STATUS))[0], 0);
  const stopping = { ...STATUS, stopping: true, workers: { configured: 2, serving: 0 } };
  assert.equal((await statusOf(() => stopping))[0], 0);
});

Deno.test("status: exits with 1 while a worker does not run, and prints the same", async () => {
  const one = { ...STATUS, workers: { configured: 2, serving: 1 } };
  for (const json of [false, true]) {
    const [code, printed] = await statusOf(() => one, json);
    assert.equal(code, 1);
    assert.match(printed, /1\.2\.3/);
  }
});

Deno.test("status: a program that does not answer is a failure", async () => {
  const silent = () => {
    throw new NativeError(Code.system, "Nothing answers at /run/x");
  };
  await assert.rejects(statusOf(silent), new ControlError("Nothing answers at /run/x"));
});
