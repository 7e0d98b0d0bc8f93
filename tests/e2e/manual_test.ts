/** The man pages and completions, as man, mandoc and the shells take them; and `mmproxy help`. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { runToEnd } from "./support/program.ts";
import { installed, realPeerTest, runTool } from "./support/real_peers.ts";

const DEPLOY = fileURLToPath(new URL("../../deploy", import.meta.url));
const COMPLETIONS = `${DEPLOY}/completions`;
const PAGES = ["mmproxy.1", "mmproxy.toml.5"].map((name) => `${DEPLOY}/man/${name}`);

realPeerTest("manual: man pages have no mistakes", { mandoc: installed("mandoc") }, async () => {
  for (const page of PAGES) {
    // It ends with an error code where it has something to say.
    const { stdout } = await new Deno.Command("mandoc", {
      args: ["-T", "lint", "-W", "warning", page],
    }).output();
    const said = new TextDecoder().decode(stdout).trim().split("\n");
    // A date would change with every build, or be wrong.
    assert.deepEqual(said.filter((line) => !/missing date/.test(line)), [], page);
    const text = await runTool("mandoc", ["-T", "utf8", page]);
    assert.match(text.replaceAll(/.[\b]/g, ""), /^SEE ALSO$/m);
  }
});

/** What bash completes behind these words. */
async function bash(...words: string[]): Promise<string[]> {
  const script = 'source "$0"; COMP_WORDS=(mmproxy "$@"); COMP_CWORD=$#; _mmproxy; ' +
    'printf "%s\\n" "${COMPREPLY[@]}"';
  const said = await runTool("bash", ["-ec", script, `${COMPLETIONS}/mmproxy.bash`, ...words]);
  return said.trim().split("\n");
}

Deno.test("manual: bash completes commands, options, and what they take", async () => {
  assert.deepEqual(await bash("do"), ["doctor"]);
  assert.deepEqual(await bash("routes", "s"), ["show"]);
  assert.deepEqual(await bash("--sandbox", ""), ["auto", "on", "off"]);
  assert.deepEqual(await bash("-l", ""), [""]);
  assert.deepEqual(await bash("-a", "/etc/hostnam"), ["/etc/hostname"]);
  assert.ok((await bash("close", "--")).includes("--client"));
  assert.ok(!(await bash("close", "--")).includes("--mark"));
});

realPeerTest(
  "manual: fish completes commands, options, and what they take",
  { fish: installed("fish") },
  async () => {
    const complete = async (line: string) => {
      const script = `source ${COMPLETIONS}/mmproxy.fish; complete -C '${line}'`;
      const said = await runTool("fish", ["--no-config", "-c", script]);
      return said.trim().split("\n").map((line) => line.split("\t")[0]);
    };
    assert.deepEqual(await complete("mmproxy doc"), ["doctor"]);
    assert.deepEqual((await complete("mmproxy --sandbox ")).sort(), ["auto", "off", "on"]);
    assert.deepEqual(await complete("mmproxy routes s"), ["show"]);
    assert.ok((await complete("mmproxy close --")).includes("--client"));
  },
);

realPeerTest(
  "manual: zsh completes commands, options, and what they take",
  { zsh: installed("zsh") },
  async () => {
    // What _arguments and _describe, zsh's own, are given.
    const script = '_arguments() { print -rl -- "$@" }; _describe() { print -rl -- $commands }; ' +
      'file=$1; shift; words=(mmproxy "$@"); CURRENT=$#words; source $file';
    const given = async (...words: string[]) =>
      (await runTool("zsh", ["-fc", script, "zsh", `${COMPLETIONS}/_mmproxy`, ...words])).split(
        "\n",
      );
    assert.ok((await given("d")).some((line) => line.startsWith("doctor:")));
    assert.ok((await given("routes", "")).includes("1:routes:(up down show)"));
    const own = await given("--sandbox", "");
    assert.ok(own.some((line) => /^--sandbox\[.*\]:mode:\(auto on off\)$/.test(line)));
    assert.ok(own.some((line) => /^\(-m --mark\)--mark\[/.test(line)), own.join("\n"));
    assert.ok((await given("close", "--")).some((line) => line.startsWith("--client[")));
  },
);

Deno.test("manual: help prints a page; an unknown topic is exit code 1 and one line", async () => {
  const page = await runToEnd(["help", "dscp"]);
  assert.equal(page.code, 0, page.stderr);
  assert.match(page.stdout, /^# DSCP\n/);
  const list = await runToEnd(["help"]);
  assert.match(list.stdout, /^ {2}aws-nlb {2}/m);
  const ended = await runToEnd(["help", "dspc"]);
  assert.equal(ended.code, 1);
  assert.equal(ended.stderr, 'mmproxy: There is no page "dspc"; did you mean dscp?\n');
});
