/**
 * Everything that a release publishes, in `dist/out/`: `deno task dist [--target <name>]…`.
 *
 * For each target an archive; if there is a Deno, also an archive with Deno inside, a .deb and a .rpm;
 * the symbols for debuggers; an SBOM; and SHA256SUMS of all of them. `--deno <path>` and `--library
 * <path>` are used instead of what is fetched and built, for one target.
 */
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import config from "../deno.json" with { type: "json" };
import { layOut, pack, ReleaseError, ROOT, run, runScript, step } from "./release.ts";
import { writeBom } from "./sbom.ts";
import { buildFor, strip, type Target, TARGETS } from "./targets.ts";

/** The Deno that is in archives and packages: the one that tests run with. */
const DENO_VERSION = /\bdeno@(\d+\.\d+\.\d+)/;
const OUT = join(ROOT, "dist/out");
const STAGE = join(ROOT, "dist/stage");

/** What is there already. */
export interface Given {
  /** Deno's binary. */
  readonly deno?: string;
  /** The native core, with its symbols. */
  readonly library?: string;
  /** Where everything goes. */
  readonly out?: string;
  /** What is made, of what can be made for the target; by default all. */
  readonly only?: readonly Kind[];
  readonly version?: string;
}

export type Kind = "archive" | "full" | "deb" | "rpm" | "debug";

/** Makes what is published for a target; the files' paths. */
export async function distribute(target: Target, given: Given = {}): Promise<string[]> {
  const { version = config.version, out = OUT } = given;
  const name = `mmproxy-${version}`;
  const stage = join(STAGE, target.name);
  await Deno.mkdir(out, { recursive: true });
  await Deno.mkdir(stage, { recursive: true });
  const say = (what: string) => step(`${target.name}: ${what}`);
  const library = `libmmproxy-${target.arch}.so`;
  const debug = join(stage, `${library}.debug`);
  if (given.library === undefined) say("building the native core");
  await strip(given.library ?? await buildFor(target), join(stage, library), debug);
  say("laying the release out");
  const release = join(stage, name);
  await layOut(release, [join(stage, library)], false);

  const made: string[] = [];
  const makes = (kind: Kind) => given.only?.includes(kind) ?? true;
  const archive = async (suffix: string, what = name) => {
    const path = join(out, `${name}-${suffix}.tar.gz`);
    say(`packing ${basename(path)}`);
    await pack(stage, what, path);
    made.push(path);
  };
  if (makes("archive")) await archive(target.name);
  if (makes("debug")) await archive(`${target.name}-debug`, basename(debug));
  if (target.deno === undefined) return made;
  if (given.deno === undefined) say("fetching Deno");
  await Deno.copyFile(given.deno ?? await fetchDeno(target.deno, stage), join(release, "deno"));
  await Deno.chmod(join(release, "deno"), 0o755);
  if (makes("full")) await archive(`${target.arch}-full`);
  const packages = (["deb", "rpm"] as const).filter(makes);
  if (packages.length > 0) {
    await stagePackage(stage, release);
    for (const packager of packages) {
      say(`making the .${packager}`);
      made.push(await makePackage(packager, target, stage, version, out));
    }
  }
  return made;
}

/** Deno's binary from its npm package; npm checks its hash. */
async function fetchDeno(npm: string, stage: string): Promise<string> {
  const version = DENO_VERSION.exec(await Deno.readTextFile(join(ROOT, ".ci/run")))?.[1];
  await run(["npm", "pack", "--silent", `${npm}@${version}`], stage);
  const archive = `${npm.replace(/^@/, "").replace("/", "-")}-${version}.tgz`;
  await run(["tar", "--extract", "--gzip", `--file=${archive}`, "package/deno"], stage);
  return join(stage, "package/deno");
}

/** Puts what packages install where nfpm.yaml has it. */
async function stagePackage(stage: string, release: string): Promise<void> {
  await Deno.remove(join(stage, "lib"), { recursive: true }).catch(() => {});
  await run(["cp", "-a", release, join(stage, "lib")], ROOT);
  const unit = await Deno.readTextFile(join(ROOT, "deploy/mmproxy.service"));
  await Deno.writeTextFile(join(stage, "mmproxy.service"), packagedUnit(unit));
  for (const page of ["mmproxy.1", "mmproxy.toml.5"]) {
    await Deno.copyFile(join(ROOT, "deploy/man", page), join(stage, page));
    await run(["gzip", "-9nf", page], stage);
  }
}

const CONFIG = "/etc/mmproxy/mmproxy.toml";
const PROGRAM = "/usr/bin/mmproxy";

/**
 * The unit as the packages install it: it runs the configuration file, as the package's user.
 *
 * @throws {ReleaseError} if the unit lacks a line that is replaced
 */
export function packagedUnit(unit: string): string {
  const lines: [RegExp, string][] = [
    [/^(# .*\n)#\n(# {2}.*\n)+/, "$1"],
    [/^Documentation=.*$/m, "Documentation=man:mmproxy(1) man:mmproxy.toml(5)"],
    [/^# Without this file.*\nEnvironmentFile=.*\n/m, ""],
    [
      /^ExecStart=.*$/m,
      "# The routing for replies to clients, set as root. If this fails, the log gives the reason.\n" +
      `ExecStartPre=-+${PROGRAM} routes up --config ${CONFIG}\n` +
      `ExecStart=${PROGRAM} --config ${CONFIG}\n` +
      `ExecStopPost=-+${PROGRAM} routes down --config ${CONFIG}`,
    ],
    [
      /^(#.*\n)ExecReload=.*$/m,
      `ExecReload=-+${PROGRAM} routes up --config ${CONFIG}\n$1ExecReload=${PROGRAM} reload`,
    ],
    [/^DynamicUser=yes$/m, "User=mmproxy"],
    [/^# A user that exists while the service runs, with/m, "# A user with"],
  ];
  let packaged = unit;
  for (const [line, instead] of lines) {
    if (!line.test(packaged)) throw new ReleaseError(`deploy/mmproxy.service has no ${line}`);
    packaged = packaged.replace(line, instead);
  }
  return packaged;
}

/** Makes a package with nfpm; its path. */
async function makePackage(
  packager: "deb" | "rpm",
  { arch, debian = arch }: Target,
  stage: string,
  version: string,
  out: string,
): Promise<string> {
  const name = packager === "deb"
    ? `mmproxy_${version}_${debian}.deb`
    : `mmproxy-${version}-1.${arch}.rpm`;
  const path = join(out, name);
  await run(
    ["nfpm", "package", "--config", "deploy/nfpm.yaml", "--packager", packager, "--target", path],
    ROOT,
    { PACKAGE_ARCH: debian, PACKAGE_VERSION: version, PACKAGE_STAGE: stage },
  );
  return path;
}

/** Writes the checksums of files that lie in one folder, as sha256sum(1) checks them. */
async function writeChecksums(folder: string): Promise<void> {
  const names = (await Array.fromAsync(Deno.readDir(folder)))
    .map(({ name }) => name).filter((name) => name !== "SHA256SUMS").sort();
  const { stdout, success } = await new Deno.Command("sha256sum", {
    args: ["--", ...names],
    cwd: folder,
  }).output();
  if (!success) throw new ReleaseError("Cannot make the release: sha256sum failed");
  await Deno.writeFile(join(folder, "SHA256SUMS"), stdout);
}

async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      target: { type: "string", multiple: true },
      deno: { type: "string" },
      library: { type: "string" },
      /** Only the SBOM and the checksums of what is there. */
      finish: { type: "boolean" },
    },
  });
  const names = values.target ?? TARGETS.map(({ name }) => name);
  const { deno, library } = values;
  if ((deno ?? library) !== undefined && names.length !== 1) {
    throw new ReleaseError("--deno and --library are for one --target");
  }
  if (!values.finish) {
    for (const name of names) {
      const target = TARGETS.find((target) => target.name === name);
      if (!target) {
        const known = TARGETS.map(({ name }) => name).join(", ");
        throw new ReleaseError(`There is no target ${name}; the targets are ${known}`);
      }
      const made = await distribute(target, {
        ...(deno !== undefined && { deno }),
        ...(library !== undefined && { library }),
      });
      for (const path of made) console.log(`dist/out/${basename(path)}`);
    }
  }
  step("Writing the SBOM and the checksums");
  await writeBom(join(OUT, `mmproxy-${config.version}.cdx.json`));
  await writeChecksums(OUT);
  console.log("dist/out/SHA256SUMS");
}

if (import.meta.main) await runScript("dist", () => main(Deno.args));
