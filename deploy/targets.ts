/** What releases are made for, and the native core for each: cross-compiled, stripped, its symbols apart. */
import { join } from "node:path";
import { ReleaseError, ROOT, run } from "./release.ts";

/** A processor and a C library. */
export interface Target {
  /** As the names of archives have it. */
  readonly name: string;
  /** Rust's name of it. */
  readonly triple: string;
  /** As the program looks for its library: `Deno.build.arch`. */
  readonly arch: string;
  /** The oldest glibc that will do; undefined for musl. */
  readonly glibc?: string;
  /** The npm package with Deno's binary. There is none for musl. */
  readonly deno?: string;
  /** As Debian names the processor. */
  readonly debian?: string;
}

export const TARGETS: readonly Target[] = [
  {
    name: "x86_64-glibc",
    triple: "x86_64-unknown-linux-gnu",
    arch: "x86_64",
    glibc: "2.28",
    deno: "@deno/linux-x64-glibc",
    debian: "amd64",
  },
  {
    name: "aarch64-glibc",
    triple: "aarch64-unknown-linux-gnu",
    arch: "aarch64",
    glibc: "2.28",
    deno: "@deno/linux-arm64-glibc",
    debian: "arm64",
  },
  { name: "x86_64-musl", triple: "x86_64-unknown-linux-musl", arch: "x86_64" },
  { name: "aarch64-musl", triple: "aarch64-unknown-linux-musl", arch: "aarch64" },
];

/**
 * Builds the native core for a target with cargo-zigbuild, whose linker has the libraries of all of them.
 *
 * @returns the path of the library, with its symbols
 */
export async function buildFor({ triple, glibc }: Target): Promise<string> {
  const target = glibc === undefined ? triple : `${triple}.${glibc}`;
  const package_ = ["--package", "mmproxy-ffi", "--lib"];
  await run(["cargo", "zigbuild", "--release", ...package_, "--target", target], ROOT, {
    // musl links statically unless told otherwise, and a static library cannot be loaded.
    ...(glibc === undefined && { RUSTFLAGS: "-C target-feature=-crt-static" }),
  });
  return join(ROOT, "target", triple, "release/libmmproxy.so");
}

/**
 * Takes the symbols for debuggers out of a library. A backtrace still has the functions' names.
 *
 * @param debug where the symbols go; the stripped library names this file
 */
export async function strip(library: string, stripped: string, debug: string): Promise<void> {
  const objcopy = await findObjcopy();
  await run([objcopy, "--only-keep-debug", library, debug], ROOT);
  await run(
    [objcopy, "--strip-debug", `--add-gnu-debuglink=${debug}`, library, stripped],
    ROOT,
  );
}

/** LLVM's, which reads every processor's files: `rustup component add llvm-tools`. */
async function findObjcopy(): Promise<string> {
  const { stdout } = await new Deno.Command("rustc", { args: ["--print", "sysroot"] }).output();
  const sysroot = new TextDecoder().decode(stdout).trim();
  const path = `${sysroot}/lib/rustlib/${Deno.build.target}/bin/llvm-objcopy`;
  try {
    await Deno.stat(path);
    return path;
  } catch {
    throw new ReleaseError(`There is no ${path}: rustup component add llvm-tools`);
  }
}
