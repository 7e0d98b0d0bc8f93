/**
 * Every command of the documentation's pages, as it is printed. What is not run is in `NOT_RUN` with the
 * reason, or a block of its own that another test runs (`ELSEWHERE`); whatever else a page prints is run here.
 */
import assert from "node:assert/strict";
import {
  blocksOf,
  commandsOf,
  ELSEWHERE,
  NOT_RUN,
  otherTestOf,
  pages,
  reasonNotToRun,
  textOf,
} from "./support/page.ts";
import { Pasted } from "./support/pasted.ts";

/** What runs already when a page's command asks for it. */
const BEFORE: readonly (readonly [page: string, command: RegExp, before: string])[] = [
  [
    "docs/control.md",
    /^mmproxy connections /,
    "mmproxy --config /etc/mmproxy/mmproxy.toml --control /run/mmproxy/control",
  ],
  [
    "docs/upgrade.md",
    /^mmproxy upgrade /,
    "mmproxy -l 0.0.0.0:8443 -4 127.0.0.1:443 --control /run/mmproxy/control",
  ],
  ["docs/routes.md", /^ip rule(;| flush)/, "mmproxy routes up -4 127.0.0.1:443 -6 '[::1]:443'"],
];

/** Commands that the page says fail, and with what. */
const FAILS: readonly (readonly [page: string, command: string, failure: RegExp])[] = [
  [
    "docs/doctor.md",
    "sudo mmproxy doctor -4 127.0.0.1:2222",
    /^✗ routes: .*\n {4}mmproxy routes up -4 127\.0\.0\.1:2222$[^]*^1 check failed, 1 warning/m,
  ],
  // Without a terminal to ask on.
  ["docs/doctor.md", "sudo mmproxy doctor --fix -4 127.0.0.1:2222         # asks first", /--yes/],
];

/** The commands of a page that are run here. */
async function commandsToRun(page: string): Promise<string[]> {
  const own = (await blocksOf(page)).filter((block) => otherTestOf(page, block) === undefined);
  return own.flatMap(commandsOf).filter((command) => reasonNotToRun(command) === undefined);
}

for (const page of pages()) {
  const commands = await commandsToRun(page);
  if (commands.length === 0) continue;
  Deno.test(`pages: the commands of ${page} run as they are printed`, async () => {
    await using host = await Pasted.make(page);
    for (const command of commands) {
      const before = BEFORE.find(([where, pattern]) => where === page && pattern.test(command));
      if (before) await host.run(before[2]);
      const fails = FAILS.find(([where, text]) => where === page && text === command);
      await host.run(command, fails?.[2]);
    }
    await host.stop();
  });
}

Deno.test("pages: the commands of the README's section Verify run as they are printed", async () => {
  const [, section = ""] = (await textOf("README.md")).split("\n## Verify\n");
  const [table = ""] = section.split("\n## ");
  const cells = [...table.matchAll(/^\| `([^`]+)`/gm)].map(([, command = ""]) => command);
  assert.ok(cells.length >= 3, table);
  const blocks = (await blocksOf("README.md")).flatMap(commandsOf);
  const start = blocks.find((command) => command.startsWith("sudo mmproxy -l 0.0.0.0:8443"));
  await using host = await Pasted.make("README.md");
  await host.run(`${start} --control /run/mmproxy/control`);
  for (const command of cells) await host.run(command);
  await host.stop();
});

Deno.test("pages: each exception is one of a page's commands or blocks, and its test names the page", async () => {
  const blocks = (await Promise.all(
    pages().map(async (page) => {
      return (await blocksOf(page)).map((block) => ({ page, block }));
    }),
  )).flat();
  const commands = blocks.flatMap(({ block }) => commandsOf(block));
  for (const [pattern, reason] of NOT_RUN) {
    assert.ok(
      commands.some((command) => pattern.test(command)),
      `no page has ${pattern}: ${reason}`,
    );
  }
  for (const [page, command] of FAILS) {
    assert.ok((await commandsToRun(page)).includes(command), `${page}: ${command}`);
  }
  for (const [page, contains, test] of ELSEWHERE) {
    assert.ok(
      blocks.some(({ page: where, block }) => where === page && block.includes(contains)),
      `${page} has no block with ${contains}`,
    );
    const source = await Deno.readTextFile(new URL(`../../${test}`, import.meta.url));
    assert.ok(source.includes(page), `${test} does not read ${page}`);
  }
});
