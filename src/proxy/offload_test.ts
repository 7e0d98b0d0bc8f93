import assert from "node:assert/strict";
import { NativeError } from "../native/library.ts";
import { LITTLE_ENDIAN } from "../config/options.ts";
import { ADOPTION, Status } from "../native/layout.ts";
import { endOffload, startOffload } from "./offload.ts";

type Line = [level: string, message: string, details: Record<string, unknown>];

const NONE = { adopted: 0, ended: 0, unreadable: 0 };

/** The native core's answers; by default nothing was left, and all can be had. */
interface Native {
  start?: () => void;
  outlives?: () => void;
  left?: typeof NONE;
}

/** What is logged, and what the answer is. */
function start(offload: "auto" | "off", native: Native = {}): [boolean, Line[]] {
  const lines: Line[] = [];
  const { start = () => {}, outlives = () => {}, left = NONE } = native;
  const on = startOffload(
    { offload },
    1,
    { startOffload: start, checkOutlives: outlives, adoptOffload: () => encode(left) },
    (level, message, details) => lines.push([level, message, details ?? {}]),
  );
  return [on, lines];
}

function encode(record: typeof NONE): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(ADOPTION.size);
  const view = new DataView(bytes.buffer);
  for (const name of ["adopted", "ended", "unreadable"] as const) {
    view.setUint32(ADOPTION[name], record[name], LITTLE_ENDIAN);
  }
  return bytes;
}

Deno.test("startOffload: off asks for nothing and says nothing", () => {
  assert.deepEqual(start("off", { start: () => assert.fail("it was asked") }), [false, []]);
});

Deno.test("startOffload: where the host allows it, one line says so", () => {
  const [on, lines] = start("auto");
  assert.equal(on, true);
  assert.match(lines[0]?.[1] ?? "", /handed over to the kernel; they outlive mmproxy$/);
  assert.deepEqual(lines.map(([level, , { offload }]) => [level, offload]), [["info", "on"]]);
});

Deno.test("startOffload: where it does not, a warning has the reason and what it needs", () => {
  const [on, lines] = start("auto", {
    start: () => {
      throw new NativeError(Status.system, "Operation not permitted (os error 1)");
    },
  });
  assert.equal(on, false);
  const [[level, message, details] = ["", "", {}]] = lines;
  assert.equal(lines.length, 1);
  assert.equal(level, "warn");
  assert.match(message, /Operation not permitted.*CAP_BPF, CAP_NET_ADMIN and Linux 5\.17/);
  assert.equal(details.offload, "off");
});

Deno.test("startOffload: a defect is no reason to relay", () => {
  assert.throws(() => start("auto", { start: () => assert.fail("a defect") }), /a defect/);
});

Deno.test("startOffload: where connections end with mmproxy, the line has the reason", () => {
  const [on, lines] = start("auto", {
    outlives: () => {
      throw new NativeError(Status.system, "it needs Linux 6.6");
    },
  });
  assert.equal(on, true);
  assert.deepEqual(lines.map(([level]) => level), ["info"]);
  assert.match(lines[0]?.[1] ?? "", /they end with mmproxy: it needs Linux 6\.6$/);
});

Deno.test("startOffload: connections of an earlier mmproxy are told of", () => {
  const [, lines] = start("auto", { left: { adopted: 2, ended: 1, unreadable: 1 } });
  assert.deepEqual(lines.slice(1).map(([level, message]) => `${level}: ${message}`), [
    "info: Offload: adopted 2 connections of an earlier mmproxy; ended 1 that it was still handing over",
    "warn: Offload: ended what 1 program of another version had left",
  ]);
});

Deno.test("endOffload: a line says how many connections go on, where some do", () => {
  const lines: Line[] = [];
  const log = (level: string, message: string) => lines.push([level, message, {}]);
  assert.equal(endOffload(1, { endOffload: () => 0 }, log), 0);
  assert.deepEqual(lines, []);
  assert.equal(endOffload(1, { endOffload: () => 1 }, log), 1);
  assert.match(lines[0]?.[1] ?? "", /the kernel goes on with 1 connection; the next start/);
});
