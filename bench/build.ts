/** Builds what the benchmark runs. */
import { layOut } from "../deploy/release.ts";
import { RELEASE } from "./programs.ts";

/** The repository's root. */
const ROOT = new URL("..", import.meta.url).pathname;

/**
 * Builds a binary of the workspace in release mode.
 *
 * @returns its path.
 * @throws {Error} when it cannot be built; the compiler has said why.
 */
export async function buildBinary(name: string): Promise<string> {
  const { stdout, success } = await new Deno.Command("cargo", {
    args: ["build", "--release", "--package", name, "--message-format", "json-render-diagnostics"],
    cwd: ROOT,
    stderr: "inherit",
  }).output();
  const path = /"executable":"([^"]+)"/.exec(new TextDecoder().decode(stdout))?.[1];
  if (!success || path === undefined) throw new Error(`Could not build ${name}`);
  return path;
}

/**
 * Builds the native library and lays a release out, because that is what a user starts.
 *
 * @throws {Error} when it cannot be built; the compiler has said why.
 */
export async function buildRelease(): Promise<void> {
  const { success } = await new Deno.Command(Deno.execPath(), {
    args: ["task", "build"],
    cwd: ROOT,
    stdout: "null",
  }).output();
  if (!success) throw new Error("Could not build the native library: deno task build says why");
  await layOut(RELEASE);
}
