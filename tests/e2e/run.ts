/**
 * Runs the end-to-end tests in network namespaces of their own, as any user:
 * `deno run -A tests/e2e/run.ts [--junit <path>] [filter]`.
 */

import { parseArgs } from "node:util";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { FAULTY_LIBRARY, LIBRARY } from "../build.ts";
import { testFolder } from "../lanes.ts";

const HERE = dirname(fileURLToPath(import.meta.url));
const ROOT = join(HERE, "..", "..");

const { values, positionals } = parseArgs({
  options: { junit: { type: "string" } },
  allowPositionals: true,
});

// The namespace reaches no registry: what the program and its tests need must be there before.
await run("cargo", LIBRARY);
await run("cargo", FAULTY_LIBRARY);
await run(Deno.execPath(), ["cache", "--quiet", "main.ts"]);
Deno.env.set("MMPROXY_COMPILED", JSON.stringify(await tryToCompile()));

const [filter] = positionals;
Deno.exit(await testFolder(HERE, { owner: "anyone", filter, junit: values.junit }));

/** `deno task compile`, which fetches Deno's runtime; its exit code and error output. */
async function tryToCompile(): Promise<[code: number, said: string]> {
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["task", "--quiet", "compile"],
    cwd: ROOT,
    env: { CARGO_TERM_QUIET: "true" },
    stdin: "null",
  }).output();
  return [code, new TextDecoder().decode(stderr)];
}

/** Runs a command in the repository; ends this process where it fails. */
async function run(command: string, args: string[]): Promise<void> {
  const { success, code } = await new Deno.Command(command, { args, cwd: ROOT }).spawn().status;
  if (!success) Deno.exit(code);
}
