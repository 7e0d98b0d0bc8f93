import assert from "node:assert/strict";
import { SCHEMA_PATH, schemaText } from "../../tests/config_schema.ts";
import { parseArguments } from "../cli/arguments.ts";
import { UsageError } from "../cli/usage_error.ts";
import { readConfig } from "./file.ts";
import { ConfigError } from "./mistakes.ts";
import { LISTENER, PROXY } from "./schema.ts";

/** Flags that ask for something else than a configuration. */
const NO_KEYS = ["help", "version", "config"];

function flagsOfTheProgram(): string[] {
  const help = parseArguments(["--help"], "0");
  assert(help.kind === "print");
  const names = help.text.matchAll(/^ {2,6}(?:-\w, )?--([a-z0-9-]+)/gm);
  return [...names].map(([, name = ""]) => name).filter((name) => !NO_KEYS.includes(name));
}

Deno.test("the schema has a key for every flag of the program", () => {
  const flags = flagsOfTheProgram();
  assert.ok(flags.length > 20, `${flags.length} flags`);
  const keys = new Set([...Object.keys(PROXY), ...Object.keys(LISTENER)]);
  assert.deepEqual(flags.filter((flag) => !keys.has(flag)), []);
});

Deno.test("a key belongs to the proxy or to a listener, never to both", () => {
  assert.deepEqual(Object.keys(PROXY).filter((key) => Object.hasOwn(LISTENER, key)), []);
});

/** Whether the command line takes a flag with a value. */
function flagTakes(name: string, value: number): boolean {
  try {
    return parseArguments([`--${name}`, `${value}`], "0").kind === "run";
  } catch (error) {
    assert(error instanceof UsageError);
    return false;
  }
}

/** Whether a file takes a key with a value. */
function keyTakes(name: string, value: number): boolean {
  const line = `${name} = ${value}\n`;
  const listener = `[[listener]]\nlisten = "0.0.0.0:1"\nipv4 = "127.0.0.1:2"\n`;
  try {
    readConfig(Object.hasOwn(PROXY, name) ? line + listener : listener + line, "file");
    return true;
  } catch (error) {
    assert(error instanceof ConfigError);
    return false;
  }
}

const NUMBERS = [
  "close-after",
  "listeners",
  "mark",
  "header-timeout",
  "connect-timeout",
  "keepalive",
  "idle-timeout",
  "drain-timeout",
  "shutdown-delay",
  "table",
];
const AROUND_BOUNDS = [0, 1, 2, 3, 251, 252, 255, 256, 1024, 1025, 32_767, 32_768, 86_400, 86_401]
  .concat([4_000_000, 4_000_001, 0xffff_ffff, 0x1_0000_0000]);

for (const name of NUMBERS) {
  Deno.test(`${name} has one range, as a flag and as a key`, () => {
    const taken = AROUND_BOUNDS.filter((value) => keyTakes(name, value));
    assert.ok(taken.length > 0 && taken.length < AROUND_BOUNDS.length, `${taken}`);
    assert.deepEqual(taken, AROUND_BOUNDS.filter((value) => flagTakes(name, value)));
  });
}

Deno.test("the JSON Schema in docs/ is that of the program", async () => {
  assert.ok(
    await Deno.readTextFile(SCHEMA_PATH) === schemaText(),
    "docs/mmproxy.schema.json is stale: run deno task schema",
  );
});

interface JsonSchema {
  readonly type?: string;
  readonly description?: string;
  readonly additionalProperties?: boolean;
  readonly properties: Record<string, JsonSchema>;
  readonly items: JsonSchema;
  readonly default?: unknown;
  readonly minimum?: number;
  readonly required?: readonly string[];
}

Deno.test("the JSON Schema has every key with a description, and refuses others", () => {
  const schema = JSON.parse(schemaText()) as JsonSchema;
  const { listener, defaults, ...proxy } = schema.properties;
  assert.deepEqual(Object.keys(proxy), Object.keys(PROXY));
  for (const table of [listener?.items, defaults]) {
    assert.deepEqual(Object.keys(table?.properties ?? {}), Object.keys(LISTENER));
    assert.equal(table?.additionalProperties, false);
    assert.equal(table?.properties.trust?.items.additionalProperties, false);
  }
  assert.equal(schema.additionalProperties, false);
  assert.deepEqual(schema.required, ["listener"]);
  for (
    const [key, { description }] of Object.entries({ ...proxy, ...listener?.items.properties })
  ) {
    assert.ok(description, `${key} has no description`);
  }
  const timeout = listener?.items.properties["header-timeout"];
  assert.deepEqual([timeout?.type, timeout?.minimum, timeout?.default], ["integer", 3, 10]);
});

const PAGE = Deno.readTextFileSync(new URL("../../docs/config.md", import.meta.url));

Deno.test("docs/config.md has a row for every key, with its default", () => {
  const rows = new Map<string, string>();
  for (
    const [, keys = "", value = ""] of PAGE.matchAll(
      /^\| (`[a-z0-9-]+`(?:, `[a-z-]+`)*) \| ([^|]+) \|/gm,
    )
  ) {
    for (const [, key = ""] of keys.matchAll(/`([^`]+)`/g)) rows.set(key, value);
  }
  const schema = JSON.parse(schemaText()) as JsonSchema;
  const { listener, defaults: _, ...proxy } = schema.properties;
  for (const [key, entry] of Object.entries({ ...proxy, ...listener?.items.properties })) {
    const value = rows.get(key) ?? assert.fail(`${key} has no row`);
    if (entry.default !== undefined) {
      assert.equal(value, `\`${JSON.stringify(entry.default)}\``, key);
    }
  }
});

Deno.test("docs/config.md: every file of the page can be taken", () => {
  const files = [...PAGE.matchAll(/^```toml\n([^]*?)^```/gm)];
  assert.ok(files.length >= 2);
  for (const [, text = ""] of files) readConfig(text, "docs/config.md");
});
