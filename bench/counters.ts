/** The kernel's counters that tell a sound run from one that stalled, and who listens where. */

import type { Network } from "./namespace.ts";

/** Counted anew in every network namespace: `/proc/net/netstat` and `/proc/net/snmp`. */
const COUNTERS = {
  rcvq_drops: ["netstat", "TcpExt", "TCPRcvQDrop"],
  retransmits: ["snmp", "Tcp", "RetransSegs"],
  listen_drops: ["netstat", "TcpExt", "ListenDrops"],
  udp_rcvbuf_errors: ["snmp", "Udp", "RcvbufErrors"],
} as const;

/** Reads the counters of a network since it was made. */
export function readCounters(network: Network): Record<string, number> {
  const texts = { netstat: network.read("netstat"), snmp: network.read("snmp") };
  const entries = Object.entries(COUNTERS).map(([name, [file, group, field]]) =>
    [name, findCounter(texts[file], group, field)] as const
  );
  return Object.fromEntries(entries);
}

/** A field of these files, in which a line of names goes before a line of values; 0 if unknown. */
export function findCounter(text: string, group: string, field: string): number {
  const [names, values] = text.split("\n").filter((line) => line.startsWith(`${group}:`))
    .map((line) => line.split(" "));
  const index = names?.indexOf(field) ?? -1;
  return Number(values?.[index] ?? 0);
}

/** Whether anybody listens on (TCP) or receives at (UDP) a port. */
export function isOpen(network: Network, protocol: "tcp" | "udp", port: number): boolean {
  const state = protocol === "tcp" ? "0A" : "07";
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  return [protocol, `${protocol}6`].some((file) =>
    network.read(file).split("\n").slice(1).some((line) => {
      const [, local, , found] = line.trim().split(/\s+/);
      return local?.endsWith(suffix) && found === state;
    })
  );
}
