/**
 * The benchmark's networks. Every sample has a network namespace of its own, so that none meets the
 * TIME_WAIT sockets, counters or caches of the one before. Root makes them as it is; anyone else
 * within a user namespace for the whole run.
 */

import { exitCode, SEARCH_PATH, SETUP, USER_NAMESPACES } from "../tests/e2e/support/namespace.ts";

/** Set in the environment of a run that may make network namespaces: to what makes it so. */
const INSIDE = "MMPROXY_BENCH_INSIDE";

/** Settings that a result depends on and that are reported with it. */
const REPORTED = [
  "net.ipv4.tcp_congestion_control",
  "net.ipv4.tcp_rmem",
  "net.ipv4.tcp_wmem",
  "net.ipv4.tcp_max_tw_buckets",
  "net.ipv4.tcp_tw_reuse",
  "net.ipv4.ip_local_port_range",
  "net.core.somaxconn",
];

/** Who runs it: root, or a user who is root in a user namespace only. */
export type Privilege = "root" | "user namespace";

/** How this process came to make network namespaces; undefined when it cannot yet. */
export function privilege(): Privilege | undefined {
  const value = Deno.env.get(INSIDE);
  return value === "root" || value === "user namespace" ? value : undefined;
}

/**
 * Runs this program again where it can make network namespaces.
 *
 * @param args what Deno is called with.
 * @param env what it finds in its environment.
 * @returns its exit code.
 */
export async function runInside(args: string[], env: Record<string, string>): Promise<number> {
  const found: Privilege = await isRoot() ? "root" : "user namespace";
  const command = [Deno.execPath(), ...args];
  // Not only for the want of it: root in a user namespace alone has smaller pipes (pipe(7),
  // pipe-user-pages-soft), at which mmproxy-rs fails.
  if (found === "user namespace") command.unshift("unshare", "--user", "--map-root-user");
  const [program = "", ...rest] = command;
  const child = new Deno.Command(program, {
    args: rest,
    env: { ...env, [INSIDE]: found, PATH: SEARCH_PATH },
    stdin: "null",
  }).spawn();
  return await exitCode(child);
}

async function isRoot(): Promise<boolean> {
  // Root of the machine: all ids stand for themselves. See user_namespaces(7).
  const everyone = /^\s*0\s+0\s+4294967295\s*$/;
  if (Deno.uid() !== 0 || !everyone.test(Deno.readTextFileSync("/proc/self/uid_map"))) return false;
  const { success } = await new Deno.Command("unshare", {
    args: ["--net", "true"],
    stderr: "null",
  }).output();
  return success;
}

/** A network namespace with loopback and the README's routing rules. */
export class Network implements AsyncDisposable {
  readonly #holder: Deno.ChildProcess;

  private constructor(holder: Deno.ChildProcess) {
    this.#holder = holder;
  }

  /**
   * Makes one.
   *
   * @param sysctls the network settings that differ from the machine's, by their dotted names.
   * @throws {Error} when the machine cannot; the message says what is missing.
   */
  static async open(sysctls: Readonly<Record<string, string>>): Promise<Network> {
    const settings = Object.entries(sysctls).map(([name, value]) =>
      `echo '${value}' > ${sysctlPath(name)}`
    );
    const script = [
      "set -e",
      ...SETUP,
      ...settings,
      // A full table would close connections in another way half through a sample.
      "echo 1048576 > /proc/sys/net/ipv4/tcp_max_tw_buckets",
      "echo ready",
      // Holds the namespace until its standard input ends, with this process at the latest.
      "exec cat",
    ].join("\n");
    const holder = new Deno.Command("unshare", {
      args: ["--net", "sh", "-c", script],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    const reader = holder.stdout.getReader();
    const { done } = await reader.read();
    await reader.cancel();
    if (done) {
      throw new Error(
        "Could not make a network namespace: the message above says why. It needs iproute2, IPv6, " +
          "settings that it may have (a congestion control of tcp_allowed_congestion_control) and " +
          USER_NAMESPACES,
      );
    }
    return new Network(holder);
  }

  /** A command that runs inside; its process is the command's own. */
  command(command: readonly string[], options: Deno.CommandOptions = {}): Deno.Command {
    const args = [`--net=/proc/${this.#holder.pid}/ns/net`, "--", ...command];
    return new Deno.Command("nsenter", { ...options, args });
  }

  /**
   * Lays a cable to another network, with an address at each end of it.
   *
   * @param own this end's address, one of the middle two of four.
   * @param others the other end's, its neighbour.
   */
  async connect(other: Network, own: string, others: string): Promise<void> {
    const up = (address: string) => `ip addr add ${address}/30 dev cable && ip link set cable up`;
    const commands: [Network, string][] = [
      [this, `ip link add cable type veth peer name cable netns ${other.#holder.pid}`],
      [this, up(own)],
      [other, up(others)],
    ];
    for (const [network, command] of commands) {
      const { success, stderr } = await network.command(["sh", "-c", command]).output();
      if (!success) {
        const reason = new TextDecoder().decode(stderr).trim();
        throw new Error(`Could not connect two network namespaces: ${reason}`);
      }
    }
  }

  /** The text of a file below `/proc/net`, as seen inside. */
  read(name: string): string {
    return Deno.readTextFileSync(`/proc/${this.#holder.pid}/net/${name}`);
  }

  /** The settings that a result depends on. */
  async sysctls(): Promise<Record<string, string>> {
    const paths = REPORTED.map(sysctlPath);
    const { stdout } = await this.command(["cat", ...paths]).output();
    const lines = new TextDecoder().decode(stdout).trim().split("\n");
    return Object.fromEntries(REPORTED.map((name, index) => [name, lines[index] ?? ""]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#holder.stdin.close();
    await this.#holder.status;
  }
}

function sysctlPath(name: string): string {
  return `/proc/sys/${name.replaceAll(".", "/")}`;
}
