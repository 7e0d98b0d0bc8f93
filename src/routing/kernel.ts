/** This host's routing, through the native core. */
import { type Address, encodeEndpoint } from "../config/options.ts";
import { Status } from "../native/layout.ts";
import { type Library, NativeError } from "../native/library.ts";
import {
  isLoopback,
  type Present,
  type Reach,
  type Reply,
  type ReplyRoute,
  type Route,
  RoutingError,
  type Rule,
} from "./plan.ts";
import {
  decodeReach,
  decodeReplyRoute,
  decodeRouting,
  encodeReply,
  encodeRouting,
} from "./records.ts";

/** What is asked of a host's routing. Every method may throw a `RoutingError`. */
export interface Routing {
  /** How the host reaches a service. */
  reach(service: Address): Reach;
  /** Which way the host sends a reply to a client. */
  replyRoute(reply: Reply): ReplyRoute;
  /** The rules that look in a table, and its routes. */
  list(table: number): Present[];
  add(entry: Rule | Route): void;
  /** Removes what is there as it was listed; no error if it is gone. */
  remove(entry: Present): void;
  /** Whether a kernel parameter, a path below /proc/sys, is 1. */
  isOn(sysctl: string): boolean;
  switch(sysctl: string, on: boolean): void;
}

export class KernelRouting implements Routing {
  constructor(readonly library: Library) {}

  reach(service: Address): Reach {
    const reach = decodeReach(explained(() => this.library.findReach(encodeEndpoint(service))));
    // Without lo, or without IPv6 on it, the default route takes them: no host is there.
    return reach.kind === "remote" && isLoopback(service) ? { kind: "none" } : reach;
  }

  replyRoute(reply: Reply): ReplyRoute {
    return decodeReplyRoute(explained(() => this.library.findReply(encodeReply(reply))));
  }

  list(table: number): Present[] {
    return decodeRouting(explained(() => this.library.listRouting(table)));
  }

  add(entry: Rule | Route): void {
    explained(() => this.library.addRouting(encodeRouting(entry)));
  }

  remove(entry: Present): void {
    explained(() => this.library.removeRouting(encodeRouting(entry)));
  }

  isOn(sysctl: string): boolean {
    const value = explained(
      () => this.library.readFile(`/proc/sys/${sysctl}`),
      "where /proc/sys is hidden (ProcSubset=pid), set the routes from outside: mmproxy routes up",
    );
    return new TextDecoder().decode(value).trim() === "1";
  }

  switch(sysctl: string, on: boolean): void {
    this.setSysctl(sysctl, on ? 1 : 0);
  }

  /** Gives a kernel parameter a value. */
  setSysctl(sysctl: string, value: number): void {
    const assignment = `${sysctl.replaceAll("/", ".")}=${value}`;
    explained(
      () => this.library.setSysctl(sysctl, value),
      `where /proc/sys is read-only, set it from outside: sysctl -w ${assignment}, or --sysctl ${assignment} for a container`,
    );
  }
}

/**
 * Adds to a refusal of the native core what the operator can do about it.
 *
 * @param advice for a refusal that is not for want of a capability
 */
function explained<T>(call: () => T, advice?: string): T {
  try {
    return call();
  } catch (error) {
    if (!(error instanceof NativeError)) throw error;
    const fix = error.status === Status.permission ? "run as root, or with CAP_NET_ADMIN" : advice;
    throw new RoutingError(fix ? `${error.message}; ${fix}` : error.message, { cause: error });
  }
}
