import assert from "node:assert/strict";
import { commands } from "./commands.ts";
import { referenceFiles } from "./main.ts";

const ROOT = new URL("../../", import.meta.url);

for (const [path, text] of referenceFiles()) {
  Deno.test(`manual: ${path} is that of the program`, async () => {
    assert.ok(
      await Deno.readTextFile(new URL(path, ROOT)) === text,
      `${path} is stale: run deno task manual`,
    );
  });
}

Deno.test("manual: the man page has every command and every option that it uses", () => {
  const page = referenceFiles().get("deploy/man/mmproxy.1")?.replaceAll("\\-", "-") ?? "";
  const all = commands();
  assert.ok(all.length > 8 && all.every(({ options }) => options.length > 0));
  for (const { name, options } of all) {
    assert.ok(page.includes(`mmproxy ${name}`), name);
    for (const { long, hidden } of options) assert.ok(hidden || page.includes(long), long);
  }
});

Deno.test("manual: a line never begins as a request of roff's by accident", () => {
  for (const [path, text] of referenceFiles()) {
    if (!path.startsWith("deploy/man/")) continue;
    for (const line of text.split("\n")) {
      assert.doesNotMatch(line, /^'|^\.(?!(TH|SH|SS|PP|TP|IP|RS|RE|nf|fi|\\"))/, path);
    }
  }
});
