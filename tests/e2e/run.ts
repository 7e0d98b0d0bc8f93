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

// The namespace reaches no registry: what the program imports must be there before.
const cached = await new Deno.Command(Deno.execPath(), {
  args: ["cache", "--quiet", join(HERE, "..", "..", "main.ts")],
}).spawn().status;
if (!cached.success) Deno.exit(cached.code);

const command = [Deno.execPath(), "test", "--allow-all", "--cached-only"];
if (values.junit !== undefined) command.push(`--junit-path=${values.junit}`);
const [filter] = positionals;
if (filter !== undefined) command.push(`--filter=${filter}`);
Deno.exit(await runInNamespace([...command, HERE]));
