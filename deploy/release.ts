/**
 * Lays a release out in `dist/mmproxy-<version>/`, and packs it: `deno task release [library …]`. With
 * `--into <folder>` it is laid out there, and not packed.
 *
 * What is there runs with `--allow-ffi` alone, without Rust, a registry, or a home to write in: the
 * program, the packages that it imports, and its native core. Further arguments are libraries for other
 * processors, built elsewhere and named as the program looks for them: `libmmproxy-aarch64.so`.
 */
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import config from "../deno.json" with { type: "json" };
import { bundle } from "./bundle.ts";

/** The repository. */
export const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
const BUILT = join(ROOT, "target/release/libmmproxy.so");

/** What a release holds next to the program. */
const PAPERS = ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs"];
/** Of `deploy/`. */
const DEPLOYMENT = [
  "install.sh",
  "mmproxy.toml",
  "man",
  "completions",
  "compose.yaml",
  "helm",
  "kubernetes",
  "mmproxy.service",
  "mmproxy.service.d",
  "grafana-dashboard.json",
  "prometheus-alerts.yaml",
];
/** Packages that only tests import. */
export const TESTING = new Set(["@valibot/to-json-schema", "fast-check"]);

/** A release that cannot be made; the message is one line that says why. */
export class ReleaseError extends Error {
  override readonly name = "ReleaseError";
}

/** Says on standard error what goes on now, with the seconds since the start: what follows takes a while. */
export function step(text: string): void {
  console.error(`[${Math.round(performance.now() / 1000)} s] ${text}`);
}

/** Runs a script of this folder; what it cannot make is one line on standard error, and exit code 1. */
export async function runScript(name: string, main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    if (!(error instanceof ReleaseError)) throw error;
    console.error(`${name}: ${error.message}`);
    Deno.exit(1);
  }
}

/**
 * Lays a release out.
 *
 * @param target the folder, which is made again
 * @param libraries files that are put beside `main.ts` under their own names
 * @param withOwn whether that which was built here, for this machine, is put there too
 * @throws {ReleaseError} when a library's name is not one that the program looks for, or a package
 *   is not available
 */
export async function layOut(
  target: string,
  libraries: readonly string[] = [],
  withOwn = true,
): Promise<void> {
  for (const library of libraries) checkName(library);
  await Deno.remove(target, { recursive: true }).catch(ignoreMissing);
  await Deno.mkdir(join(target, "deploy"), { recursive: true });
  for (const name of ["main.ts", "bin", "src", "deno.lock", ...PAPERS]) {
    await copy(join(ROOT, name), join(target, name));
  }
  for (const name of DEPLOYMENT) {
    await copy(join(ROOT, "deploy", name), join(target, "deploy", name));
  }
  await installPackages(target);
  await bundle(target);
  for (const library of libraries) await Deno.copyFile(library, join(target, basename(library)));
  const own = `libmmproxy-${Deno.build.arch}.so`;
  if (withOwn) await run(["strip", "--strip-debug", "-o", join(target, own), BUILT], ROOT);
}

/**
 * Puts the packages next to the program: started from there, Deno asks no registry and no cache, which a
 * service's user may not have.
 */
async function installPackages(target: string): Promise<void> {
  const imports = Object.entries(config.imports).filter(([name]) => !TESTING.has(name));
  const settings = {
    name: config.name,
    version: config.version,
    license: config.license,
    exports: config.exports,
    imports: Object.fromEntries(imports),
    compilerOptions: config.compilerOptions,
  };
  const write = (nodeModulesDir: string) => {
    const text = JSON.stringify({ ...settings, nodeModulesDir }, null, 2);
    return Deno.writeTextFile(join(target, "deno.json"), `${text}\n`);
  };
  await write("auto");
  await run([Deno.execPath(), "install", "--quiet", "--entrypoint", "main.ts"], target);
  // From here on nothing is installed, whatever the machine's cache lacks.
  await write("manual");
  await dropTests(join(target, "node_modules"));
}

/**
 * Removes what packages bring for their own tests: megabytes of samples, one of which `deno compile` takes
 * for JavaScript and ends with a stack overflow over it.
 */
async function dropTests(folder: string): Promise<void> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const path = join(folder, name);
    if (!isDirectory) continue;
    if (name === "test") await Deno.remove(path, { recursive: true });
    else await dropTests(path);
  }
}

function checkName(library: string): void {
  if (/^libmmproxy-[a-z0-9_]+\.so$/.test(basename(library))) return;
  throw new ReleaseError(
    `Cannot take ${library}: a library is named libmmproxy-<processor>.so, as libmmproxy-aarch64.so`,
  );
}

/** Builds the native core. */
export async function buildLibrary(): Promise<void> {
  await run(["cargo", "build", "--release", "--package", "mmproxy-ffi"], ROOT);
}

/** Copies a file, or a folder with all that it holds but tests. */
async function copy(from: string, to: string): Promise<void> {
  if ((await Deno.stat(from)).isFile) return await Deno.copyFile(from, to);
  await Deno.mkdir(to);
  for await (const { name } of Deno.readDir(from)) {
    if (!name.endsWith("_test.ts")) await copy(join(from, name), join(to, name));
  }
}

/**
 * Runs a command to its end.
 *
 * @throws {ReleaseError} when it fails
 */
export async function run(
  command: readonly string[],
  cwd: string,
  env: Record<string, string> = {},
): Promise<void> {
  const [program = "", ...args] = command;
  const { success } = await new Deno.Command(program, { args, cwd, env, stdin: "null" })
    .spawn().status;
  if (!success) throw new ReleaseError(`Cannot make the release: ${command.join(" ")} failed`);
}

/**
 * Packs a folder, the same bytes from the same files.
 *
 * @param parent the folder that `name` is in
 */
export async function pack(parent: string, name: string, archive: string): Promise<void> {
  const anyone = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name"];
  const time = await timeOfCommit();
  const command = ["tar", "--create", "--use-compress-program=gzip -n", `--file=${archive}`];
  await run([...command, ...anyone, ...time, name], parent);
}

/** As tar takes it; nothing if there is no repository. */
async function timeOfCommit(): Promise<string[]> {
  try {
    const args = ["log", "-1", "--format=%ct"];
    const { stdout } = await new Deno.Command("git", { args, cwd: ROOT, stderr: "null" }).output();
    const time = new TextDecoder().decode(stdout).trim();
    return time === "" ? [] : [`--mtime=@${time}`];
  } catch (error) {
    ignoreMissing(error);
    return [];
  }
}

function ignoreMissing(error: unknown): void {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}

async function main(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    options: { into: { type: "string" } },
    allowPositionals: true,
  });
  const name = `mmproxy-${config.version}`;
  const dist = join(ROOT, "dist");
  step("Building the native core");
  await buildLibrary();
  step("Laying the release out: the program, its packages, the documentation");
  await layOut(values.into ?? join(dist, name), positionals);
  if (values.into !== undefined) return console.log(values.into);
  const archive = `${name}.tar.gz`;
  step(`Packing ${archive}`);
  await pack(dist, name, join(dist, archive));
  console.log(`dist/${name} and dist/${archive}`);
}

if (import.meta.main) await runScript("release", () => main(Deno.args));
