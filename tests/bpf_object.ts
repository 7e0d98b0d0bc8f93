/**
 * The object of the BPF program: compiles it with `--write`, which takes clang, llvm-strip and the headers of
 * libbpf, or says whether what is checked in is of another source: `deno run -A tests/bpf_object.ts [--write]`.
 */
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";

const FOLDER = fileURLToPath(new URL("../ffi/bpf/", import.meta.url));
const OBJECT = `${FOLDER}offload.bpf.o`;
/** Everything that decides what the object is, but for the compiler. */
const SOURCES = ["offload.h", "offload.bpf.c"];

/** What the object says of its source. */
function digest(): string {
  const hash = createHash("sha256");
  for (const name of SOURCES) hash.update(Deno.readFileSync(FOLDER + name));
  return `sha256:${hash.digest("hex")}`;
}

async function run(program: string, args: string[]): Promise<void> {
  const { success } = await new Deno.Command(program, { args, cwd: FOLDER }).spawn().status;
  if (!success) throw new Error(`${program} ${args.join(" ")} failed`);
}

if (Deno.args.includes("--write")) {
  // Debian keeps the kernel's headers of the machine's architecture apart.
  const include = `/usr/include/${Deno.build.arch}-linux-gnu`;
  const machine = ["-target", "bpf", "-mcpu=v3", "-O2", "-g", `-I${include}`];
  const macro = `-DSOURCE="${digest()}"`;
  await run("clang", [...machine, "-Wall", "-Werror", macro, "-c", "offload.bpf.c", "-o", OBJECT]);
  // The types of the maps stay (.BTF); DWARF does not.
  await run("llvm-strip", ["--strip-debug", OBJECT]);
} else {
  const object = new TextDecoder("latin1").decode(await Deno.readFile(OBJECT));
  if (!object.includes(digest())) {
    console.error("ffi/bpf/offload.bpf.o is stale: run deno task bpf");
    Deno.exit(1);
  }
}
