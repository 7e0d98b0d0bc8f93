/**
 * A second network namespace, where the clients live, and a wire to it. A client's own socket must
 * not hold the address and port that the program takes on its behalf, so it needs another host.
 */

import { runTool } from "./real_peers.ts";
import { eventually, within } from "./time.ts";

/** The clients' host. */
export class ClientSide implements AsyncDisposable {
  /** The clients' own addresses. */
  readonly ip4 = "203.0.113.10";
  readonly ip6 = "2001:db8:203::10";
  /** Where they reach the servers. */
  readonly serverIp4 = "203.0.113.1";
  readonly serverIp6 = "2001:db8:203::1";
  /** Keeps the namespace in being until its input ends. */
  #keeper: Deno.ChildProcess;

  private constructor(keeper: Deno.ChildProcess) {
    this.#keeper = keeper;
  }

  static async open(): Promise<ClientSide> {
    const keeper = new Deno.Command("unshare", {
      args: ["--net", "cat"],
      stdin: "piped",
      stdout: "null",
    }).spawn();
    const side = new ClientSide(keeper);
    await eventually(() => isApart(keeper.pid), "network namespace of the clients");
    const { ip4, ip6, serverIp4, serverIp6 } = side;
    await runTool("sh", [
      "-ec",
      `ip link add near type veth peer name far netns ${keeper.pid}
       ip address add ${serverIp4}/24 dev near
       ip address add ${serverIp6}/64 dev near nodad
       ip link set near up`,
    ]);
    await side.run("sh", [
      "-ec",
      `ip address add ${ip4}/24 dev far
       ip address add ${ip6}/64 dev far nodad
       ip link set lo up
       ip link set far up`,
    ]);
    return side;
  }

  /** Runs a tool on the clients' host to its end; returns what it printed. */
  async run(command: string, args: string[]): Promise<string> {
    return await runTool("nsenter", this.#enter(command, args));
  }

  #enter(command: string, args: string[]): string[] {
    return ["--target", String(this.#keeper.pid), "--net", command, ...args];
  }

  /** The wire goes with the namespace. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#keeper.stdin.close();
    await within(this.#keeper.status, "end of the clients' namespace");
    await eventually(
      async () => !(await runTool("ip", ["-o", "link"])).includes("near"),
      "end of the wire",
    );
  }
}

function isApart(pid: number): boolean {
  const namespaceOf = (who: string | number) => Deno.readLinkSync(`/proc/${who}/ns/net`);
  return namespaceOf(pid) !== namespaceOf("self");
}
