import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import type { Details } from "../log/log.ts";
import { Status, SUBNET } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import { reloadSubnets } from "./reload.ts";

const PATH = "/etc/mmproxy/subnets";

/** Reloads with a file of this content; what the core was given, and what the log says. */
function reload(
  content: string | Error,
  allowedSubnets: string | null = PATH,
  ids: readonly number[] = [7],
) {
  const set: Uint8Array[] = [];
  const lines: { level: string; message: string; details: Details }[] = [];
  const request = parseArguments(allowedSubnets === null ? [] : ["-a", allowedSubnets], "0");
  assert(request.kind === "run" && request.setup.kind === "flags");
  const [config] = request.setup.config.listeners;
  assert(config);
  const good = reloadSubnets(
    ids.map((id) => ({ id, config })),
    {
      readFile: (path) => {
        assert.equal(path, PATH);
        if (content instanceof Error) throw content;
        return new TextEncoder().encode(content);
      },
      setSubnets: (_proxy, listener, records) => {
        assert.equal(listener, ids[set.length]);
        set.push(records);
      },
    },
    1,
    (level, message, details) => lines.push({ level, message, details }),
  );
  assert.equal(lines.length, 1, "one line");
  return { set, line: lines[0]!, good };
}

Deno.test("reloadSubnets: a good file is handed over whole and counted", () => {
  const { set, line, good } = reload("192.0.2.0/24\n# a comment\n2001:db8::/32\n");
  assert.deepEqual(set.map((records) => records.length), [2 * SUBNET.size]);
  assert.ok(good);
  assert.equal(line.level, "info");
  assert.equal(line.message, `Reloaded ${PATH}: 2 allowed subnets`);
  assert.equal(line.details.event, "subnets_reloaded");
});

Deno.test("reloadSubnets: a file of several listeners is read and told once", () => {
  const { set, line, good } = reload("192.0.2.0/24\n", PATH, [7, 9]);
  assert.ok(good);
  assert.equal(set.length, 2);
  assert.equal(line.message, `Reloaded ${PATH}: 1 allowed subnet`);
});

for (
  const [what, content, says] of [
    ["a wrong line", "192.0.2.0/24\nnonsense\n", /line 2: "nonsense" is not an IP address/],
    ["an empty file", "# nothing\n", /has no subnet/],
    [
      "a missing file",
      new NativeError(Status.system, `Cannot read ${PATH}: no such file`),
      /no such file/,
    ],
  ] as const
) {
  Deno.test(`reloadSubnets: ${what} changes nothing and is told`, () => {
    const { set, line, good } = reload(content);
    assert.ok(!good);
    assert.deepEqual(set, []);
    assert.equal(line.level, "error");
    assert.match(line.message, /the old ones stay in force/);
    assert.match(line.message, says);
    assert.equal(line.details.event, "reload_failed");
  });
}

Deno.test("reloadSubnets: a defect is no problem of the file", () => {
  assert.throws(() => reload(new TypeError("a defect")), TypeError);
});

Deno.test("reloadSubnets: without a file there is nothing to reload", () => {
  const { set, line } = reload("", null);
  assert.deepEqual(set, []);
  assert.match(line.message, /^Nothing to reload/);
});
