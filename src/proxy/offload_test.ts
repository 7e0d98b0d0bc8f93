import assert from "node:assert/strict";
import { NativeError } from "../native/library.ts";
import { Status } from "../native/layout.ts";
import { startOffload } from "./offload.ts";

type Line = [level: string, message: string, details: Record<string, unknown>];

/** What is logged, and what the answer is. */
function start(offload: "auto" | "off", startNative: () => void): [boolean, Line[]] {
  const lines: Line[] = [];
  const on = startOffload(
    { offload },
    1,
    { startOffload: startNative },
    (level, message, details) => lines.push([level, message, details ?? {}]),
  );
  return [on, lines];
}

Deno.test("startOffload: off asks for nothing and says nothing", () => {
  assert.deepEqual(start("off", () => assert.fail("it was asked")), [false, []]);
});

Deno.test("startOffload: where the host allows it, one line says so", () => {
  const [on, lines] = start("auto", () => {});
  assert.equal(on, true);
  assert.deepEqual(lines.map(([level, , { offload }]) => [level, offload]), [["info", "on"]]);
});

Deno.test("startOffload: where it does not, a warning has the reason and what it needs", () => {
  const [on, lines] = start("auto", () => {
    throw new NativeError(Status.system, "Operation not permitted (os error 1)");
  });
  assert.equal(on, false);
  const [[level, message, details] = ["", "", {}]] = lines;
  assert.equal(lines.length, 1);
  assert.equal(level, "warn");
  assert.match(message, /Operation not permitted.*CAP_BPF, CAP_NET_ADMIN and Linux 5\.17/);
  assert.equal(details.offload, "off");
});

Deno.test("startOffload: a defect is no reason to relay", () => {
  assert.throws(() => start("auto", () => assert.fail("a defect")), /a defect/);
});
