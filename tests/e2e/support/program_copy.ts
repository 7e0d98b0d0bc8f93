/** The program's files in a directory of their own: without a library, or with another one. */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");
/** The library that panics when a header requests it; run.ts builds it. */
const FAULTY_LIBRARY = join(ROOT, "target/faults/release/libmmproxy.so");

/** A copy of the program, removed at the end. */
export class ProgramCopy implements AsyncDisposable {
  private constructor(readonly root: string) {}

  /** Copies what the program is run from; no library is found from there. */
  static async make(): Promise<ProgramCopy> {
    const root = await Deno.makeTempDir({ prefix: "mmproxy-copy-" });
    for (const name of ["bin", "main.ts", "deno.json", "deno.lock", "src"]) {
      await copy(join(ROOT, name), join(root, name));
    }
    return new ProgramCopy(root);
  }

  /** Puts the faulty library where a release has its library: beside main.ts. */
  async addFaultyLibrary(): Promise<void> {
    await Deno.copyFile(FAULTY_LIBRARY, join(this.root, `libmmproxy-${Deno.build.arch}.so`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.root, { recursive: true });
  }
}

/** Copies a file, or a directory with all that it holds. */
async function copy(from: string, to: string): Promise<void> {
  if ((await Deno.stat(from)).isFile) return await Deno.copyFile(from, to);
  await Deno.mkdir(to);
  for await (const { name } of Deno.readDir(from)) await copy(join(from, name), join(to, name));
}
