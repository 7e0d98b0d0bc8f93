/** The kernel's counters that tell a sound run from one that stalled, and who listens where. */

import type { Network } from "./namespace.ts";

/** Counted separately in every network namespace: `/proc/net/netstat` and `/proc/net/snmp`. */
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

/** The ports on which somebody listens (TCP) or receives (UDP). */
export function openPorts(network: Network, protocol: "tcp" | "udp"): Set<number> {
  const state = protocol === "tcp" ? "0A" : "07";
  const lines = [protocol, `${protocol}6`].flatMap((file) =>
    network.read(file).split("\n").slice(1)
  );
  return new Set(lines.flatMap((line) => {
    const [, local = "", , found] = line.trim().split(/\s+/);
    return found === state ? [parseInt(local.slice(local.lastIndexOf(":") + 1), 16)] : [];
  }));
}
