/** The documentation keeps up with the program: its commands parse, its links lead somewhere. */

import assert from "node:assert/strict";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArguments } from "../src/cli/arguments.ts";
import { UsageError } from "../src/cli/usage_error.ts";
import { imageOf, origin, pictures } from "../docs/pictures/render.ts";
import { readConfig } from "../src/config/file.ts";
import { generated } from "./flags_page.ts";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
const PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", ...pagesBelow("docs")];
const MOVING = "docs/moving.md";

function pagesBelow(directory: string): string[] {
  return [...Deno.readDirSync(join(ROOT, directory))].flatMap(({ name, isDirectory }) => {
    const path = `${directory}/${name}`;
    return isDirectory ? pagesBelow(path) : name.endsWith(".md") ? [path] : [];
  }).sort();
}

function read(page: string): string {
  return Deno.readTextFileSync(join(ROOT, page));
}

/** The program's command lines in a page's `sh` blocks, without the program's name. */
function commandsOf(page: string): string[] {
  return [...read(page).matchAll(/^```sh\n([^]*?)^```/gm)]
    .flatMap(([, block = ""]) => block.replaceAll("\\\n", " ").split("\n"))
    .map((line) => line.replace(/\s+#\s.*$/, ""))
    .map((line) => /^(?:sudo )?mmproxy (.*)$/.exec(line)?.[1])
    .filter((flags) => flags !== undefined)
    // Not a command to type: "…" stands for flags of the reader's, and an end-to-end test runs the
    // README's block with "$".
    .filter((flags) => !/[…$]/.test(flags));
}

/** A command line's words, as a shell makes them. */
function words(line: string): string[] {
  return [...line.matchAll(/'([^']*)'|"([^"]*)"|(\S+)/g)]
    .map(([, single, double, plain]) => single ?? double ?? plain ?? "");
}

/** The rows of every table whose header has these cells in its first columns. */
function rowsUnder(page: string, header: RegExp): string[][] {
  const rows: string[][] = [];
  let wanted = false;
  for (const line of read(page).split("\n")) {
    if (!line.startsWith("|")) wanted = false;
    else if (header.test(line)) wanted = true;
    else if (wanted && !line.startsWith("|---")) rows.push(line.slice(2, -2).split(" | "));
  }
  return rows;
}

function code(cell = ""): string[] {
  return [...cell.matchAll(/`([^`]+)`/g)].map(([, text = ""]) => text);
}

for (const page of PAGES) {
  const commands = commandsOf(page);
  const isRecipe = /^docs\/recipes\/(?!README)/.test(page);
  if (commands.length === 0 && !isRecipe) continue;
  Deno.test(`docs: the commands of ${page} are command lines of this program`, () => {
    assert.ok(commands.length > 0, "a recipe has a command");
    for (const line of commands) {
      assert.doesNotThrow(() => parseArguments(words(line), "0"), line);
    }
  });
}

for (const page of PAGES.filter((page) => page.startsWith("docs/recipes/"))) {
  const files = [...read(page).matchAll(/^```toml\n([^]*?)^```/gm)].map(([, text = ""]) => text)
    // Others have TOML files, too.
    .filter((text) => text.includes("[[listener]]"));
  if (files.length === 0) continue;
  Deno.test(`docs: the configuration of ${page} is one of this program`, () => {
    for (const text of files) assert.doesNotThrow(() => readConfig(text, page));
  });
}

Deno.test("docs: files of the repository that a page names are there", () => {
  const folders = "bench|bin|demo|deploy|docs|ffi|fuzz|src|tests";
  const file = new RegExp(`^(?:${folders})/[\\w./-]+\\.\\w+$`);
  const named = PAGES.flatMap((page) => {
    const prose = read(page).replace(/^ *```[^]*?^ *```$/gm, "");
    return code(prose).filter((path) => file.test(path)).map((path) => ({ page, path }));
  });
  assert.ok(named.length > 0);
  const tracked = new Set(trackedFiles());
  assert.deepEqual(named.filter(({ path }) => !tracked.has(path)), []);
});

/** What git has: a result that is there and ignored is not there for others. */
function trackedFiles(): string[] {
  const { success, stdout } = new Deno.Command("git", { args: ["ls-files"], cwd: ROOT })
    .outputSync();
  assert.ok(success);
  return new TextDecoder().decode(stdout).split("\n");
}

Deno.test("docs: every flag that moving.md names for this program is one of its flags", () => {
  const help = parseArguments(["--help"], "0");
  assert.ok(help.kind === "print");
  const known = new Set(help.text.match(/(?<![\w-])--?[a-z0-9][a-z0-9-]*/g));
  const rows = rowsUnder(MOVING, /^\| \S+ \| here \| what differs \|$/);
  assert.ok(rows.length > 20, `${rows.length} rows`);
  const flags = rows.flatMap(([, here]) => code(here)).filter((text) => text.startsWith("-"));
  for (const flag of flags) assert.ok(known.has(flag.split(" ")[0] ?? ""), flag);
});

Deno.test("docs: what moving.md says is refused is refused, in those words", () => {
  const rows = rowsUnder(MOVING, /^\| command line \| answer \|$/);
  assert.ok(rows.length > 10, `${rows.length} rows`);
  for (const [line, answer] of rows) {
    const [[flags = ""], [message]] = [code(line), code(answer)];
    assert.throws(() => parseArguments(words(flags), "0"), new UsageError(message), flags);
  }
});

Deno.test("docs: flags.md and the README have the flags as they are", async () => {
  for (const [path, text] of await generated()) {
    assert.ok(await Deno.readTextFile(path) === text, `${path} is stale: run deno task flags`);
  }
});

Deno.test("docs: flags.md has every flag of the program", () => {
  const rows = rowsUnder("docs/flags.md", /^\| flag \| default \| \|$/);
  const named = new Set(rows.flatMap(([flags]) => code(flags)).flatMap(flagsOf));
  const help = parseArguments(["--help"], "0");
  assert.ok(help.kind === "print");
  const known = [...help.text.matchAll(/^ {2,6}(-\S.*?)(?: {2}|$)/gm)].flatMap(([, flags]) =>
    flagsOf(flags)
  );
  assert.ok(known.length > 30, `${known.length} flags`);
  assert.deepEqual(known.filter((flag) => !named.has(flag)), []);
});

/** `-m` and `--mark` of `-m, --mark <n>`. */
function flagsOf(text = ""): string[] {
  return [...text.matchAll(/(?<![\w-])--?[a-z0-9][a-z0-9-]*/g)].map(([flag]) => flag);
}

Deno.test("docs: every link to a file leads to one", () => {
  for (const page of PAGES) {
    for (const [, target = ""] of read(page).matchAll(/\]\((?!https?:|#)([^)#\s]+)[^)]*\)/g)) {
      const path = join(ROOT, dirname(page), target);
      assert.doesNotThrow(() => Deno.statSync(path), `${page}: ${target}`);
    }
  }
});

Deno.test("docs: every link to a heading leads to one", () => {
  for (const page of PAGES) {
    for (const [, file = "", anchor] of read(page).matchAll(/\]\(([^):#\s]*)#([^)\s]+)\)/g)) {
      const target = file === "" ? page : relative(ROOT, join(ROOT, dirname(page), file));
      assert.ok(anchorsOf(target).includes(anchor ?? ""), `${page}: ${file}#${anchor}`);
    }
  }
});

/** The anchors of a page's headings, as GitHub makes them. */
function anchorsOf(page: string): string[] {
  return [...read(page).matchAll(/^#+ (.*)$/gm)]
    .map(([, heading = ""]) =>
      heading.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, "").replaceAll(" ", "-")
    );
}

Deno.test("docs: the indexes name every page", () => {
  for (
    const [index, directory] of [["docs/README.md", "docs"], [
      "docs/recipes/README.md",
      "docs/recipes",
    ]]
  ) {
    for (const { name, isFile } of Deno.readDirSync(join(ROOT, directory ?? ""))) {
      if (!isFile || !name.endsWith(".md") || name === "README.md") continue;
      assert.ok(read(index ?? "").includes(`](${name})`), `${index} leads to ${name}`);
    }
  }
});

Deno.test("docs: every picture is made of its source as it is now, and shown", async () => {
  const shown = PAGES.map(read).join("\n");
  assert.ok(pictures().length >= 6);
  for (const name of pictures()) {
    const image = await Deno.readTextFile(imageOf(name));
    assert.equal(image.split("\n")[0], await origin(name), `${name}: deno task pictures`);
    assert.ok(shown.includes(`images/${name}.svg)`), `no page shows ${name}`);
  }
});
