/**
 * Runs files of tests side by side, each in a process and a network namespace of its own: lanes that take
 * the next file when they are done with one. Most tests wait for time to pass, so that two files together
 * take little longer than one.
 */
import { basename, join } from "node:path";
import process from "node:process";
import { type Owner, runInNamespace } from "./e2e/support/namespace.ts";

const TEST = [Deno.execPath(), "test", "--allow-all", "--cached-only"];
/** Few tests want more processors than one, but some measure time. */
const MOST_LANES = 4;
/** What Deno exits with after Ctrl-C, which reaches every lane. */
const INTERRUPTED = 130;

export interface Options {
  readonly owner: Owner;
  /** Only tests of this name: all files in one process. */
  readonly filter?: string | undefined;
  /** Where the JUnit report goes. */
  readonly junit?: string | undefined;
}

/** Runs the tests in a folder, as many files at once as there are processors; the exit code. */
export async function testFolder(folder: string, options: Options): Promise<number> {
  const { owner, filter, junit } = options;
  if (filter !== undefined) {
    const report = junit === undefined ? [] : [`--junit-path=${junit}`];
    return await runInNamespace([...TEST, ...report, `--filter=${filter}`, folder], owner);
  }
  // All together: each file alone would check what they share again.
  if (!await check(folder)) return 1;
  const { failed, report } = await runInLanes(
    testFiles(folder),
    Math.min(MOST_LANES, navigator.hardwareConcurrency),
    (file, paths) => {
      const test = [...TEST, "--no-check", `--junit-path=${paths.junit}`, file];
      const script = 'log=$1; shift; exec "$@" >"$log" 2>&1';
      return runInNamespace(["sh", "-c", script, "sh", paths.log, ...test], owner);
    },
  );
  if (junit !== undefined) await Deno.writeTextFile(junit, report);
  if (failed.length > 0) console.log(`Failed: ${failed.join(", ")}`);
  return failed.length === 0 ? 0 : 1;
}

async function check(folder: string): Promise<boolean> {
  const command = new Deno.Command(Deno.execPath(), { args: ["check", "--quiet", folder] });
  return (await command.spawn().status).success;
}

/** What all files came to: those that failed, and one report of all. */
export interface Outcome {
  readonly failed: string[];
  readonly report: string;
}

/** Runs one file, which prints and reports to these paths; the exit code. */
export type RunFile = (file: string, paths: { log: string; junit: string }) => Promise<number>;

/** Runs every file, in their order, and prints what each has printed when it ends. */
export async function runInLanes(
  files: readonly string[],
  lanes: number,
  run: RunFile,
  print: (text: string) => Promise<void> = printOut,
): Promise<Outcome> {
  const folder = await Deno.makeTempDir({ prefix: "mmproxy-lanes-" });
  const failed: string[] = [];
  const reports: string[] = [];
  const waiting = files.entries();
  const lane = async () => {
    for (const [index, file] of waiting) {
      const stem = join(folder, `${index}-${basename(file)}`);
      const paths = { log: `${stem}.log`, junit: `${stem}.xml` };
      const code = await run(file, paths);
      await print(await readIfThere(paths.log));
      reports.push(await readIfThere(paths.junit));
      if (code !== 0) failed.push(file);
      if (code === INTERRUPTED) return;
    }
  };
  try {
    await Promise.all(Array.from({ length: lanes }, lane));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
  return { failed: failed.sort(), report: joinJunit(reports) };
}

/** The suites of several JUnit reports as one. */
export function joinJunit(reports: readonly string[]): string {
  const suites = reports.map((report) =>
    /<testsuites[^>]*>(.*)<\/testsuites>/s.exec(report)?.[1] ?? ""
  );
  return `<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="deno test">${
    suites.join("")
  }</testsuites>\n`;
}

/** The files of tests in a folder and below it. */
export function testFiles(folder: string): string[] {
  const files: string[] = [];
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (isDirectory) files.push(...testFiles(join(folder, name)));
    else if (name.endsWith("_test.ts")) files.push(join(folder, name));
  }
  return files.sort();
}

async function printOut(text: string): Promise<void> {
  await new Promise<void>((resolve) => process.stdout.write(text, () => resolve()));
}

async function readIfThere(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "";
    throw error;
  }
}
