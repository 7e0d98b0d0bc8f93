/** The workflows in .github/: their syntax and expressions, and the scripts that they run. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parse } from "yaml";
import { installed, realPeerTest, runTool, Scratch } from "../e2e/support/real_peers.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const FOLDER = join(ROOT, ".github/workflows");
const WORKFLOWS = ["ci.yml", "release.yml"];

interface Workflow {
  readonly permissions: unknown;
  readonly jobs: Record<string, { readonly steps?: readonly { readonly run?: string }[] }>;
}

function read(name: string): string {
  return Deno.readTextFileSync(join(FOLDER, name));
}

/** Every command that a workflow runs. */
function commands(name: string): string[] {
  const { jobs }: Workflow = parse(read(name));
  return Object.values(jobs).flatMap(({ steps = [] }) => steps.flatMap(({ run = [] }) => run));
}

realPeerTest(
  "workflows: have no mistakes, and one that is made is found",
  { actionlint: installed("actionlint"), shellcheck: installed("shellcheck") },
  async () => {
    await runTool("actionlint", WORKFLOWS.map((name) => join(FOLDER, name)));
    await using scratch = await Scratch.make();
    const wrong = read("release.yml").replace("needs: notes", "needs: note");
    const path = await scratch.write("release.yml", wrong);
    await assert.rejects(runTool("actionlint", [path]));
  },
);

Deno.test("workflows: the scripts that they run are there", () => {
  const scripts = WORKFLOWS.flatMap(commands).flatMap((command) =>
    command.match(/(?:\.ci|deploy)\/[\w./-]+/g) ?? []
  );
  assert.ok(scripts.includes(".ci/run") && scripts.includes("deploy/notes.ts"), scripts.join());
  for (const script of scripts) assert.ok(Deno.statSync(join(ROOT, script)).isFile, script);
  const { tasks } = JSON.parse(Deno.readTextFileSync(join(ROOT, "deno.json")));
  const named = WORKFLOWS.flatMap(commands).flatMap((command) =>
    [...command.matchAll(/ task ([a-z]+)/g)].map(([, task = ""]) => task)
  );
  assert.deepEqual(named, ["dist"]);
  for (const task of named) assert.ok(tasks[task], task);
});

Deno.test("workflows: run the Deno that the tests run, and have no rights beyond reading by default", () => {
  const deno = /deno@[\d.]+/.exec(Deno.readTextFileSync(join(ROOT, ".ci/run")))?.[0];
  for (const name of WORKFLOWS) {
    for (const used of read(name).match(/deno@[\d.]+/g) ?? []) assert.equal(used, deno, name);
    assert.deepEqual((parse(read(name)) as Workflow).permissions, { contents: "read" }, name);
  }
});
