/** Addresses and routes of the tests' own namespace. */

import { runTool } from "./real_peers.ts";

/** Gives the loopback interface one more address, unless it has it. */
export async function addAddress(prefix: string): Promise<void> {
  await runTool("ip", ["address", "replace", prefix, "dev", "lo"]);
}

/** A change of the namespace's network, taken back at the end. */
export class Network implements AsyncDisposable {
  private constructor(readonly undo: string) {}

  /** A local address that only packets with this mark reach; replies go as the README says. */
  static async onlyForMark(mark: number, ip: string): Promise<Network> {
    // The rule for local addresses comes first of all; these have to come before it.
    await runTool("sh", [
      "-ec",
      `ip address add ${ip}/32 dev lo
       ip rule add from ${ip} iif lo table 123
       ip rule add pref 100 to ${ip} fwmark ${mark} lookup local
       ip rule add pref 101 to ${ip} prohibit
       ip rule add pref 200 lookup local
       ip rule del pref 0`,
    ]);
    return new Network(
      `ip rule add pref 0 lookup local
       ip rule del pref 200
       ip rule del pref 101
       ip rule del pref 100
       ip rule del from ${ip} iif lo table 123
       ip address del ${ip}/32 dev lo`,
    );
  }

  /** An address of a host that takes packets and never answers. */
  static async silentHost(ip: string): Promise<Network> {
    // The frames go to a hardware address that the other end of the wire does not have.
    await runTool("sh", [
      "-ec",
      `ip link add hole type veth peer name nobody
       ip link set nobody up
       ip link set hole up
       ip route add ${ip}/32 dev hole
       ip neighbour add ${ip} lladdr 02:00:00:00:00:99 dev hole`,
    ]);
    return new Network("ip link del hole");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await runTool("sh", ["-ec", this.undo]);
  }
}
