/** Distributes the process's descriptors: budgets over all listeners. */
import type { ListenerConfig } from "./model.ts";
import { transportsOf } from "./options.ts";

/** Descriptors that the runtime and each worker need for themselves. */
const RESERVED_FILES = 48;
/** A listening socket of each transport is among them. */
const RESERVED_FILES_A_WORKER = 12;
/** Connections that the metrics port has at once. */
export const METRICS_CONNECTIONS = 32;
/** Upstreams that readiness tries at once: each takes a descriptor and a thread of the runtime. */
export const READINESS_PROBES = 8;
/** Those, and the port itself. */
const RESERVED_FILES_FOR_METRICS = METRICS_CONNECTIONS + READINESS_PROBES + 1;
/** The control socket, its wake-up and its connections. */
const RESERVED_FILES_FOR_CONTROL = 12;
const MOST_FLOWS = 65_536;
/** Each may hold 1 MiB while its reader stalls. */
const MOST_PIPES = 1024;
const FILES_A_PIPE = 2;
const FILES_A_CONNECTION = 2;
/** The part of TCP's descriptors that is for pipes. */
const SHARE_OF_PIPES = 1 / 8;
/**
 * The part of UDP's descriptors that is for flows where a listener is transparent: the native core opens a
 * quarter as many sockets to reply from (`reply_sources_a_worker`).
 */
const SHARE_OF_FLOWS = 4 / 5;
/** The minimum, even if the calculation leaves none. */
const FEWEST = 4;

/** What takes descriptors. */
export interface Takers {
  readonly listeners: readonly (Pick<ListenerConfig, "listen" | "protocol"> & {
    readonly transparent?: boolean;
  })[];
  /** How many workers there are, each with its own listening sockets. */
  readonly workers: number;
  readonly metricsAddr?: unknown;
  readonly control?: unknown;
}

/** What there may be at once, over all listeners. */
export interface Limits {
  readonly flows: number;
  readonly connections: number;
  readonly pipes: number;
}

/**
 * How many UDP flows, TCP connections and pipes there may be at once. A flow takes one file descriptor, a
 * connection two; a connection that cannot get its second one would be lost, so it is not accepted. Two
 * pipes more for each would be too many to set aside: there are fewer, and who gets none is copied.
 *
 * @param fileLimit the limit of open files
 */
export function limits(takers: Takers, fileLimit: number): Limits {
  const { workers, metricsAddr, control } = takers;
  const protocols = protocolsOf(takers);
  const metrics = metricsAddr ? RESERVED_FILES_FOR_METRICS : 0;
  const controls = control === undefined ? 0 : RESERVED_FILES_FOR_CONTROL;
  const more = Math.max(0, listeningSockets(takers) - protocols.size);
  const free = fileLimit - RESERVED_FILES - (RESERVED_FILES_A_WORKER + more) * workers - metrics -
    controls;
  const share = free / Math.max(1, protocols.size);
  const forFlows = repliesFromElsewhere(takers) ? share * SHARE_OF_FLOWS : share;
  const pipes = Math.floor(Math.max(0, share) * SHARE_OF_PIPES / FILES_A_PIPE);
  const lent = Math.min(MOST_PIPES, pipes);
  return {
    flows: Math.max(FEWEST, Math.min(MOST_FLOWS, Math.floor(forFlows))),
    connections: Math.max(FEWEST, Math.floor((share - lent * FILES_A_PIPE) / FILES_A_CONNECTION)),
    pipes: lent,
  };
}

function repliesFromElsewhere({ listeners }: Pick<Takers, "listeners">): boolean {
  return listeners.some(({ transparent, protocol }) => transparent && protocol !== "tcp");
}

/** The transports that any listener has. */
export function protocolsOf({ listeners }: Pick<Takers, "listeners">): Set<"tcp" | "udp"> {
  return new Set(listeners.flatMap(({ protocol }) => transportsOf(protocol)));
}

/** The listening sockets of one worker: one for each address, port and transport. */
export function listeningSockets({ listeners }: Pick<Takers, "listeners">): number {
  return listeners.reduce((sum, { listen, protocol }) => {
    const ports = listen.reduce((sum, { port, lastPort }) => sum + lastPort - port + 1, 0);
    return sum + ports * transportsOf(protocol).length;
  }, 0);
}
