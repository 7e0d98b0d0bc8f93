/**
 * Runs the end-to-end tests in a network namespace of their own, as any user:
 * `deno run -A tests/e2e/run.ts [--junit <path>] [filter]`.
 */

import { parseArgs } from "node:util";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { runInNamespace } from "./support/namespace.ts";

const HERE = dirname(fileURLToPath(import.meta.url));

const { values, positionals } = parseArgs({
  options: { junit: { type: "string" } },
  allowPositionals: true,
});

// The namespace reaches no registry: what the program and its tests need must be there before.
const build = ["build", "--release", "--package", "mmproxy-ffi"];
await run("cargo", build);
await run("cargo", [...build, "--features", "fault-injection", "--target-dir", "target/faults"]);
await run(Deno.execPath(), ["cache", "--quiet", "main.ts"]);

const command = [Deno.execPath(), "test", "--allow-all", "--cached-only"];
if (values.junit !== undefined) command.push(`--junit-path=${values.junit}`);
const [filter] = positionals;
if (filter !== undefined) command.push(`--filter=${filter}`);
Deno.exit(await runInNamespace([...command, HERE]));

/** Runs a command in the repository; ends this process where it fails. */
async function run(command: string, args: string[]): Promise<void> {
  const cwd = join(HERE, "..", "..");
  const { success, code } = await new Deno.Command(command, { args, cwd }).spawn().status;
  if (!success) Deno.exit(code);
}
