import assert from "node:assert/strict";
import { countCargo, countJunit, judge, showTime } from "./all.ts";

Deno.test("countCargo: sums up every binary's closing line", () => {
  const output = [
    "test result: ok. 39 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
    "test frame::tests::a ... ok",
    "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
  ].join("\n");
  assert.deepEqual(countCargo(output), { passed: 44, failed: 2, skipped: 1 });
});

Deno.test("countJunit: sums up every suite", () => {
  const junit = `<testsuites name="deno test" tests="7" failures="1">
    <testsuite name="./a_test.ts" tests="4" disabled="1" errors="0" failures="1">
    <testsuite name="./b_test.ts" tests="3" disabled="0" errors="1" failures="0">`;
  assert.deepEqual(countJunit("", junit), { passed: 4, failed: 2, skipped: 1 });
});

Deno.test("judge: a check is one test", () => {
  assert.deepEqual(judge(undefined, true), { passed: 1, failed: 0, skipped: 0 });
  assert.deepEqual(judge(undefined, false), { passed: 0, failed: 1, skipped: 0 });
});

Deno.test("judge: a run without a test, or with a bad end that no test explains, has failed", () => {
  assert.equal(judge({ passed: 0, failed: 0, skipped: 3 }, true).failed, 1);
  assert.equal(judge({ passed: 9, failed: 0, skipped: 0 }, false).failed, 1);
  assert.equal(judge({ passed: 9, failed: 1, skipped: 0 }, false).failed, 1);
  assert.equal(judge({ passed: 9, failed: 0, skipped: 0 }, true).failed, 0);
});

Deno.test("showTime: minutes and seconds, in a column", () => {
  assert.equal(showTime(125_400, "Build"), "  2:05  Build");
  assert.equal(showTime(59_600, "Types"), "  1:00  Types");
});
