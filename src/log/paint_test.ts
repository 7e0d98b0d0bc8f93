import assert from "node:assert/strict";
import { painter } from "./paint.ts";

const output = (isTerminal: boolean) => ({ isTerminal: () => isTerminal });

Deno.test("painter: colours are for a terminal, or asked for", async () => {
  const text = async (mode: "auto" | "always" | "never", isTerminal: boolean) =>
    (await painter(mode, output(isTerminal)))("green", "x");
  const painted = "\x1b[32mx\x1b[39m";
  assert.equal(await text("auto", false), "x");
  assert.equal(await text("never", true), "x");
  assert.equal(await text("always", false), painted);
  // The tests may run with NO_COLOR.
  assert.equal(await text("auto", true), Deno.noColor ? "x" : painted);
});
