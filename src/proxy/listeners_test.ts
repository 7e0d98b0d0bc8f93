import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import type { ListenerConfig } from "../config/model.ts";
import { Listeners } from "./listeners.ts";

function listener(name: string): ListenerConfig {
  const request = parseArguments([], "0");
  assert(request.kind === "run" && request.setup.kind === "flags");
  const [one] = request.setup.config.listeners;
  assert(one);
  return { ...one, name };
}

Deno.test("Listeners: one that is closed keeps its name, and is not open", () => {
  const listeners = new Listeners();
  listeners.set(1, listener("mail"));
  listeners.set(2, listener("web"));
  listeners.close(1);
  assert.deepEqual(listeners.open.map(({ id }) => id), [2]);
  assert.equal(listeners.name(1), "mail");
  assert.equal(listeners.isMany, true);
});

Deno.test("Listeners: 0 is the proxy, and one alone needs no name", () => {
  const listeners = new Listeners();
  listeners.set(1, listener("mail"));
  assert.equal(listeners.get(0), undefined);
  assert.equal(listeners.isMany, false);
  listeners.set(1, listener("post"));
  assert.deepEqual([listeners.name(1), listeners.isMany], ["post", false]);
});
