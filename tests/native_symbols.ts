/**
 * The generated TypeScript of the native core: writes it with `--write`, or says whether what is
 * checked in is stale: `deno run -A tests/native_symbols.ts [--write]`.
 */
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const GENERATED = ["symbols", "layout"] as const;

/** What the crate describes now, formatted as the checked-in file is. */
async function generate(what: (typeof GENERATED)[number]): Promise<string> {
  const described = await output(
    "cargo",
    ["run", "-q", "-p", "mmproxy-ffi", "--features", "bindgen", "--bin", "symbols", "--", what],
  );
  const format = new Deno.Command(Deno.execPath(), {
    args: ["fmt", "--ext", "ts", "-"],
    cwd: ROOT,
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const writer = format.stdin.getWriter();
  await writer.write(new TextEncoder().encode(described));
  await writer.close();
  const { success, stdout } = await format.output();
  if (!success) throw new Error(`Cannot format the generated ${what}`);
  return new TextDecoder().decode(stdout);
}

async function output(program: string, args: string[]): Promise<string> {
  const { success, stdout } = await new Deno.Command(program, {
    args,
    cwd: ROOT,
    stderr: "inherit",
  }).output();
  if (!success) throw new Error(`${program} ${args.join(" ")} failed`);
  return new TextDecoder().decode(stdout);
}

let stale = 0;
for (const what of GENERATED) {
  const path = `${ROOT}src/native/${what}.ts`;
  const text = await generate(what);
  if (Deno.args.includes("--write")) {
    await Deno.writeTextFile(path, text);
  } else if (await Deno.readTextFile(path) !== text) {
    console.error(`src/native/${what}.ts is stale: run deno task symbols`);
    stale++;
  }
}
Deno.exit(stale === 0 ? 0 : 1);
