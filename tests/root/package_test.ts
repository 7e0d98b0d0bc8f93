/** The packages and the archive with Deno inside, on a Debian that has neither Deno nor Rust to run them. */
import assert from "node:assert/strict";
import { basename, join } from "node:path";
import config from "../../deno.json" with { type: "json" };
import { distribute, type Kind } from "../../deploy/dist.ts";
import { ROOT } from "../../deploy/release.ts";
import { TARGETS } from "../../deploy/targets.ts";
import { freePort, show } from "../e2e/support/endpoints.ts";
import { v2 } from "../e2e/support/headers.ts";
import { blocksOf } from "../e2e/support/page.ts";
import { installed, realPeerTest, runTool } from "../e2e/support/real_peers.ts";
import { assertSeenOverTcp } from "../e2e/support/seen.ts";
import { Stream, TcpService, tellAndEcho } from "../e2e/support/tcp.ts";
import { eventually } from "../e2e/support/time.ts";
import type { Container } from "./support/container.ts";
import { NEEDS } from "./support/images.ts";
import { startMachine } from "./support/machine.ts";

const CLIENT = { ip: "203.0.113.81", port: 40_081 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
const TOOLS = { ...NEEDS, nfpm: installed("nfpm"), rpm: installed("rpm") };
const OLD = "0.0.1";

/** What the tests install, made once for all of them, with the Deno that runs the tests. */
class Made {
  private constructor(
    readonly folder: string,
    readonly paths: Readonly<Record<"old" | "new", Readonly<Record<string, string>>>>,
  ) {}

  static async make(): Promise<Made> {
    const folder = await Deno.makeTempDir({ prefix: "mmproxy-packages-" });
    const old = await Made.#distribute(folder, OLD, "deb", "rpm");
    return new Made(folder, {
      old,
      new: await Made.#distribute(folder, config.version, "deb", "rpm", "full"),
    });
  }

  /** By their kinds. */
  static async #distribute(
    out: string,
    version: string,
    ...only: Kind[]
  ): Promise<Record<string, string>> {
    const target = TARGETS.find(({ arch, glibc }) =>
      arch === Deno.build.arch && glibc !== undefined
    );
    assert.ok(target, `no target for ${Deno.build.arch}`);
    const library = join(ROOT, "target/release/libmmproxy.so");
    const paths = await distribute(target, { deno: Deno.execPath(), library, out, only, version });
    return Object.fromEntries(paths.map((path) => {
      const kind = only.find((kind) => path.endsWith(`.${kind}`)) ?? "full";
      return [kind, path];
    }));
  }
}

let made: Promise<Made> | undefined;
const packages = () => made ??= Made.make();
Deno.test.afterAll(async () => {
  if (made) await Deno.remove((await made).folder, { recursive: true });
});

/** Every file that an administrator would see, and every user. */
async function inventory(machine: Container): Promise<string[]> {
  const found = await machine.exec(
    ...["find", "/etc", "/usr", "/opt", "/var", "/run", "-xdev"],
    // What is there while a machine runs, and the package managers' own records.
    ...["/run/*", "/var/log/*", "/var/lib/dpkg/*", "/var/lib/rpm/*", "/var/lib/systemd/*"]
      .flatMap((path) => ["-not", "-path", path]),
    // Backups that useradd leaves of its own files, for all users.
    ...["-not", "-path", "/etc/*-"],
  );
  const users = await machine.exec("getent", "passwd");
  return [...found.split("\n"), ...users.split("\n")].sort();
}

/** A package manager's commands. */
interface Manager {
  readonly kind: "deb" | "rpm";
  readonly install: readonly string[];
  readonly upgrade: readonly string[];
  readonly version: readonly string[];
  readonly remove: readonly string[];
  /** What a removal leaves of a configuration that was changed. */
  readonly left: string;
  /** Removes that, too. */
  readonly purge: readonly string[];
}

// The dependencies are there, but as Debian's packages.
const RPM = ["rpm", "--force-debian", "--nodeps"];
const MANAGERS: Manager[] = [
  {
    kind: "deb",
    install: ["dpkg", "--install"],
    upgrade: ["dpkg", "--install"],
    version: ["dpkg-query", "--show", "--showformat=${Version}", "mmproxy"],
    remove: ["dpkg", "--remove", "mmproxy"],
    left: "/etc/mmproxy/mmproxy.toml",
    purge: ["dpkg", "--purge", "mmproxy"],
  },
  {
    kind: "rpm",
    install: [...RPM, "--install"],
    upgrade: [...RPM, "--upgrade"],
    version: ["rpm", "--query", "--queryformat", "%{VERSION}", "mmproxy"],
    remove: [...RPM, "--erase", "mmproxy"],
    left: "/etc/mmproxy/mmproxy.toml.rpmsave",
    purge: ["rm", "-r", "/etc/mmproxy"],
  },
];

for (const manager of MANAGERS) {
  realPeerTest(
    `package: the .${manager.kind} is installed, started by systemd, upgraded with its configuration ` +
      "and an open connection kept, and removed without a trace",
    TOOLS,
    () => testPackage(manager),
  );
}

async function testPackage(
  { kind, install, upgrade, version, remove, left, purge }: Manager,
): Promise<void> {
  const { folder, paths } = await packages();
  const pathOf = (age: "old" | "new") => `/packages/${basename(paths[age][kind] ?? "")}`;
  await using machine = await startMachine([`${folder}:/packages:ro`]);
  const systemctl = (...args: string[]) => machine.exec("systemctl", ...args);
  const installed = async () => (await machine.exec(...version)).trim();
  const pid = async () => (await systemctl("show", "--value", "-p", "MainPID", "mmproxy")).trim();
  const before = await inventory(machine);

  await machine.exec(...install, pathOf("old"));
  assert.equal(await installed(), OLD);
  assert.equal((await machine.exec("mmproxy", "--version")).trim(), `mmproxy ${config.version}`);
  assert.match(await machine.exec("mmproxy", "help", "dscp"), /^# DSCP/);
  await machine.exec("mmproxy", "check", "--config", "/etc/mmproxy/mmproxy.toml");
  // A start is the administrator's.
  await assert.rejects(systemctl("is-active", "mmproxy"));
  await assert.rejects(systemctl("is-enabled", "mmproxy"));

  const listen = { ip: "127.0.0.1", port: freePort() };
  await using service = new TcpService(tellAndEcho);
  const text = `[[listener]]\nlisten = "${show(listen)}"\nipv4 = "${service.address}"\n` +
    'allowed-subnets = ["127.0.0.0/8"]\n';
  await machine.exec("sh", "-c", 'printf %s "$1" > /etc/mmproxy/mmproxy.toml', "sh", text);
  await systemctl("enable", "--now", "mmproxy");
  await assertSeenOverTcp(listen, CLIENT, BALANCER);
  const user = await machine.exec("stat", "--format=%U", `/proc/${await pid()}`);
  assert.equal(user.trim(), "mmproxy");
  await systemctl("reload", "mmproxy");

  using open = await Stream.connect(listen.port);
  await open.send(v2({ ...CLIENT, port: 40_082 }, BALANCER));
  assert.equal(await open.line(), show({ ...CLIENT, port: 40_082 }));
  const old = await pid();
  const said = await machine.exec(...upgrade, pathOf("new"));
  assert.match(said, /^Upgraded: process \d+ runs \S+/m);
  await eventually(async () => await pid() !== old, "systemd's notice of the new program");
  assert.equal(await installed(), config.version);
  assert.equal(await machine.exec("cat", "/etc/mmproxy/mmproxy.toml"), text);
  assert.equal((await systemctl("is-active", "mmproxy")).trim(), "active");
  await open.send("still here\n");
  assert.equal(await open.line(), "still here");
  await assertSeenOverTcp(listen, { ...CLIENT, port: 40_083 }, BALANCER);

  await machine.exec(...remove);
  await assert.rejects(systemctl("is-active", "mmproxy"));
  assert.equal(await machine.exec("cat", left), text, "until a purge");
  await machine.exec(...purge);
  assert.deepEqual(await inventory(machine), before);
  if (kind !== "deb") return;

  // The page's commands, with an editor that writes this file.
  const editor = `#!/bin/sh\nprintf %s '${text}' > "$1"\n`;
  const write = 'printf %s "$1" > /usr/local/bin/editor; chmod 755 /usr/local/bin/editor';
  await machine.exec("sh", "-ec", write, "sh", editor);
  const [block = ""] = await blocksOf("docs/install.md");
  await machine.exec("sh", "-ec", `cd /packages\n${block}`);
  await assertSeenOverTcp(listen, { ...CLIENT, port: 40_084 }, BALANCER);
}

realPeerTest(
  "package: the .rpm has the files of the .deb, and keeps the configuration",
  TOOLS,
  async () => {
    const { deb = "", rpm = "" } = (await packages()).paths.new;
    const query = async (...args: string[]) =>
      (await runTool("rpm", ["--query", "--package", ...args, rpm])).trim().split("\n");
    const zsh = /\/zsh\/[a-z-]+\//;
    const listed = (await runTool("dpkg", ["--contents", deb])).trim().split("\n")
      .filter((line) => !line.startsWith("d"))
      .map((line) => line.split(/\s+/).slice(5).join(" ").replace(/^\.| -> .*$/g, ""));
    const files = await query("--list");
    const missing = listed.map((path) => path.replace(/ -> .*$/, "").replace(zsh, "/zsh/"))
      .filter((path) => !files.map((path) => path.replace(zsh, "/zsh/")).includes(path));
    assert.ok(listed.length > 100, `${listed.length} files`);
    assert.deepEqual(missing, []);
    assert.deepEqual(await query("--configfiles"), ["/etc/mmproxy/mmproxy.toml"]);
    // RPMFILE_CONFIG and RPMFILE_NOREPLACE (rpmfiles.h).
    const flags = await query("--queryformat", "[%{FILENAMES} %{FILEFLAGS}\\n]");
    assert.ok(flags.includes("/etc/mmproxy/mmproxy.toml 17"), "noreplace");
    assert.deepEqual(await query("--queryformat", "%{ARCH}"), [Deno.build.arch]);
  },
);

realPeerTest(
  "package: the archive with Deno inside needs nothing on the host, and installs beside an older release",
  TOOLS,
  async () => {
    const { folder: built, paths } = await packages();
    const archive = paths.new["full"] ?? "";
    await using machine = await startMachine([`${built}:/archive:ro`]);
    await assert.rejects(machine.exec("sh", "-c", "command -v deno"));
    // As the pages have it, where the archive lies in the working directory.
    const folder = `mkdir /root/download; cd /root/download; ln -s /archive/${basename(archive)} .`;
    const [, install = ""] = await blocksOf("docs/install.md");
    const said = await machine.exec("sh", "-ec", `${folder}\n${install}`);
    assert.ok(said.trim().endsWith(`\nmmproxy ${config.version}`), said);
    await machine.exec("rm", "-r", "/root/download");
    await using service = new TcpService(tellAndEcho);
    const doctor = await machine.exec(
      ...[
        "sh",
        "-c",
        'mmproxy doctor "$@" || true',
        "sh",
        "-l",
        "127.0.0.1:8443",
        "-4",
        service.address,
      ],
    );
    assert.match(doctor, /CAP_NET_RAW/);

    const listen = { ip: "127.0.0.1", port: freePort() };
    const run =
      `printf '#!/bin/sh\\nexec "$@"\\n' > /usr/local/bin/sudo; chmod 755 /usr/local/bin/sudo
      mkdir /run/mmproxy
      setsid mmproxy -l ${show(listen)} -4 ${service.address} --control /run/mmproxy/control \
        > /root/log 2>&1 < /dev/null &`;
    await machine.exec("sh", "-ec", run);
    const log = () => machine.exec("cat", "/root/log");
    await eventually(async () => (await log()).includes("Listening on"), "the program");
    const upgrade = (await blocksOf("docs/upgrade.md")).find((block) => block.includes("tar xf"));
    assert.match(
      await machine.exec("sh", "-ec", `${folder}\n${upgrade}`),
      /^Upgraded: process \d+ runs \S+/m,
    );
    await assertSeenOverTcp(listen, { ...CLIENT, port: 40_086 }, BALANCER);
  },
);
