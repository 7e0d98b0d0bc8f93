import assert from "node:assert/strict";
import { workerCount } from "./workers.ts";

Deno.test("workerCount: a number is itself, auto is the processors", () => {
  assert.equal(workerCount(3, 8), 3);
  assert.equal(workerCount("auto", 8), 8);
  assert.equal(workerCount("auto", 0), 1);
  assert.ok(workerCount("auto") >= 1);
});
