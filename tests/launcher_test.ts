/** bin/mmproxy, with a script in Deno's place that prints what it was started with. */
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
const LAUNCHER = join(ROOT, "bin/mmproxy");

/** Prints each of its words as a line, and whether SIGUSR1 is ignored. */
const DENO = (version: string) =>
  `#!/bin/sh
[ "$1" = --version ] && echo "deno ${version} (stable)" && exit
grep ^SigIgn /proc/$$/status
printf '%s\\n' "$@"
`;

/** A release with nothing but the launcher, next to a Deno that only prints. */
class Place implements Disposable {
  readonly root = Deno.makeTempDirSync({ prefix: "mmproxy-launcher-" });
  readonly launcher = `${this.root}/release/bin/mmproxy`;

  constructor(version = "2.9.6") {
    Deno.mkdirSync(dirname(this.launcher), { recursive: true });
    Deno.copyFileSync(LAUNCHER, this.launcher);
    Deno.writeTextFileSync(`${this.root}/release/main.ts`, "");
    Deno.mkdirSync(`${this.root}/path`);
    this.program("path/deno", DENO(version));
  }

  program(name: string, text: string): string {
    const path = `${this.root}/${name}`;
    Deno.writeTextFileSync(path, text, { mode: 0o755 });
    return path;
  }

  write(name: string, text: string): string {
    const path = `${this.root}/${name}`;
    Deno.writeTextFileSync(path, text);
    return path;
  }

  /** Runs it with this environment alone. */
  run(
    args: readonly string[],
    env: Record<string, string> = {},
    command = this.launcher,
  ): { code: number; lines: string[]; stderr: string } {
    const PATH = `${this.root}/path:/usr/bin:/bin`;
    const { code, stdout, stderr } = new Deno.Command(command, {
      args: [...args],
      clearEnv: true,
      env: { PATH, ...env },
    }).outputSync();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    return { code, lines: text(stdout).trimEnd().split("\n"), stderr: text(stderr) };
  }

  /** The permissions that it gives. */
  allowed(args: readonly string[], env: Record<string, string> = {}): string[] {
    const { code, lines, stderr } = this.run(args, env);
    assert.equal(code, 0, stderr);
    return lines.filter((line) => line.startsWith("--allow")).toSorted();
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.root, { recursive: true });
  }
}

Deno.test("launcher: passes every word on, with --allow-ffi alone", () => {
  using place = new Place();
  const words = ["-l", "0.0.0.0:80 ", "", "*", "--log-format=json", "a\nb"];
  const { code, lines } = place.run(words);
  assert.equal(code, 0);
  const main = lines.indexOf(`${place.root}/release/main.ts`);
  assert.equal(lines.slice(main + 1).join("\n"), words.join("\n"));
  const flags = lines.slice(1, main);
  assert.deepEqual(flags.filter((flag) => !flag.startsWith("--v8-flags=")), [
    "run",
    "--quiet",
    "--no-prompt",
    "--allow-ffi",
  ]);
});

Deno.test("launcher: SIGUSR1 is ignored before the program has a handler", () => {
  using place = new Place();
  const [ignored = ""] = place.run([]).lines;
  assert.ok(BigInt(`0x${/\t(\w+)$/.exec(ignored)?.[1]}`) & (1n << 9n), ignored);
});

const METRICS: [what: string, args: string[], net: string[]][] = [
  ["an IPv4 address", ["--metrics-addr", "127.0.0.1:9100"], ["--allow-net=127.0.0.1:9100"]],
  ["behind =", ["--metrics-addr=0.0.0.0:9100"], ["--allow-net=0.0.0.0:9100"]],
  ["an IPv6 address", ["--metrics-addr", "[2001:db8::1]:9100"], ["--allow-net=[2001:db8::1]:9100"]],
  ["any IPv6 address", ["--metrics-addr", "[::]:9100"], ["--allow-net=[::]:9100"]],
  ["the last of two", ["--metrics-addr=127.0.0.1:1", "--metrics-addr=127.0.0.1:2"], [
    "--allow-net=127.0.0.1:2",
  ]],
  ["an address with a scope", ["--metrics-addr", "[fe80::1%eth0]:9100"], ["--allow-net"]],
  ["a port that is none", ["--metrics-addr", "127.0.0.1:99999"], ["--allow-net"]],
  ["no IPv6 address", ["--metrics-addr", "[:::1]:9100"], ["--allow-net"]],
  ["no port", ["--metrics-addr", "127.0.0.1"], ["--allow-net"]],
  ["more than an address", ["--metrics-addr", "127.0.0.1:1,192.0.2.1:1"], ["--allow-net"]],
  ["nothing", ["--metrics-addr="], []],
  ["another flag's value", ["-a", "x--metrics-addr=127.0.0.1:1"], []],
];

for (const [what, args, net] of METRICS) {
  Deno.test(`launcher: --metrics-addr, ${what}: ${net[0] ?? "no permission"}`, () => {
    using place = new Place();
    assert.deepEqual(place.allowed(args), ["--allow-ffi", ...net]);
  });
}

const FILES: [what: string, text: string, net: string[]][] = [
  ["has the key", 'workers = 2\nmetrics-addr = "127.0.0.1:9100" # here', [
    "--allow-net=127.0.0.1:9100",
  ]],
  ["has it in single quotes", "\t'metrics-addr'='127.0.0.1:9100'", ["--allow-net=127.0.0.1:9100"]],
  ["has it in another form", 'metrics-addr = """127.0.0.1:9100"""', ["--allow-net"]],
  ["has a comment", '  # metrics-addr = "127.0.0.1:9100"\nworkers = 2\n', []],
  ["has no such key", "workers = 2\n", []],
];

for (const [what, text, net] of FILES) {
  Deno.test(`launcher: a file that ${what}: ${net[0] ?? "no permission"}`, () => {
    using place = new Place();
    const file = place.write("mmproxy.toml", text);
    assert.deepEqual(place.allowed(["--config", file]), ["--allow-ffi", ...net]);
    assert.deepEqual(place.allowed([`--config=${file}`]), ["--allow-ffi", ...net]);
    assert.deepEqual(place.allowed([], { MMPROXY_CONFIG: file }), [
      "--allow-env=MMPROXY_CONFIG",
      "--allow-ffi",
      ...net,
    ]);
    const other = ["--config", file, "--metrics-addr", "[::1]:9"];
    assert.deepEqual(place.allowed(other), ["--allow-ffi", "--allow-net=[::1]:9"]);
  });
}

Deno.test("launcher: a file that cannot be read is the program's to name", () => {
  using place = new Place();
  assert.deepEqual(place.allowed(["--config", "/nowhere"]), ["--allow-ffi"]);
});

Deno.test("launcher: the variables that may be flags can be read, and no others", () => {
  using place = new Place();
  const env = { MMPROXY_IPV4: "a\nb", MMPROXY_LISTEN_ADDR: "x", HOME: "/", MMPROXY_OPTIONS: "-4" };
  assert.deepEqual(place.allowed([], env), [
    "--allow-env=MMPROXY_IPV4,MMPROXY_LISTEN_ADDR",
    "--allow-ffi",
  ]);
  assert.deepEqual(place.allowed([], { MMPROXY_METRICS_ADDR: "127.0.0.1:9100" }), [
    "--allow-env=MMPROXY_METRICS_ADDR",
    "--allow-ffi",
    "--allow-net=127.0.0.1:9100",
  ]);
});

Deno.test("launcher: a release's packages are there, and nothing is fetched", () => {
  using place = new Place();
  assert.ok(!place.run([]).lines.includes("--cached-only"));
  Deno.mkdirSync(`${place.root}/release/node_modules`);
  assert.ok(place.run([]).lines.includes("--cached-only"));
});

Deno.test("launcher: is found through links, and a link to the release's directory stays", () => {
  using place = new Place();
  const { root } = place;
  Deno.symlinkSync("release", `${root}/current`);
  Deno.symlinkSync(`${root}/current/bin/mmproxy`, `${root}/path/absolute`);
  Deno.symlinkSync("absolute", `${root}/path/mmproxy`);
  const { lines } = place.run([], {}, `${root}/path/mmproxy`);
  assert.ok(lines.includes(`${root}/current/main.ts`), lines.join("\n"));
});

Deno.test("launcher: starts the bundle of a release, and main.ts without one", () => {
  using place = new Place();
  const { root } = place;
  assert.ok(place.run([]).lines.includes(`${root}/release/main.ts`));
  Deno.mkdirSync(`${root}/release/lib`);
  place.write("release/lib/main.js", "");
  const { lines } = place.run(["-m", "5"]);
  assert.deepEqual(lines.slice(-3), [`${root}/release/lib/main.js`, "-m", "5"]);
});

Deno.test("launcher: takes MMPROXY_DENO, then a Deno next to main.ts, then that on the PATH", () => {
  using place = new Place("2.9.0");
  const says = (name: string) =>
    place.program(name, `#!/bin/sh\n[ "$1" = --version ] && echo deno 2.9.1 || echo ${name}\n`);
  const [, runs] = place.run([]).lines;
  assert.equal(runs, "run");
  says("release/deno");
  assert.deepEqual(place.run([]).lines, ["release/deno"]);
  const MMPROXY_DENO = says("named");
  assert.deepEqual(place.run([], { MMPROXY_DENO }).lines, ["named"]);
});

const FAILURES: [what: string, prepare: (place: Place) => Record<string, string>, line: RegExp][] =
  [
    [
      "Deno is missing",
      ({ root }) => ({ PATH: `${root}/nowhere` }),
      /^mmproxy: Deno is not on the PATH: install it \(npm install -g deno\), or set MMPROXY_DENO to its path\n$/,
    ],
    [
      "Deno is too old",
      (place) => ({ MMPROXY_DENO: place.program("old", DENO("2.8.3")) }),
      /^mmproxy: Deno 2\.8\.3 at \/\S+\/old is too old, minimum 2\.9: install it \(npm install -g deno\), .*\n$/,
    ],
    [
      "Deno is much too old",
      (place) => ({ MMPROXY_DENO: place.program("old", DENO("1.46.3")) }),
      /^mmproxy: Deno 1\.46\.3 at \/\S+\/old is too old, minimum 2\.9: .*\n$/,
    ],
    [
      "MMPROXY_DENO leads nowhere",
      () => ({ MMPROXY_DENO: "/nowhere" }),
      /^mmproxy: MMPROXY_DENO: \/nowhere is not a program; set it to the path of Deno\n$/,
    ],
    [
      "it is another program",
      () => ({ MMPROXY_DENO: "/bin/echo" }),
      /^mmproxy: \/bin\/echo is not Deno: install it .*\n$/,
    ],
    [
      "Deno cannot be run",
      (place) => ({ MMPROXY_DENO: place.program("broken", "#!/nowhere\n") }),
      /^mmproxy: Cannot run \/\S+\/broken: .*not found\n$/,
    ],
    [
      "the program is not there",
      ({ root }) => {
        Deno.removeSync(`${root}/release/main.ts`);
        return {};
      },
      /^mmproxy: No \/\S+\/release\/main\.ts: \/\S+\/bin\/mmproxy must lie in .*\n$/,
    ],
  ];

for (const [what, prepare, line] of FAILURES) {
  Deno.test(`launcher: says in one line, with code 2, that ${what}`, () => {
    using place = new Place();
    const { code, lines, stderr } = place.run([], prepare(place));
    assert.match(stderr, line);
    assert.deepEqual(lines, [""]);
    assert.equal(code, 2);
  });
}

Deno.test("launcher: 2.10 is newer than the minimum, and so is 3.0", () => {
  for (const version of ["2.10.0", "3.0.0", "2.9.0"]) {
    using place = new Place(version);
    assert.equal(place.run([]).code, 0, version);
  }
});

/** Whether the machine has a command. */
function has(command: string): boolean {
  return new Deno.Command("sh", { args: ["-c", `command -v ${command}`], stdout: "null" })
    .outputSync().success;
}

Deno.test({
  name: "launcher: shellcheck finds nothing",
  ignore: !has("shellcheck"),
  fn() {
    const { code, stdout } = new Deno.Command("shellcheck", { args: [LAUNCHER] }).outputSync();
    assert.equal(code, 0, new TextDecoder().decode(stdout));
  },
});
