/**
 * The man pages and the shells' completions, from the table of options and the configuration's schema:
 * `deno task manual` writes them. Tests find stale ones.
 */
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import schema from "../../docs/mmproxy.schema.json" with { type: "json" };
import { topicNames } from "../../src/help/pages.ts";
import { commands } from "./commands.ts";
import { bash, fish, zsh } from "./completions.ts";
import { configPage, type KeySchema, programPage } from "./manual.ts";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");

/** Each file's path below the repository, and its text. */
export function referenceFiles(): Map<string, string> {
  const read = (path: string) => Deno.readTextFileSync(join(ROOT, path));
  const described = commands();
  const topics = topicNames(read);
  const example = read("deploy/mmproxy.toml");
  return new Map([
    ["deploy/man/mmproxy.1", programPage(described)],
    ["deploy/man/mmproxy.toml.5", configPage(schema as KeySchema, example)],
    ["deploy/completions/mmproxy.bash", bash(described, topics)],
    ["deploy/completions/_mmproxy", zsh(described, topics)],
    ["deploy/completions/mmproxy.fish", fish(described, topics)],
  ]);
}

if (import.meta.main) {
  for (const [path, text] of referenceFiles()) {
    const file = join(ROOT, path);
    await Deno.mkdir(dirname(file), { recursive: true });
    await Deno.writeTextFile(file, text);
  }
}
