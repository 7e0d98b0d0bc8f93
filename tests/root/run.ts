/**
 * Runs the tests that need root, in network namespaces of their own:
 * `deno run -A tests/root/run.ts [--junit <path>] [filter]`. What they need of the outside, packages and
 * images, is made before.
 */
import { parseArgs } from "node:util";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { FAULTY_LIBRARY, LIBRARY } from "../build.ts";
import { runTool } from "../e2e/support/real_peers.ts";
import { testFolder } from "../lanes.ts";
import { Images } from "./support/images.ts";

const HERE = dirname(fileURLToPath(import.meta.url));

const { values, positionals } = parseArgs({
  options: { junit: { type: "string" } },
  allowPositionals: true,
});
const [filter] = positionals;

if (Deno.uid() !== 0) {
  console.error("These tests need root: another user, systemd and containers");
  Deno.exit(1);
}
await runTool("cargo", LIBRARY, 600_000);
await runTool("cargo", FAULTY_LIBRARY, 600_000);
await runTool(Deno.execPath(), ["cache", "--quiet", join(HERE, "../../main.ts")]);
await using _images = await Images.make();

Deno.exitCode = await testFolder(HERE, { owner: "root", filter, junit: values.junit });
