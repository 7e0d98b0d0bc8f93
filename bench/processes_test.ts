import assert from "node:assert/strict";
import { readMemory } from "./processes.ts";

Deno.test("readMemory: resident pages count in full, shared ones in part", async () => {
  // Another process, which does nothing: this one's memory changes between two looks.
  await using child = new Deno.Command(Deno.execPath(), {
    args: ["eval", "console.log('up'); await Deno.stdin.read(new Uint8Array(1));"],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  await child.stdout.getReader().read();
  const [divided, resident] = [readMemory(child.pid), readMemory(child.pid, "Rss")];
  assert.ok(divided > 10_000, `${divided} KiB`);
  assert.ok(resident >= divided * 0.95, `${resident} KiB of ${divided} KiB`);
  await child.stdin.close();
});
