import assert from "node:assert/strict";
import { drainingOf, readReplaced, stillRunning } from "./replaced.ts";

const OLD = { process: 7, connections: 3, since: 1_000, sign: "mmproxy/table/123/a/used" };

Deno.test("replaced: those that still run are shown, with the time since then", () => {
  const gone = { ...OLD, process: 6, sign: "mmproxy/table/123/b/used" };
  const running = stillRunning([gone, OLD], { isHeld: (sign) => sign === OLD.sign });
  assert.deepEqual(running, [OLD]);
  assert.deepEqual(drainingOf(running, 13_500), [{ pid: 7, connections: 3, seconds: 12.5 }]);
  assert.equal(drainingOf(running, 0)[0]?.seconds, 0, "a clock that was set back");
});

Deno.test("replaced: words of another version may have none, or none that can be used", () => {
  for (const words of [undefined, "x", {}, [{}], [{ process: 7 }]]) {
    assert.deepEqual(readReplaced(words), [], JSON.stringify(words));
  }
  assert.deepEqual(readReplaced([OLD, {}]), [OLD]);
});
