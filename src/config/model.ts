/**
 * The configuration, checked and immutable: the result of both the command line and the file. Times are in seconds.
 */
import type { Destination } from "./destinations.ts";
import type {
  Address,
  ColorMode,
  LevelName,
  LogFormat,
  OffloadMode,
  ProtocolName,
  SandboxMode,
  UdpHeaderName,
} from "./options.ts";
import type { PortRange } from "./ranges.ts";
import type { Subnet } from "./subnet.ts";
import type { TrustRule } from "./trust.ts";
import type { Upstream } from "./upstreams.ts";

/** One proxy: what holds for the process, and its listeners. */
export interface ProxyConfig {
  /** The path of the file that says all of this; none if it was the command line. */
  readonly file?: string;
  /** Threads that serve the listeners; `auto`: one for each processor that the process may use. */
  readonly workers: number | "auto";
  /** Where metrics are served; without one they are not. */
  readonly metricsAddr?: Address;
  readonly logLevel: LevelName;
  readonly logFormat: LogFormat;
  /** Colours of the text log, of the doctor and of routes. */
  readonly color: ColorMode;
  /** Set the routing that replies need at the start, and remove it at a clean stop. */
  readonly autoRoutes: boolean;
  /** The routing table for that. */
  readonly table: number;
  /** `auto`: as much of the sandbox as is available; `on`: all of it, or no start. */
  readonly sandbox: SandboxMode;
  /** `auto`: established TCP connections are handed over to the kernel, where the host allows it. */
  readonly offload: OffloadMode;
  /** How long connections may continue once no new ones are taken. */
  readonly drainTimeout: number;
  /** How long new connections are taken after the signal to stop. */
  readonly shutdownDelay: number;
  /** The path of the control socket; without one there is none. */
  readonly control?: string;
  /** How long connections may continue after another program has taken over. */
  readonly upgradeDrain: number;
  /** The control socket of a running program to take over from, where one answers there. */
  readonly takeOver?: string;
  /** Reload when the file, or a subnet file, changes. */
  readonly watch: boolean;
  /** How often the host names of upstreams are resolved again; 0: only at a reload. */
  readonly resolveInterval: number;
  /** One or more; no two of them share a name, or an address and port of one transport. */
  readonly listeners: readonly ListenerConfig[];
}

/** How the upstream of a connection is selected: by the client's family, or by the header's destination. */
export type UpstreamPolicy = "family" | "destination";

/** Listening addresses, the peers that they trust, and their upstreams. */
export interface ListenerConfig {
  /** The label in log and metrics; by default the first address as it was written. */
  readonly name: string;
  /** One or more. */
  readonly listen: readonly PortRange[];
  readonly protocol: ProtocolName;
  readonly udpHeader: UdpHeaderName;
  readonly upstream: UpstreamPolicy;
  /**
   * Where IPv4 clients go; without one they are refused. With `upstream` at `family` there is one for
   * one of the families; at `destination` they serve headers that name none (LOCAL, UNKNOWN).
   */
  readonly ipv4?: Upstream;
  /** Where IPv6 clients go. */
  readonly ipv6?: Upstream;
  /** Where headers may send their clients; not empty if `upstream` is `destination`. */
  readonly allowedDestinations: readonly Destination[];
  /**
   * Which peers may connect, longest prefix first. Where it is empty and there are no `allowedSubnets`,
   * every peer is trusted and must send a header.
   */
  readonly trust: readonly TrustRule[];
  /** Peers that are trusted and must send a header; never beside `trust`. */
  readonly allowedSubnets?: AllowedSubnets;
  /** The mark of packets to the upstream; 0 sets none. */
  readonly mark: number;
  /** How long a peer may take for its TCP header. */
  readonly headerTimeout: number;
  /** How long the upstream may take to accept. */
  readonly connectTimeout: number;
  /** How long a UDP flow may carry nothing. */
  readonly closeAfter: number;
  /** Silence of a TCP connection after which its host is asked; 0 leaves it to the system. */
  readonly keepalive: number;
  /** How long a relayed TCP connection may carry nothing; 0 is forever. */
  readonly idleTimeout: number;
  /** How long a peer with an optional header may be silent before it is relayed without one. */
  readonly optionalWait: number;
  /** Accept what TPROXY hands over, whatever its destination. */
  readonly transparent: boolean;
  /** Most TCP connections, UDP flows, and connections for each client address; without: no own limit. */
  readonly maxConnections?: number;
  readonly maxFlows?: number;
  readonly maxConnectionsPerClient?: number;
}

/** Subnets in a file of their own, which a reload reads again, or in place. */
export type AllowedSubnets =
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "inline"; readonly subnets: readonly Subnet[] };

/** Defaults of options that mmproxy-rs does not have and the command line does not (yet) name. */
export const MODEL_DEFAULTS = {
  resolveInterval: 60,
  upstream: "family",
  /** The least that the PROXY protocol's specification lets a receiver wait (section 2). */
  optionalWait: 3,
  transparent: false,
} as const;

/** A mark, if any listener has one: what the process needs for one, it needs for all. */
export function markOf({ listeners }: Pick<ProxyConfig, "listeners">): number {
  return listeners.find(({ mark }) => mark !== 0)?.mark ?? 0;
}
