/**
 * The image started by runc alone, with exactly the capabilities that Docker and containerd give a user
 * who is not root: no inheritable and no ambient ones, which podman adds.
 */
import { runTool, Scratch } from "../../e2e/support/real_peers.ts";
import { within } from "../../e2e/support/time.ts";
import { Image, storage } from "./images.ts";

const USER = 65_532;
const CAPABILITIES = ["CAP_NET_RAW"];

/** A container of runc's, removed at the end. */
export class Bundle implements AsyncDisposable {
  readonly #runc: Deno.ChildProcess;

  private constructor(readonly scratch: Scratch, readonly name: string) {
    this.#runc = new Deno.Command("runc", {
      args: [...rootOf(scratch), "run", "--bundle", scratch.path, name],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
  }

  /** Starts the image's program with these arguments. */
  static async start(args: readonly string[], noNewPrivileges: boolean): Promise<Bundle> {
    const scratch = await Scratch.make();
    await scratch.write("config.json", JSON.stringify(await config(args, noNewPrivileges)));
    return new Bundle(scratch, `mmproxy-${crypto.randomUUID()}`);
  }

  /** Waits for its end; the exit code and the error output. */
  async ended(): Promise<{ code: number; stderr: string }> {
    const { code, stderr } = await within(this.#runc.output(), "end of runc", 30_000);
    return { code, stderr: new TextDecoder().decode(stderr) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // It is no child of runc's that would end with it.
    await runTool("runc", [...rootOf(this.scratch), "delete", "--force", this.name]);
    await within(this.#runc.status, "end of runc");
    await this.scratch[Symbol.asyncDispose]();
  }
}

function rootOf(scratch: Scratch): string[] {
  return ["--root", `${scratch.path}/runc`];
}

/** What runc is told (runtime-spec, config.md). */
async function config(args: readonly string[], noNewPrivileges: boolean): Promise<unknown> {
  const root = await runTool("podman", [...storage(), "image", "mount", Image.mmproxy]);
  const format = ["--format", "{{json .Config.Entrypoint}}"];
  const entry = await runTool("podman", [
    ...storage(),
    "image",
    "inspect",
    ...format,
    Image.mmproxy,
  ]);
  return {
    ociVersion: "1.0.2",
    process: {
      user: { uid: USER, gid: USER },
      args: [...JSON.parse(entry) as string[], ...args],
      env: ["NO_COLOR=1"],
      cwd: "/opt/mmproxy",
      capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
      noNewPrivileges,
    },
    root: { path: root.trim(), readonly: true },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["mode=755"] },
    ],
    // Without one for the network it has the tests'.
    linux: { namespaces: [{ type: "pid" }, { type: "mount" }, { type: "ipc" }, { type: "uts" }] },
  };
}
