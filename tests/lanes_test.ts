import assert from "node:assert/strict";
import { countJunit } from "./all.ts";
import { runInLanes } from "./lanes.ts";

const suite = (tests: number, failures: number) =>
  `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="deno test" tests="${tests}" failures="${failures}" errors="0" time="1.0">
    <testsuite name="./a_test.ts" tests="${tests}" disabled="0" errors="0" failures="${failures}">
    </testsuite>
</testsuites>`;

Deno.test("runInLanes: each file once, so many at a time, and one report of all", async () => {
  const files = ["a", "b", "c", "d", "e"];
  const ran: string[] = [];
  let [running, most] = [0, 0];
  let printed = "";
  const { failed, report } = await runInLanes(
    files,
    2,
    async (file, { log, junit }) => {
      ran.push(file);
      most = Math.max(most, ++running);
      await Deno.writeTextFile(log, `<${file}>`);
      await Deno.writeTextFile(junit, suite(3, file === "c" ? 1 : 0));
      running--;
      return file === "c" ? 1 : 0;
    },
    (text) => {
      printed += text;
      return Promise.resolve();
    },
  );
  assert.deepEqual(ran, files);
  assert.equal(most, 2);
  assert.deepEqual(failed, ["c"]);
  assert.deepEqual(printed.match(/<.>/g)?.sort(), files.map((file) => `<${file}>`));
  assert.deepEqual(countJunit("", report), { passed: 14, failed: 1, skipped: 0 });
});

Deno.test("runInLanes: a file that ends before it reports has failed", async () => {
  const { failed, report } = await runInLanes(["a"], 2, () => Promise.resolve(139));
  assert.deepEqual(failed, ["a"]);
  assert.deepEqual(countJunit("", report), { passed: 0, failed: 0, skipped: 0 });
});

Deno.test("runInLanes: nothing starts after Ctrl-C", async () => {
  const ran: string[] = [];
  const { failed } = await runInLanes(["a", "b", "c"], 2, (file) => {
    ran.push(file);
    return Promise.resolve(130);
  });
  assert.deepEqual([ran, failed], [["a", "b"], ["a", "b"]]);
});
