import assert from "node:assert/strict";
import { readMemory } from "./processes.ts";

Deno.test("readMemory: resident pages count in full, shared ones in part", () => {
  const [divided, resident] = [readMemory(Deno.pid), readMemory(Deno.pid, "Rss")];
  assert.ok(divided > 10_000, `${divided} KiB`);
  assert.ok(resident >= divided * 0.95, `${resident} KiB of ${divided} KiB`);
});
