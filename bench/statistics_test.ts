import assert from "node:assert/strict";
import { best, summarize } from "./statistics.ts";

Deno.test("summarize: the middle of an odd and of an even series", () => {
  assert.deepEqual(summarize([9, 1, 5]), { median: 5, min: 1, max: 9, count: 3 });
  assert.deepEqual(summarize([4, 1, 2, 3]), { median: 2.5, min: 1, max: 4, count: 4 });
  assert.deepEqual(summarize([7]), { median: 7, min: 7, max: 7, count: 1 });
});

Deno.test("summarize: nothing to sum up", () => {
  assert.equal(summarize([]), undefined);
});

Deno.test("best: follows what is better", () => {
  assert.equal(best([3, 1, 2], "more"), 3);
  assert.equal(best([3, 1, 2], "less"), 1);
  assert.equal(best([], "less"), undefined);
});
