/**
 * A host of a test's own: a network namespace in which nothing is set, not even the routing that the
 * other tests share. Sockets and processes belong to the namespace in which they were made.
 */

import assert from "node:assert/strict";
import { runTool } from "./real_peers.ts";

const CLONE_NEWNET = 0x4000_0000;
const O_RDONLY = 0;

/** Namespaces are a thread's, and Deno opens sockets and starts processes on the one that runs tests. */
const libc = Deno.dlopen("libc.so.6", {
  open: { parameters: ["buffer", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  setns: { parameters: ["i32", "i32"], result: "i32" },
  unshare: { parameters: ["i32"], result: "i32" },
});

/** Acts that have begun and not ended. */
let acting = 0;

export class Host implements Disposable {
  private constructor(readonly fd: number) {}

  /** The file of its namespace, for other processes. */
  get path(): string {
    return `/proc/${Deno.pid}/fd/${this.fd}`;
  }

  /** A new host, whose loopback interface is up. */
  static async make(): Promise<Host> {
    const before = current();
    try {
      check(libc.symbols.unshare(CLONE_NEWNET), "unshare");
      await runTool("ip", ["link", "set", "lo", "up"]);
      return new Host(current());
    } finally {
      enter(before);
      libc.symbols.close(before);
    }
  }

  /**
   * Acts on this host: all sockets and processes that are made meanwhile are its own. One at a time: of
   * two that overlap, the one that ends last would leave the thread in the other's namespace.
   */
  async act<T>(action: () => T | Promise<T>): Promise<T> {
    const before = current();
    const depth = acting++;
    enter(this.fd);
    try {
      return await action();
    } finally {
      enter(before);
      libc.symbols.close(before);
      acting--;
      // Nested ones end in the reverse order of their beginning.
      assert.equal(acting, depth, "one act at a time");
    }
  }

  /** Runs a shell script on this host; what it printed. */
  async run(script: string): Promise<string> {
    return await this.act(() => runTool("sh", ["-ec", script]));
  }

  /** Lays a wire to another host, and brings both ends up. */
  async connect(device: string, other: Host, itsDevice: string): Promise<void> {
    await this.run(
      `ip link add ${device} type veth peer name ${itsDevice} netns ${other.path}
       ${up(device)}`,
    );
    await other.run(up(itsDevice));
  }

  [Symbol.dispose](): void {
    libc.symbols.close(this.fd);
  }
}

/**
 * Commands that set an interface up. Without duplicate address detection: until its link-local address is no longer
 * tentative, for up to two seconds, a router asks for no neighbour (ndisc_solicit), and the first packets are lost.
 */
function up(device: string): string {
  const detect = `/proc/sys/net/ipv6/conf/${device}/accept_dad`;
  return `[ ! -e ${detect} ] || echo 0 > ${detect}
       ip link set ${device} up`;
}

function current(): number {
  const path = new TextEncoder().encode("/proc/thread-self/ns/net\0");
  return check(libc.symbols.open(path, O_RDONLY), "open");
}

function enter(namespace: number): void {
  check(libc.symbols.setns(namespace, CLONE_NEWNET), "setns");
}

function check(result: number, call: string): number {
  if (result < 0) throw new Error(`${call} failed in a network namespace`);
  return result;
}
