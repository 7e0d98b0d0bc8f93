/** What the program writes where standard error is the journal's, and how a failed start is written. */
import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { command, killAtEnd, runToEnd } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { eventually, within } from "./support/time.ts";

/** As systemd sets it (systemd.exec(5)). */
const JOURNAL = 'export JOURNAL_STREAM=$(stat -Lc %d:%i /dev/fd/2); exec "$@"';

Deno.test("journal: lines have a priority, and neither a time nor a level", async () => {
  const args = ["-l", `127.0.0.1:${freePort()}`];
  const child = command(args, { shell: JOURNAL }).spawn();
  using _end = killAtEnd(child);
  let said = "";
  const reading = (async () => {
    for await (const chunk of child.stderr.pipeThrough(new TextDecoderStream())) said += chunk;
  })();
  await eventually(() => said.includes("Listening"), "the program");
  child.kill("SIGTERM");
  await within(reading, "end of the log");
  assert.equal((await child.status).code, 0);
  assert.match(said, /^<4>Every peer may send PROXY headers/m);
  assert.match(said, /^<6>Listening on /m);
  for (const line of said.trimEnd().split("\n")) assert.match(line, /^<[3467]>[A-Z]/);
});

Deno.test("journal: a variable that another program's output had means nothing", async () => {
  const shell = 'export JOURNAL_STREAM=8:15; exec "$@"';
  const { stderr } = await runToEnd(["-l", "nonsense"], { shell });
  assert.match(stderr, /^mmproxy: /);
});

Deno.test("journal: a failed start is an error there, in text and JSON", async () => {
  const { code, stderr } = await runToEnd(["-l", "nonsense"], { shell: JOURNAL });
  assert.equal(code, 2);
  assert.match(stderr, /^<3>Option -l, --listen-addr: "nonsense" is not [^\n]*\n$/);
  const json = await runToEnd(["-l", "nonsense", "--log-format", "json"], { shell: JOURNAL });
  assert.match(json.stderr, /^<3>\{"time":[^\n]*\}\n$/);
});

const CANNOT = "203.0.113.5:80";
const FAILURES: [what: string, args: (path: string) => string[], code: number, message: RegExp][] =
  [
    ["an option", () => ["--log-format=json", "--nonsense"], 2, /^Unknown option '--nonsense'/],
    ["a value", () => ["--log-format", "JSON", "-p", "x"], 2, /^Option -p, --protocol: "x" is/],
    ["an address", () => ["--log-format", "json", "-l", CANNOT], 1, /not an address of this host/],
    ["a file", (path) => ["--config", path], 2, /m\.toml, line \d: /],
  ];

for (const [what, args, code, message] of FAILURES) {
  Deno.test(`journal: with --log-format json the start that fails for ${what} is a JSON line`, async () => {
    await using scratch = await Scratch.make();
    const path = await scratch.write("m.toml", 'log-format = "json"\n[[listener]]\nlisten = 7\n');
    const ended = await runToEnd(args(path));
    assert.equal(ended.code, code);
    const lines = ended.stderr.trimEnd().split("\n").map((line) => JSON.parse(line));
    const failures = lines.filter(({ event }) => event === "failed");
    const { level, exit_code } = failures[0];
    assert.deepEqual({ level, exit_code }, { level: "error", exit_code: code });
    assert.match(failures[0].message, message);
    assert.equal(lines.at(-1).event, "failed");
  });
}

Deno.test("environment: flags in variables, through the launcher", async () => {
  const shell = (assignments: string) => `export ${assignments}; exec "$@"`;
  const wrong = await runToEnd([], { shell: shell("MMPROXY_LISTEN_ADDR=nonsense") });
  assert.equal(wrong.code, 2);
  assert.match(wrong.stderr, /^mmproxy: Option MMPROXY_LISTEN_ADDR: "nonsense" is not /);
  const json = await runToEnd(["-p", "x"], { shell: shell("MMPROXY_LOG_FORMAT=json") });
  assert.equal(JSON.parse(json.stderr).exit_code, 2);
  // Without the permission nobody is asked, and nothing is read.
  const alone = await runToEnd(["--version"], {
    permissions: [],
    shell: shell("MMPROXY_LISTEN_ADDR=nonsense"),
  });
  assert.equal(alone.code, 0, alone.stderr);
});
