import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import type { NativeEvent } from "../log/events.ts";
import { Listeners } from "./listeners.ts";
import { unansweredWatch } from "./unanswered.ts";

type Seen = Pick<NativeEvent, "kind" | "errno" | "leftOut" | "client" | "upstream" | "listener">;

const TIMED_OUT: Seen = {
  kind: "connect_failed",
  errno: 0,
  leftOut: 0,
  client: "203.0.113.7:5000",
  upstream: "127.0.0.1:22",
  listener: 1,
};
const { client: _, ...OWN } = TIMED_OUT;

/**
 * What is logged after these events, each as one string.
 *
 * @param counters of every listener
 */
function logged(
  events: readonly Seen[],
  counters: Record<string, number> = {},
  ...names: string[]
): string[] {
  const request = parseArguments(["-4", "127.0.0.1:22", "-m", "5"], "1.2.3");
  assert(request.kind === "run" && request.setup.kind === "flags");
  const { config } = request.setup;
  const [listener] = config.listeners;
  assert(listener);
  const listeners = new Listeners();
  (names.length === 0 ? ["only"] : names).forEach((name, index) =>
    listeners.set(1 + index, { ...listener, name })
  );
  const lines: string[] = [];
  const log = (level: string, message: string) => void lines.push(`${level} ${message}`);
  const watch = unansweredWatch(config, listeners, log, () => ({
    get: (name) => counters[name] ?? 0,
  }));
  events.forEach(watch);
  return lines;
}

Deno.test("unansweredWatch: the third time-out names the doctor, once", () => {
  assert.deepEqual(logged([TIMED_OUT, TIMED_OUT]), []);
  assert.deepEqual(logged(Array(9).fill(TIMED_OUT)), [
    "warn None of the first 3 connections to 127.0.0.1:22 from client addresses was answered; to find out why, " +
    "run: mmproxy doctor -4 127.0.0.1:22 -m 5",
  ]);
});

Deno.test("unansweredWatch: counts those that have no line of their own", () => {
  assert.equal(logged([TIMED_OUT, { ...TIMED_OUT, leftOut: 1 }]).length, 1);
});

Deno.test("unansweredWatch: is silent once a client was connected", () => {
  assert.deepEqual(logged(Array(9).fill(TIMED_OUT), { connected: 1 }), []);
});

Deno.test("unansweredWatch: health checks from the proxy's own address prove nothing", () => {
  assert.equal(logged(Array(9).fill(TIMED_OUT), { connected: 4, headers_own: 4 }).length, 1);
  assert.deepEqual(logged(Array(9).fill(OWN)), []);
});

Deno.test("unansweredWatch: counts each service alone, and only time-outs", () => {
  const other = { ...TIMED_OUT, upstream: "[::1]:22" };
  assert.deepEqual(logged([TIMED_OUT, other, TIMED_OUT, other]), []);
  assert.deepEqual(logged(Array(9).fill({ ...TIMED_OUT, errno: 111 })), []);
});

Deno.test("unansweredWatch: says it once for each listener, and which", () => {
  const other = { ...TIMED_OUT, listener: 2 };
  const lines = logged(Array(9).fill([TIMED_OUT, other]).flat(), {}, "mail", "web");
  assert.deepEqual(lines.map((line) => line.split(":")[0]), ["warn mail", "warn web"]);
});
