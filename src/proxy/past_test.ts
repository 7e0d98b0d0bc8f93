import assert from "node:assert/strict";
import { readConfig } from "../config/file.ts";
import type { Running } from "./change.ts";
import { Past } from "./past.ts";

/** A listener with this number, as configurations from `since` on have it. */
function running(id: number, since: number, port: number): Running {
  const [config] = readConfig(
    `[[listener]]\nlisten = "192.0.2.1:${port}"\nipv4 = "127.0.0.1"`,
    "m.toml",
  ).listeners;
  assert(config);
  return { id, since, config };
}

Deno.test("Past: listeners are there as they were until nobody has them so", () => {
  const asked: string[] = [];
  let inUse = (_id: number) => true;
  const past = new Past(7, {
    isListenerInUse(proxy, id, since, until) {
      asked.push(`${proxy}: ${id} of ${since}-${until}`);
      return inUse(id);
    },
  });
  assert.deepEqual(past.inUse(), []);
  past.add([running(1, 1, 25), running(2, 1, 80)], 1);
  // The first was changed again.
  past.add([running(1, 2, 26)], 4);
  const ports = () => past.inUse().map(({ listen }) => listen[0]?.port);
  assert.deepEqual(ports(), [25, 80, 26]);
  assert.deepEqual(asked, ["7: 1 of 1-1", "7: 2 of 1-1", "7: 1 of 2-4"]);
  inUse = (id) => id === 1;
  assert.deepEqual(ports(), [25, 26]);
  // What is over does not come back, and is not asked about.
  inUse = () => true;
  asked.length = 0;
  assert.deepEqual(ports(), [25, 26]);
  assert.equal(asked.length, 2);
});
