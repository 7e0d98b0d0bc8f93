/**
 * The image started by runc alone, with exactly the capabilities that Docker and containerd give a user
 * who is not root: no inheritable and no ambient ones, which podman adds.
 */
import { runTool, Scratch } from "../../e2e/support/real_peers.ts";
import { within } from "../../e2e/support/time.ts";
import { buildah, Image, storage } from "./images.ts";

const USER = 65_532;

/** A container of runc's, removed at the end. */
export class Bundle implements AsyncDisposable {
  readonly #runc: Deno.ChildProcess;

  private constructor(
    readonly scratch: Scratch,
    readonly container: string,
    readonly name = `mmproxy-${crypto.randomUUID()}`,
  ) {
    this.#runc = new Deno.Command("runc", {
      args: [...rootOf(scratch), "run", "--bundle", scratch.path, name],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
  }

  /** Starts the image's program with these arguments. */
  static async start(
    args: readonly string[],
    capabilities: readonly string[],
    noNewPrivileges: boolean,
  ): Promise<Bundle> {
    const scratch = await Scratch.make();
    const container = await buildah("from", Image.mmproxy);
    const root = await buildah("mount", container);
    const told = await config(root, args, capabilities, noNewPrivileges);
    await scratch.write("config.json", JSON.stringify(told));
    return new Bundle(scratch, container);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // It is no child of runc's that would end with it.
    await runTool("runc", [...rootOf(this.scratch), "delete", "--force", this.name]);
    await within(this.#runc.status, "end of runc");
    await buildah("rm", this.container);
    await this.scratch[Symbol.asyncDispose]();
  }
}

function rootOf(scratch: Scratch): string[] {
  return ["--root", `${scratch.path}/runc`];
}

/** What runc is told (runtime-spec, config.md). */
async function config(
  path: string,
  args: readonly string[],
  capabilities: readonly string[],
  noNewPrivileges: boolean,
): Promise<unknown> {
  const inspected = await runTool("podman", [
    ...storage(),
    ...["image", "inspect", "--format", "{{json .Config}}", Image.mmproxy],
  ]);
  const { Entrypoint, Env } = JSON.parse(inspected) as { Entrypoint: string[]; Env: string[] };
  return {
    ociVersion: "1.0.2",
    process: {
      user: { uid: USER, gid: USER },
      args: [...Entrypoint, ...args],
      env: Env,
      cwd: "/opt/mmproxy",
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      noNewPrivileges,
    },
    root: { path },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["mode=755"] },
    ],
    // Without one for the network it has the tests'.
    linux: { namespaces: [{ type: "pid" }, { type: "mount" }, { type: "ipc" }, { type: "uts" }] },
  };
}
