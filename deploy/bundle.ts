/**
 * The program as few JavaScript modules, in `lib/` of a release. Deno loads them in a quarter of the time
 * that the modules of `src/` take, and needs no cache for what it has compiled
 * (docs/decisions/0086-start-and-memory.md).
 */
import { dirname, join } from "node:path";
import { WORKER_MODULES } from "../src/worker/source.ts";
import { ReleaseError, run } from "./release.ts";

/** Import map for `src/worker/source.ts`: the worker is JavaScript. */
export type WorkerMap = Readonly<Record<string, string>>;

/** In place of `src/worker/javascript.ts`. */
const AS_IT_IS = "export const toJavaScript = (source) => source;\n";

/**
 * Compiles the worker's modules to `worker/`, because neither a bundle nor a compiled program has
 * anything that could do so later.
 *
 * @param folder a release
 */
export async function compileWorker(folder: string): Promise<WorkerMap> {
  const mapped: Record<string, string> = {};
  for (const name of WORKER_MODULES) {
    const source = `./${join("src", name)}`;
    const script = `./${join("worker", name).replace(/ts$/, "js")}`;
    await Deno.mkdir(join(folder, dirname(script)), { recursive: true });
    await run(
      [Deno.execPath(), "transpile", "--quiet", "--no-check", "--output", script, source],
      folder,
    );
    mapped[source] = script;
  }
  const script = "./worker/worker/javascript.js";
  await Deno.writeTextFile(join(folder, script), AS_IT_IS);
  return { ...mapped, "./src/worker/javascript.ts": script };
}

/** Writes `deno.json` of a release with an import map for the worker; what it was before. */
export async function mapWorker(folder: string, map: WorkerMap): Promise<string> {
  const path = join(folder, "deno.json");
  const before = await Deno.readTextFile(path);
  // The modules keep their names; only the text that becomes the worker is another.
  const settings = { ...JSON.parse(before), scopes: { "./src/worker/source.ts": map } };
  await Deno.writeTextFile(path, JSON.stringify(settings, null, 2));
  return before;
}

/**
 * Bundles the program of a release.
 *
 * @param folder a release with its packages
 * @throws {ReleaseError} if what a run loads at its start would load modules of Node
 */
export async function bundle(folder: string): Promise<void> {
  const before = await mapWorker(folder, await compileWorker(folder));
  await run(
    [
      ...[Deno.execPath(), "bundle", "--quiet", "--platform", "deno", "--code-splitting"],
      ...["--outdir", "lib", "main.ts"],
    ],
    folder,
  );
  await Deno.writeTextFile(join(folder, "deno.json"), before);
  await Deno.remove(join(folder, "worker"), { recursive: true });
  const lib = join(folder, "lib");
  for await (const { name } of Deno.readDir(lib)) {
    const path = join(lib, name);
    await Deno.writeTextFile(path, withoutNode(await Deno.readTextFile(path)));
  }
  await checkStart(lib);
}

/**
 * A module of the bundle that loads what it has of Node when it uses it. Deno's modules for Node take as
 * long to load as all of the program, and a run uses none of them.
 */
export function withoutNode(text: string): string {
  return text
    .replace(
      /^import \{ createRequire as (\w+) \} from "node:module";\nvar __require = \1\(import\.meta\.url\);$/m,
      "var __require = (name) => globalThis.process.getBuiltinModule(name);",
    )
    .replace(
      /^import util from "node:util";$/m,
      'const util = { inspect: (...args) => globalThis.process.getBuiltinModule("node:util").inspect(...args) };',
    );
}

/**
 * Checks the modules that `main.js` imports, and those that they import.
 *
 * @throws {ReleaseError} if one of them imports a module of Node
 */
export async function checkStart(lib: string): Promise<void> {
  const names = ["main.js"];
  for (const name of names) {
    const text = await Deno.readTextFile(join(lib, name));
    for (
      const [, found = ""] of text.matchAll(
        /^(?:(?:import [^"\n]*|\} )from|import) "([^"\n]+)";$/gm,
      )
    ) {
      if (found.startsWith("node:")) {
        throw new ReleaseError(
          `Cannot make the release: lib/${name} imports ${found} at its start`,
        );
      }
      const next = found.replace(/^\.\//, "");
      if (!names.includes(next)) names.push(next);
    }
  }
}
