/**
 * One binary with everything inside: `deno task compile` writes `dist/mmproxy`.
 *
 * `deno compile` puts the program, its packages and the native core behind a copy of Deno's runtime,
 * which it fetches; `DENORT_BIN` names one that is there already. At run time Deno writes the embedded
 * library to the directory for temporary files, and loads it from there (docs/decisions/0036).
 */
import { basename, join } from "node:path";
import { compileWorker, mapWorker } from "./bundle.ts";
import { buildLibrary, layOut, ReleaseError, ROOT, runScript } from "./release.ts";

const LIBRARY = `libmmproxy-${Deno.build.arch}.so`;

/**
 * Lays out what is compiled: a release whose worker is JavaScript, because a compiled program has
 * nothing that could compile TypeScript.
 *
 * @param target the folder, which is made again
 */
export async function layOutForCompile(target: string): Promise<void> {
  await layOut(target);
  await mapWorker(target, await compileWorker(target));
}

/**
 * Compiles what `layOutForCompile` laid out.
 *
 * @param runtime the path of a runtime that is there already; without one Deno fetches it
 * @returns Deno's account of what the binary holds
 * @throws {ReleaseError} in one line, also when the runtime is not available
 */
export async function compile(from: string, binary: string, runtime?: string): Promise<string> {
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["compile", "--no-check", "--no-prompt", "--allow-ffi"],
      ...["--include", LIBRARY, "--output", binary, "main.ts"],
    ],
    cwd: from,
    env: { NO_COLOR: "1", ...(runtime === undefined ? {} : { DENORT_BIN: runtime }) },
    stdin: "null",
    stdout: "null",
  }).output();
  const said = new TextDecoder().decode(stderr);
  if (success) return said;
  throw new ReleaseError(`Cannot compile: ${reason(said)}`);
}

/** What Deno said, as one line. */
function reason(said: string): string {
  const [, url, why] = /error sending request for url \((\S+denort\S+)\): (.*)/.exec(said) ?? [];
  if (url !== undefined) {
    return `Deno's runtime cannot be fetched from ${url} (${why}); compile where it can, or name ` +
      `one of Deno ${Deno.version.deno} with DENORT_BIN`;
  }
  const lines = said.trim().split("\n").filter((line) => line !== "");
  return (lines.find((line) => line.startsWith("error:")) ?? lines.at(-1) ?? "Deno did not say why")
    .replace(/^error: /, "");
}

async function main(): Promise<void> {
  const stage = join(ROOT, "dist/compile");
  const binary = join(ROOT, "dist/mmproxy");
  await buildLibrary();
  await layOutForCompile(stage);
  console.log(await compile(stage, binary));
  console.log(`dist/${basename(binary)}`);
}

if (import.meta.main) await runScript("compile", () => main());
