import assert from "node:assert/strict";
import type { Details } from "../log/log.ts";
import { logUnhandled } from "./unhandled.ts";

Deno.test("logUnhandled: an uncaught error is one error line, and the process continues", async () => {
  const lines: { level: string; message: string; details: Details }[] = [];
  // The test runner has listeners of its own, which would fail the test.
  const listeners = new Map<string, (event: Event) => void>();
  const add = globalThis.addEventListener;
  globalThis.addEventListener = (type: string, listener: unknown) => {
    listeners.set(type, listener as (event: Event) => void);
  };
  try {
    logUnhandled((level, message, details) => lines.push({ level, message, details }));
  } finally {
    globalThis.addEventListener = add;
  }
  const promise = Promise.reject(new Error("on purpose"));
  const rejection = new PromiseRejectionEvent("unhandledrejection", {
    promise,
    reason: "a word",
    cancelable: true,
  });
  listeners.get("unhandledrejection")?.(rejection);
  await promise.catch(() => {});
  const thrown = new ErrorEvent("error", { error: new Error("thrown"), cancelable: true });
  listeners.get("error")?.(thrown);

  assert.ok(rejection.defaultPrevented && thrown.defaultPrevented);
  assert.deepEqual(lines.map(({ level, details }) => [level, details.event]), [
    ["error", "internal_error"],
    ["error", "internal_error"],
  ]);
  assert.match(lines[0]?.message ?? "", /please report it: a word$/);
  assert.match(lines[1]?.message ?? "", /please report it: Error: thrown\n/);
});
