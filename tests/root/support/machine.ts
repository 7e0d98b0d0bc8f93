/** A container that systemd runs, in the tests' network. */
import { eventually } from "../../e2e/support/time.ts";
import { Container } from "./container.ts";
import { Image } from "./images.ts";

const FLAGS = [
  ...["--systemd=always", "--cap-add=all"],
  ...["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"],
];

/** Starts one, and waits until systemd is up. `volumes` are podman's. */
export async function startMachine(volumes: readonly string[]): Promise<Container> {
  const container = await Container.start(Image.machine, [
    ...FLAGS,
    ...[
      ...volumes,
      // The kernel's settings are the machine's around it.
      "/dev/null:/etc/systemd/system/systemd-sysctl.service:ro",
    ].flatMap((volume) => ["--volume", volume]),
  ], ["/lib/systemd/systemd"]);
  try {
    await eventually(
      () => container.exec("systemctl", "is-system-running").then(() => true, () => false),
      "start of systemd",
    );
    return container;
  } catch (error) {
    await container[Symbol.asyncDispose]();
    throw error;
  }
}
