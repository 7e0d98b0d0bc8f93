import assert from "node:assert/strict";
import project from "../../deno.json" with { type: "json" };
import { ProgramCopy } from "./support/program_copy.ts";
import { join } from "node:path";
import { freePort } from "./support/endpoints.ts";
import { type Ended, runToEnd } from "./support/program.ts";

/** The lines of an error output. */
function lines(text: string): string[] {
  return text.split("\n").filter((line) => line !== "");
}

const WRONG: [args: string[], named: string[]][] = [
  [["--nonsense"], ["--nonsense"]],
  [["-4", "127.0.0.1:70000"], ["-4", "127.0.0.1:70000"]],
  [["-4", "[::1]:443"], ["-4", "[::1]:443"]],
  [["-6", "127.0.0.1:443"], ["-6", "127.0.0.1:443"]],
  [["-6", "[::1]:65536"], ["-6", "65536"]],
  [["-l", "127.0.0.1"], ["-l", "127.0.0.1"]],
  [["-p", "sctp"], ["-p", "sctp"]],
  [["-c", "0.5x"], ["-c", "0.5x"]],
  [["-m", "-1"], ["-m", "-1"]],
  [["-m", "4294967296"], ["-m", "4294967296"]],
  [["--listeners", "0"], ["--listeners", "0"]],
  [["--header-timeout", "2"], ["--header-timeout", "2"]],
  [["--connect-timeout", "soon"], ["--connect-timeout", "soon"]],
  [["--udp-header", "maybe"], ["--udp-header", "maybe"]],
  [["--log-level", "loud"], ["--log-level", "loud"]],
  [["--log-format", "xml"], ["--log-format", "xml"]],
  [["--metrics-addr", "9100"], ["--metrics-addr", "9100"]],
  [["-l"], ["-l"]],
  [["surplus"], ["surplus"]],
];

for (const [args, named] of WRONG) {
  Deno.test(`command line: ${args.join(" ")} is refused with 2 and one line`, async () => {
    const { code, stderr, stdout } = await runToEnd(args);
    assert.equal(code, 2, stderr);
    assert.equal(lines(stderr).length, 1, stderr);
    assert.equal(stdout, "");
    for (const word of named) assert.ok(stderr.includes(word), `"${word}" in: ${stderr}`);
  });
}

Deno.test("command line: --help lists every flag of mmproxy-rs and every one beyond", async () => {
  const { code, stdout, stderr } = await runToEnd(["--help"]);
  assert.equal(code, 0, stderr);
  for (
    const flag of [
      "-h, --help",
      "-4, --ipv4",
      "-6, --ipv6",
      "-a, --allowed-subnets",
      "-c, --close-after",
      "-l, --listen-addr",
      "--listeners",
      "-p, --protocol",
      "-m, --mark",
      "--header-timeout",
      "--udp-header",
      "--connect-timeout",
      "--version",
      "--log-level",
      "--log-format",
      "--metrics-addr",
    ]
  ) {
    assert.ok(stdout.includes(flag), `${flag} in:\n${stdout}`);
  }
});

Deno.test("command line: --version prints the version of deno.json and of the native core's crate", async () => {
  const { code, stdout, stderr } = await runToEnd(["--version"]);
  assert.equal(code, 0, stderr);
  const crate = await Deno.readTextFile(new URL("../../ffi/Cargo.toml", import.meta.url));
  const version = /^version = "(.*)"$/m.exec(crate)?.[1] ?? "";
  assert.equal(version, project.version);
  assert.equal(stdout.trim(), `mmproxy ${version}`);
});

/** Asserts an exit with this code and one line that names each of `words`. */
function assertCannotRun({ code, stderr }: Ended, words: RegExp[], expected = 1): void {
  assert.equal(code, expected, stderr);
  assert.equal(lines(stderr).length, 1, stderr);
  for (const word of words) assert.match(stderr, word);
}

for (const protocol of ["tcp", "udp", "both"] as const) {
  Deno.test(`start: a busy port ends -p ${protocol} with 1 and says which`, async () => {
    const port = freePort();
    const busy = protocol === "tcp"
      ? Deno.listen({ hostname: "127.0.0.1", port })
      : await busyUdp(port);
    try {
      const ended = await runToEnd(["-p", protocol, "-l", `127.0.0.1:${port}`]);
      assertCannotRun(ended, [new RegExp(`127\\.0\\.0\\.1:${port}`)]);
    } finally {
      busy.close();
    }
  });
}

async function busyUdp(port: number): Promise<{ close(): void }> {
  const { createSocket } = await import("node:dgram");
  const socket = createSocket("udp4");
  await new Promise<void>((resolve) => socket.bind(port, "127.0.0.1", () => resolve()));
  return socket;
}

Deno.test("start: an address that is not of this host ends with 1 and says which", async () => {
  const port = freePort();
  assertCannotRun(await runToEnd(["-l", `203.0.113.5:${port}`]), [/203\.0\.113\.5/]);
});

Deno.test("start: without the capability it ends with 2 and says what to do", async () => {
  const ended = await runToEnd(["-l", `127.0.0.1:${freePort()}`], {
    shell: 'exec setpriv --inh-caps=-all --bounding-set=-all "$@"',
  });
  assertCannotRun(ended, [/CAP_NET_ADMIN/], 2);
});

Deno.test("start: without the library it ends with 1 and names the paths and the command", async () => {
  await using copy = await ProgramCopy.make();
  const ended = await runToEnd(["-l", `127.0.0.1:${freePort()}`], { root: copy.root });
  assertCannotRun(ended, [/libmmproxy\S*\.so/, /deno task build/]);
});

const SUBNET_FILES: [name: string, content: string | undefined, words: RegExp[]][] = [
  ["a wrong line", "10.0.0.0/8\n# fine\n10.0.0.0/33\n", [/line 3|:3\b/, /10\.0\.0\.0\/33/]],
  ["words", "127.0.0.1\nlocalhost\n", [/line 2|:2\b/, /localhost/]],
  ["no subnets", "# nothing\n\n", []],
  ["no content", "", []],
  ["nowhere to be found", undefined, []],
];

for (const [name, content, words] of SUBNET_FILES) {
  Deno.test(`start: a subnet file with ${name} ends with 2 and says so`, async () => {
    const directory = await Deno.makeTempDir();
    const path = join(directory, "subnets.txt");
    try {
      if (content !== undefined) await Deno.writeTextFile(path, content);
      const ended = await runToEnd(["-l", `127.0.0.1:${freePort()}`, "-a", path]);
      assertCannotRun(ended, [/subnets\.txt/, ...words], 2);
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  });
}
