/**
 * What a release is made of, as CycloneDX 1.6: the crates that the native core is linked with, and the npm
 * packages that the program imports.
 */
import { join } from "node:path";
import config from "../deno.json" with { type: "json" };
import { ReleaseError, ROOT, TESTING } from "./release.ts";

interface Component {
  readonly type: "library" | "application";
  readonly name: string;
  readonly version: string;
  readonly purl: string;
  readonly "bom-ref": string;
  readonly hashes?: readonly { alg: "SHA-256" | "SHA-512"; content: string }[];
  readonly licenses?: readonly { expression: string }[];
}

/** Of `cargo metadata`: what is used here. */
interface Metadata {
  readonly packages: readonly {
    readonly id: string;
    readonly name: string;
    readonly version: string;
    readonly license: string | null;
  }[];
  readonly resolve: {
    readonly nodes: readonly {
      readonly id: string;
      readonly deps: readonly {
        readonly pkg: string;
        readonly dep_kinds: readonly { readonly kind: string | null }[];
      }[];
    }[];
  };
}

/** Writes the document. The same sources give the same bytes: it has no date and no serial number. */
export async function writeBom(path: string): Promise<void> {
  await Deno.writeTextFile(path, JSON.stringify(await bom(), null, 2) + "\n");
}

/** The document. */
export async function bom(): Promise<unknown> {
  const lock = JSON.parse(await Deno.readTextFile(join(ROOT, "deno.lock")));
  const components = [...await crates(), ...npmPackages(lock.npm)]
    .toSorted((one, other) => one.purl < other.purl ? -1 : 1);
  const { version, license } = config;
  const program = {
    type: "application",
    name: "mmproxy",
    version,
    "bom-ref": `mmproxy@${version}`,
    licenses: [{ expression: license }],
  };
  return {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: { component: program },
    components,
    dependencies: [{ ref: program["bom-ref"], dependsOn: components.map(({ purl }) => purl) }],
  };
}

/** The crates that `mmproxy-ffi` is linked with, on Linux and without optional features. */
async function crates(): Promise<Component[]> {
  const { success, stdout } = await new Deno.Command("cargo", {
    args: [
      ...["metadata", "--format-version", "1", "--locked"],
      ...["--filter-platform", "x86_64-unknown-linux-gnu"],
    ],
    cwd: ROOT,
    stderr: "inherit",
  }).output();
  if (!success) throw new ReleaseError("Cannot list the crates: cargo metadata failed");
  const { packages, resolve }: Metadata = JSON.parse(new TextDecoder().decode(stdout));
  const root = packages.find(({ name }) => name === "mmproxy-ffi");
  const linked = new Set<string>();
  const visit = (id: string | undefined) => {
    for (const { pkg, dep_kinds } of resolve.nodes.find((node) => node.id === id)?.deps ?? []) {
      if (linked.has(pkg) || dep_kinds.every(({ kind }) => kind !== null)) continue;
      linked.add(pkg);
      visit(pkg);
    }
  };
  visit(root?.id);
  const sums = checksums(await Deno.readTextFile(join(ROOT, "Cargo.lock")));
  return packages.filter(({ id }) => linked.has(id)).map(({ name, version, license }) => {
    const sum = sums.get(`${name}@${version}`);
    return component(`pkg:cargo/${name}@${version}`, name, version, {
      ...(sum !== undefined && { hashes: [{ alg: "SHA-256", content: sum }] }),
      // Old crates write a slash for OR.
      ...(license !== null && { licenses: [{ expression: license.replaceAll("/", " OR ") }] }),
    });
  });
}

/** Name and version to the checksum, of Cargo.lock. */
function checksums(text: string): Map<string, string> {
  const entries = text.matchAll(
    /^name = "(.*)"\nversion = "(.*)"\n(?:source = .*\n)?checksum = "([0-9a-f]{64})"$/gm,
  );
  return new Map(
    [...entries].map(([, name, version, sum = ""]) => [`${name}@${version}`, sum]),
  );
}

interface Locked {
  readonly integrity: string;
  readonly dependencies?: readonly string[];
}

/** The npm packages that a release has, with what they import themselves. */
function npmPackages(locked: Readonly<Record<string, Locked>>): Component[] {
  const found = new Map<string, Component>();
  const visit = (name: string) => {
    const key = Object.keys(locked).find((key) =>
      [name, `${name}_`, `${name}@`].some((start, at) =>
        at === 0 ? key === start : key.startsWith(start)
      )
    );
    const entry = key === undefined ? undefined : locked[key];
    if (key === undefined || !entry) throw new ReleaseError(`deno.lock has no ${name}`);
    if (found.has(key)) return;
    // Behind an underscore stands what it was resolved beside.
    const [, plain = "", version = ""] = /^(@?[^@]+)@([^_]+)/.exec(key) ?? [];
    const purl = `pkg:npm/${plain.replace(/^@/, "%40")}@${version}`;
    const [, base64 = ""] = /^sha512-(.*)$/.exec(entry.integrity) ?? [];
    const content = Array.from(
      atob(base64),
      (byte) => byte.charCodeAt(0).toString(16).padStart(2, "0"),
    ).join("");
    found.set(key, component(purl, plain, version, { hashes: [{ alg: "SHA-512", content }] }));
    for (const name of entry.dependencies ?? []) visit(name);
  };
  for (const [name, specifier] of Object.entries(config.imports)) {
    if (!TESTING.has(name)) visit(specifier.replace(/^npm:\/?|\/$/g, ""));
  }
  return [...found.values()];
}

function component(
  purl: string,
  name: string,
  version: string,
  more: Pick<Component, "hashes" | "licenses">,
): Component {
  return { type: "library", "bom-ref": purl, name, version, purl, ...more };
}
