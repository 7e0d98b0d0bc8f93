/**
 * Every test, behind `deno task test`; with `--quick` all but the end-to-end tests, behind
 * `deno task ok`. Counts each check, each cargo test and each Deno test as one, says how long each step
 * took, and closes with `N passed, N failed`. With CI=true a skipped test is a failure.
 */
import { fileURLToPath } from "node:url";
import process from "node:process";

/** What a step came to. */
export interface Tally {
  passed: number;
  failed: number;
  skipped: number;
}

interface Step {
  readonly title: string;
  readonly command: readonly string[];
  /** How to count; without it the step is one check, which passes with exit code 0. */
  readonly count?: (output: string, junit: string) => Tally;
  /** Left out of `--quick`. */
  readonly slow?: boolean;
  /** For root alone; counts as skipped for others. */
  readonly root?: boolean;
}

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const DENO = Deno.execPath();
const JUNIT = "{junit}";
/** Those below tests/ that need no network of their own. */
const UNIT_TESTS = [
  "tests/all_test.ts",
  "tests/deploy_test.ts",
  "tests/docs_test.ts",
  "tests/framing_test.ts",
  "tests/lanes_test.ts",
  "tests/launcher_test.ts",
  "tests/oracles_test.ts",
];
const BPF_TESTS = ["--features", "mmproxy-ffi/bpf-tests"];
const CARGO_LINT = ["--all-targets", "--", "-D", "warnings"];

const STEPS: readonly Step[] = [
  { title: "Format, TypeScript", command: [DENO, "fmt", "--check"] },
  { title: "Format, Rust", command: ["cargo", "fmt", "--all", "--check"] },
  { title: "Lint, TypeScript", command: [DENO, "lint"] },
  { title: "Lint, Rust", command: ["cargo", "clippy", "--workspace", ...CARGO_LINT] },
  {
    title: "Lint, Rust with its description for TypeScript",
    command: ["cargo", "clippy", "-p", "mmproxy-ffi", "--features", "bindgen", ...CARGO_LINT],
  },
  { title: "Types", command: [DENO, "check", "."] },
  // Apart, with its own dependencies: whoever runs the program downloads no plotting library.
  {
    title: "The benchmark's charts: types",
    command: [DENO, "check", "--config", "bench/charts/deno.json", "bench/charts/main.ts"],
  },
  { title: "Generated files are fresh", command: [DENO, "run", "-A", "tests/native_symbols.ts"] },
  { title: "The BPF object is fresh", command: [DENO, "run", "-A", "tests/bpf_object.ts"] },
  {
    title: "Rust tests of the description for TypeScript",
    command: ["cargo", "test", "-p", "mmproxy-ffi", "--features", "bindgen", "--bin", "symbols"],
    count: countCargo,
  },
  { title: "Build", command: ["cargo", "build", "--release", "-p", "mmproxy-ffi"] },
  // To load the BPF program takes root.
  {
    title: "Rust tests",
    command: ["cargo", "test", "--workspace", ...Deno.uid() === 0 ? BPF_TESTS : []],
    count: countCargo,
  },
  {
    title: "TypeScript tests",
    command: [
      DENO,
      "test",
      "-A",
      "--parallel",
      `--junit-path=${JUNIT}`,
      "src/",
      "bench/",
      "deploy/",
      ...UNIT_TESTS,
    ],
    count: countJunit,
  },
  { title: "The demo", command: [DENO, "task", "demo"], slow: true },
  {
    title: "End-to-end tests, in a network of their own",
    command: [DENO, "run", "-A", "tests/e2e/run.ts", "--junit", JUNIT],
    count: countJunit,
    slow: true,
  },
  // Apart, with their own dependencies, as the charts.
  {
    title: "Manifests and the configuration file, against their schemas",
    command: [
      ...[DENO, "test", "-A", `--junit-path=${JUNIT}`],
      ...["--config", "tests/manifests/deno.json", "tests/manifests"],
    ],
    count: countJunit,
    slow: true,
  },
  {
    title: "Tests that need root: another user, systemd, containers",
    command: [DENO, "run", "-A", "tests/root/run.ts", "--junit", JUNIT],
    count: countJunit,
    slow: true,
    root: true,
  },
];

/** Sums up cargo's closing lines, one for each test binary. */
export function countCargo(output: string): Tally {
  const tally: Tally = { passed: 0, failed: 0, skipped: 0 };
  for (
    const [, passed, failed, ignored] of output.matchAll(
      /^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored/gm,
    )
  ) {
    tally.passed += Number(passed);
    tally.failed += Number(failed);
    tally.skipped += Number(ignored);
  }
  return tally;
}

/** Sums up the suites of a JUnit report. */
export function countJunit(_output: string, junit: string): Tally {
  const tally: Tally = { passed: 0, failed: 0, skipped: 0 };
  for (const [suite] of junit.matchAll(/<testsuite [^>]*>/g)) {
    const number = (name: string) => Number(suite.match(`\\b${name}="(\\d+)"`)?.[1] ?? 0);
    const failed = number("failures") + number("errors");
    tally.failed += failed;
    tally.skipped += number("disabled") + number("skipped");
    tally.passed += number("tests") - failed - number("disabled") - number("skipped");
  }
  return tally;
}

/** A step's tally: one that ran no test, or ended badly with none failed, has failed itself. */
export function judge(counted: Tally | undefined, success: boolean): Tally {
  if (!counted) return { passed: success ? 1 : 0, failed: success ? 0 : 1, skipped: 0 };
  const none = counted.passed + counted.failed === 0;
  const unexplained = !success && counted.failed === 0;
  return { ...counted, failed: counted.failed + (none || unexplained ? 1 : 0) };
}

/** A line about how long a step took: `  2:05  Title`. */
export function showTime(ms: number, title: string): string {
  const seconds = Math.round(ms / 1000);
  const text = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  return `${text.padStart(6)}  ${title}`;
}

async function run(step: Step): Promise<Tally> {
  console.log(`\n== ${step.title}`);
  const junitPath = await Deno.makeTempFile({ prefix: "mmproxy-junit-" });
  try {
    const [program = "", ...args] = step.command.map((word) => word.replace(JUNIT, junitPath));
    const child = new Deno.Command(program, {
      args,
      cwd: ROOT,
      stdin: "null",
      stdout: "piped",
      env: { NO_COLOR: "1" },
    }).spawn();
    let output = "";
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) {
      output += decoder.decode(chunk, { stream: true });
      await process.stdout.write(chunk);
    }
    const { success } = await child.status;
    return judge(step.count?.(output, await Deno.readTextFile(junitPath)), success);
  } catch (error) {
    console.error(`Cannot run ${step.command.join(" ")}: ${error}`);
    return judge(undefined, false);
  } finally {
    await Deno.remove(junitPath);
  }
}

async function main(): Promise<number> {
  const quick = Deno.args.includes("--quick");
  const total: Tally = { passed: 0, failed: 0, skipped: 0 };
  const failures: string[] = [];
  const times: string[] = [];
  for (const step of STEPS) {
    if (quick && step.slow) continue;
    if (step.root && Deno.uid() !== 0) {
      console.log(`\n== ${step.title}: skipped`);
      total.skipped++;
      continue;
    }
    const began = performance.now();
    const tally = await run(step);
    times.push(showTime(performance.now() - began, step.title));
    if (tally.failed > 0) failures.push(step.title);
    total.passed += tally.passed;
    total.failed += tally.failed;
    total.skipped += tally.skipped;
  }
  if (Deno.env.get("CI") === "true" && total.skipped > 0) {
    failures.push("tests that were skipped, which CI does not take");
    total.failed += total.skipped;
    total.skipped = 0;
  }
  console.log(`\n${times.join("\n")}`);
  if (failures.length > 0) console.log(`\nFailed: ${failures.join("; ")}`);
  const skipped = total.skipped > 0 ? `, ${total.skipped} skipped` : "";
  console.log(`\n${total.passed} passed, ${total.failed} failed${skipped}`);
  return total.failed === 0 ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main());
