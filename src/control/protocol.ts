/**
 * The protocol of the control socket: a request is a line of JSON, and so is its answer. The running program may be older
 * or newer than the one that asks, so fields may be added, but none changes its meaning.
 */
import { Problem } from "../config/problem.ts";
import { parseSubnet, type Subnet } from "../config/subnet.ts";

/** Connections and flows that an answer lists at most. */
export const MOST_LISTED = 10_000;

/** Which connections and flows are meant; without either, all. */
export interface Selection {
  /** A listener's name. */
  readonly listener?: string;
  /** The clients' subnet, or an address. */
  readonly client?: string;
}

export type Request =
  | { readonly command: "status" }
  | { readonly command: "reload" }
  | { readonly command: "upgrade" }
  /** Made by a new program: a hand-over is the answer (`ffi/src/proxy/handover`). */
  | { readonly command: "take-over" } & Successor
  | { readonly command: "connections"; readonly limit?: number } & Selection
  | { readonly command: "close" } & Selection
  /** The status, and the clients that have moved most bytes. */
  | { readonly command: "top"; readonly clients: number };

/** The answer to anything that cannot be done. */
export interface Refused {
  readonly error: string;
}

/** Counters of a listener or of the proxy since its start. */
export interface Counts {
  readonly connections: number;
  readonly flows: number;
  readonly accepted: number;
  readonly flowsOpened: number;
  /** Bytes of connections and of datagrams. */
  readonly bytesUp: number;
  readonly bytesDown: number;
  /** By reason, those that are not zero. */
  readonly refused: Readonly<Record<string, number>>;
}

export interface ListenerStatus extends Counts {
  readonly name: string;
  readonly listen: readonly string[];
  readonly protocol: string;
  /** The upstreams as they were written, or `destination`. */
  readonly upstreams: readonly string[];
  /** Seconds since it was opened. */
  readonly uptime: number;
}

/** A program that was replaced in an upgrade, and still has connections. */
export interface Draining {
  readonly pid: number;
  /** How many it had when it was replaced. */
  readonly connections: number;
  /** Since then. */
  readonly seconds: number;
}

export interface Status {
  readonly version: string;
  readonly pid: number;
  /** The path of the configuration file, if there is one. */
  readonly config?: string;
  /** Seconds since the start. */
  readonly uptime: number;
  readonly workers: { readonly configured: number; readonly serving: number };
  readonly stopping: boolean;
  /** What the last reload came to; without one, true. */
  readonly lastReloadGood: boolean;
  /** Those that this one has replaced, and that still run. */
  readonly draining?: readonly Draining[];
  /** Of the proxy, with what listeners have counted that are closed. */
  readonly total: Counts;
  readonly listeners: readonly ListenerStatus[];
}

/** A connection or a flow. */
export interface Connection {
  readonly listener: string;
  readonly protocol: "tcp" | "udp";
  readonly phase: "header" | "connecting" | "relayed" | "offloaded";
  readonly worker: number;
  readonly peer?: string;
  /** None before its header has come, and where the header names none. */
  readonly client?: string;
  readonly upstream?: string;
  /** Seconds. */
  readonly age: number;
  readonly idle: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
}

export interface Connections {
  /** How many there are; `connections` may be fewer. */
  readonly found: number;
  /** Workers that did not answer in time: the list is incomplete. */
  readonly silentWorkers: number;
  readonly connections: readonly Connection[];
}

export interface Closed {
  readonly closed: number;
  readonly silentWorkers: number;
}

export interface Reloaded {
  readonly good: boolean;
  /** What the log says of it. */
  readonly lines: readonly string[];
}

/** What an upgrade came to. */
export interface Upgraded {
  readonly good: boolean;
  /** What the log says of it. */
  readonly lines: readonly string[];
}

/** The new program of an upgrade. */
export interface Successor {
  readonly version: string;
}

/** The connections and flows of one client's address. */
export interface ClientLoad {
  readonly client: string;
  readonly connections: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
}

export interface Top {
  readonly status: Status;
  /** Those that have moved most bytes over what is open now. */
  readonly clients: readonly ClientLoad[];
}

/** What each command is answered. */
export interface Answers {
  readonly status: Status;
  readonly reload: Reloaded;
  readonly upgrade: Upgraded;
  readonly "take-over": never;
  readonly connections: Connections;
  readonly close: Closed;
  readonly top: Top;
}

/** Reads a request's line. */
export function parseRequest(line: string): Request | Problem {
  let request: Record<string, unknown>;
  try {
    request = JSON.parse(line);
  } catch {
    return new Problem("the request is not JSON");
  }
  if (typeof request !== "object" || request === null) {
    return new Problem("the request is not an object");
  }
  const { command } = request;
  switch (command) {
    case "status":
    case "reload":
    case "upgrade":
      return { command };
    case "take-over":
      return { command, version: String(request.version) };
    case "connections": {
      const selection = parseSelection(request);
      if (selection instanceof Problem) return selection;
      return { command, limit: whole(request.limit, MOST_LISTED), ...selection };
    }
    case "close": {
      const selection = parseSelection(request);
      if (selection instanceof Problem) return selection;
      if (selection.listener === undefined && selection.client === undefined) {
        return new Problem("close needs a listener or a client");
      }
      return { command, ...selection };
    }
    case "top":
      return { command, clients: whole(request.clients, MOST_LISTED) };
    default:
      return new Problem(`there is no command ${JSON.stringify(command) ?? "(none)"}`);
  }
}

function parseSelection({ listener, client }: Record<string, unknown>): Selection | Problem {
  if (listener !== undefined && typeof listener !== "string") {
    return new Problem("a listener's name is a text");
  }
  if (client === undefined) return { ...(listener !== undefined && { listener }) };
  const subnet = readClients(client);
  if (subnet instanceof Problem) return subnet;
  return { ...(listener !== undefined && { listener }), client: subnet.text };
}

/** The subnet of a selection's clients. */
export function readClients(client: unknown): Subnet | Problem {
  if (typeof client !== "string") return new Problem("the clients' subnet is a text");
  const subnet = parseSubnet(client);
  if (!(subnet instanceof Problem)) return subnet;
  return new Problem(`client ${JSON.stringify(client)} ${subnet.text}`);
}

function whole(value: unknown, most: number): number {
  return Number.isInteger(value) ? Math.max(0, Math.min(most, value as number)) : most;
}
