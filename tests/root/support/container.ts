/** Containers in the tests' network, started with podman and runc. */
import { TIMEOUT, within } from "../../e2e/support/time.ts";
import { runTool } from "../../e2e/support/real_peers.ts";
import { LIMITS, storage } from "./images.ts";

const FIXED = ["--detach", ...LIMITS];

function podman(...args: string[]): Promise<string> {
  return runTool("podman", [
    ...storage(),
    ...["--runtime", "runc", "--cgroup-manager", "cgroupfs"],
    ...args,
  ], 60_000);
}

/** A container, removed at the end. */
export class Container implements AsyncDisposable {
  private constructor(readonly id: string) {}

  /** Starts one; `flags` are podman's. Its network is the tests', unless a flag says otherwise. */
  static async start(image: string, flags: string[], command: string[]): Promise<Container> {
    const network = flags.some((flag) => flag.startsWith("--network=")) ? [] : ["--network=host"];
    return new Container(
      (await podman("run", ...FIXED, ...network, ...flags, image, ...command)).trim(),
    );
  }

  /** Runs a command inside; what it printed. */
  async exec(...command: string[]): Promise<string> {
    return await podman("exec", this.id, ...command);
  }

  /** Both outputs so far. */
  async log(): Promise<string> {
    const { stdout, stderr } = await new Deno.Command("podman", {
      args: [...storage(), "logs", this.id],
    }).output();
    return [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("");
  }

  /** What the kernel says of its first process (proc(5), /proc/pid/status). */
  async status(): Promise<string> {
    const pid = (await podman("inspect", "--format", "{{.State.Pid}}", this.id)).trim();
    return await Deno.readTextFile(`/proc/${pid}/status`);
  }

  /** Runs the image's HEALTHCHECK; whether all is well. */
  async health(): Promise<boolean> {
    return await podman("healthcheck", "run", this.id).then(() => true, () => false);
  }

  /** Sends the stop signal; the exit code. */
  async stop(): Promise<number> {
    await podman("kill", "--signal", "TERM", this.id);
    return await this.ended();
  }

  /** What `docker stop` does: the stop signal, and ten seconds later a kill; the exit code. */
  async stopAsDocker(): Promise<number> {
    await podman("stop", "--time", "10", this.id);
    return await this.ended();
  }

  /** Waits for its end; the exit code. */
  async ended(): Promise<number> {
    return Number(await within(podman("wait", this.id), "end of the container", 2 * TIMEOUT));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await podman("rm", "--force", "--time", "0", this.id);
  }
}
