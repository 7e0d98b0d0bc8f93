/**
 * The JSON Schema of the configuration file, for editors: writes it with `--write`, or says whether what
 * is checked in is stale: `deno run -A tests/config_schema.ts [--write]`.
 */
import { fileURLToPath } from "node:url";
import { toJsonSchema } from "@valibot/to-json-schema";
import { FILE } from "../src/config/schema.ts";

/** Where it is checked in. */
export const SCHEMA_PATH = fileURLToPath(new URL("../docs/mmproxy.schema.json", import.meta.url));

/** The schema's text. What no editor can check, such as the form of an address, is left out. */
export function schemaText(): string {
  const schema = toJsonSchema(FILE, {
    typeMode: "input",
    ignoreActions: ["max_bytes", "raw_check"],
  });
  return JSON.stringify({ title: "The configuration of mmproxy", ...schema }, null, 2) + "\n";
}

if (import.meta.main) {
  if (Deno.args.includes("--write")) {
    await Deno.writeTextFile(SCHEMA_PATH, schemaText());
  } else if (await Deno.readTextFile(SCHEMA_PATH) !== schemaText()) {
    console.error("docs/mmproxy.schema.json is stale: run deno task schema");
    Deno.exit(1);
  }
}
