/**
 * Prints what CHANGELOG.md says of a release: `deno run -A deploy/notes.ts v<version>`. Fails where the
 * tag and the files do not name one version.
 */
import { join } from "node:path";
import config from "../deno.json" with { type: "json" };
import { ReleaseError, ROOT, runScript } from "./release.ts";

/**
 * The section of a version, without its heading.
 *
 * @throws {ReleaseError} if there is none, or it is empty
 */
export function notesOf(changelog: string, version: string): string {
  const sections = changelog.split(/^## /m).slice(1);
  const section = sections.find((text) => text.split(/\s/, 1)[0] === version);
  const notes = section?.split("\n").slice(1).join("\n").trim() ?? "";
  if (notes === "") throw new ReleaseError(`CHANGELOG.md says nothing of ${version}`);
  return notes;
}

/** The version that each file names. */
export async function versions(): Promise<Record<string, string | undefined>> {
  const read = (path: string) => Deno.readTextFile(join(ROOT, path));
  return {
    "deno.json": config.version,
    "ffi/Cargo.toml": /^version = "(.*)"$/m.exec(await read("ffi/Cargo.toml"))?.[1],
    "Cargo.lock": /^name = "mmproxy-ffi"\nversion = "(.*)"$/m.exec(await read("Cargo.lock"))?.[1],
    "deploy/helm/Chart.yaml": /^appVersion: "(.*)"$/m.exec(await read("deploy/helm/Chart.yaml"))
      ?.[1],
  };
}

async function main(): Promise<void> {
  const version = Deno.args[0]?.replace(/^v/, "") ?? "";
  for (const [file, named] of Object.entries(await versions())) {
    if (named === version) continue;
    throw new ReleaseError(`The tag is of ${version}, and ${file} names ${named}`);
  }
  console.log(notesOf(await Deno.readTextFile(join(ROOT, "CHANGELOG.md")), version));
}

if (import.meta.main) await runScript("notes", main);
