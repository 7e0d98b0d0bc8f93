/** Parsers for files in /proc: text in, values out (proc(5)). */
import { LITTLE_ENDIAN } from "../config/options.ts";

/** Bits of a capability set (capabilities(7), linux/capability.h). */
export const Capability = { net_bind_service: 10, net_admin: 12, net_raw: 13 } as const;

/** What confines a process, from /proc/pid/status of its first thread. */
export interface Confinement {
  readonly noNewPrivileges: boolean;
  /** Its system calls are filtered (seccomp(2)). */
  readonly filtered: boolean;
  /** Its permitted capabilities, as bits. */
  readonly capabilities: bigint;
}

/** Reads /proc/pid/status; `undefined` if it does not say. */
export function parseConfinement(status: string): Confinement | undefined {
  const value = (name: string) => new RegExp(`^${name}:\\s+([0-9a-f]+)$`, "m").exec(status)?.[1];
  const capabilities = value("CapPrm");
  if (capabilities === undefined) return undefined;
  return {
    noNewPrivileges: value("NoNewPrivs") === "1",
    filtered: value("Seccomp") === "2",
    capabilities: BigInt(`0x${capabilities}`),
  };
}

/** Who this process is, from /proc/self/status. */
export interface Self {
  /** The effective user. */
  readonly user: number;
  readonly capabilities: ReadonlySet<keyof typeof Capability>;
}

/** Reads /proc/self/status. */
export function parseSelf(status: string): Self {
  const user = Number(/^Uid:\s+\d+\s+(\d+)/m.exec(status)?.[1] ?? NaN);
  const effective = BigInt(`0x${/^CapEff:\s+([0-9a-f]+)/m.exec(status)?.[1] ?? "0"}`);
  const has = ([, bit]: [string, number]) => (effective >> BigInt(bit) & 1n) === 1n;
  const names = Object.entries(Capability).filter(has).map(([name]) => name);
  return { user, capabilities: new Set(names as (keyof typeof Capability)[]) };
}

/** One counter of /proc/net/netstat, for example of `TcpExt`; 0 when the kernel does not have it. */
export function parseCounter(netstat: string, group: string, name: string): number {
  const rows = netstat.split("\n").filter((line) => line.startsWith(`${group}:`));
  const [names, values] = rows.map((row) => row.split(" "));
  return Number(values?.[names?.indexOf(name) ?? -1] ?? 0);
}

/** The names in /proc/net/dev. */
export function parseInterfaces(dev: string): string[] {
  return [...dev.matchAll(/^\s*([^\s:|]+):/gm)].map(([, name]) => name ?? "");
}

/** A socket that waits for connections or datagrams. */
export interface ListeningSocket {
  /** Network byte order: 4 or 16 bytes. */
  readonly bytes: readonly number[];
  readonly port: number;
  readonly inode: number;
}

const LISTENING = 0x0a;
/** What the kernel calls a UDP socket that is not connected. */
const UNCONNECTED = 0x07;

/** Reads /proc/net/{tcp,tcp6,udp,udp6}. */
export function parseSockets(table: string): ListeningSocket[] {
  return table.split("\n").slice(1).flatMap((line) => {
    const [, local = "", , state = "", , , , , , inode] = line.trim().split(/\s+/);
    const [address = "", port = ""] = local.split(":");
    if (![LISTENING, UNCONNECTED].includes(parseInt(state, 16))) return [];
    return [{ bytes: addressBytes(address), port: parseInt(port, 16), inode: Number(inode) }];
  });
}

/** The address is printed in words of the host's byte order. */
function addressBytes(hex: string): number[] {
  const words = hex.match(/.{8}/g) ?? [];
  return words.flatMap((word) => {
    const bytes = (word.match(/../g) ?? []).map((byte) => parseInt(byte, 16));
    return LITTLE_ENDIAN ? bytes.reverse() : bytes;
  });
}
