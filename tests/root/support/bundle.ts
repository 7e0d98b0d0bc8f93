/**
 * The image started by runc alone, with exactly the capabilities that Docker and containerd give a user
 * who is not root: no inheritable and no ambient ones, which podman adds.
 */
import { runTool, type Scratch } from "../../e2e/support/real_peers.ts";
import { Image, storage } from "./images.ts";

const USER = 65_532;
const CAPABILITIES = ["CAP_NET_RAW"];

/** runc's command that runs the image's program with these arguments (runtime-spec, config.md). */
export async function runcCommand(
  scratch: Scratch,
  args: readonly string[],
  noNewPrivileges: boolean,
): Promise<string[]> {
  const mounted = await runTool("podman", [...storage(), "image", "mount", Image.mmproxy]);
  const entry = await runTool("podman", [
    ...[...storage(), "image", "inspect", "--format", "{{json .Config.Entrypoint}}"],
    Image.mmproxy,
  ]);
  const config = {
    ociVersion: "1.0.2",
    process: {
      user: { uid: USER, gid: USER },
      args: [...JSON.parse(entry) as string[], ...args],
      env: ["NO_COLOR=1"],
      cwd: "/opt/mmproxy",
      capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
      noNewPrivileges,
    },
    root: { path: mounted.trim(), readonly: true },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["mode=755"] },
    ],
    // Without one for the network it has the tests'.
    linux: { namespaces: [{ type: "pid" }, { type: "mount" }, { type: "ipc" }, { type: "uts" }] },
  };
  await scratch.write("config.json", JSON.stringify(config));
  const name = `mmproxy-${crypto.randomUUID()}`;
  return ["runc", "--root", `${scratch.path}/runc`, "run", "--bundle", scratch.path, name];
}
