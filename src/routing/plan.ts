/**
 * The routing that brings a service's replies to clients back to this host: which rules, routes and
 * kernel parameters are needed, as data. Nothing here asks the kernel. docs/routes.md says why.
 */
import { formatAddress } from "../config/address.ts";
import {
  type Address,
  hasDefaultServices,
  type Options,
  servicesOf,
  type Transport,
  transportsOf,
} from "../config/options.ts";

/** What routes and rules of ours are marked with (`proto` in ip-route(8) and ip-rule(8)). */
export const ORIGIN = 123;

export type Family = 4 | 6;

/** Packets like these look in the table. */
export interface Rule {
  readonly kind: "rule";
  readonly family: Family;
  /** Their source; any without it. A length of 32 with zeroes: those that have none yet. */
  readonly from?: { readonly bytes: readonly number[]; readonly length: number };
  /** Where they come in; `lo` for what this host sends. */
  readonly device: string;
  readonly mark?: number;
  readonly transport?: Transport;
  /** Their source port. */
  readonly port?: number;
  readonly table: number;
}

/** `local default dev lo`: what looks in the table is delivered here. */
export interface Route {
  readonly kind: "route";
  readonly family: Family;
  /** The source of packets that have none yet. */
  readonly source?: readonly number[];
  readonly table: number;
}

/** A kernel parameter that must be 1; a path below /proc/sys. */
export interface Sysctl {
  readonly kind: "sysctl";
  readonly name: string;
}

export type Step = Rule | Route | Sysctl;

/** How this host reaches a service's address. */
export type Reach =
  | { readonly kind: "none" }
  | { readonly kind: "local" }
  | {
    readonly kind: "remote";
    readonly device: string;
    /** A router's address; without one the service is on the device's own link. */
    readonly gateway?: string;
    /** This host's address on the way. */
    readonly source?: string;
  };

export interface Plan {
  /** In the order in which they are set: a rule comes after the route that it leads to. */
  readonly steps: readonly Step[];
  /** What the operator should know, or has to do elsewhere. */
  readonly notes: readonly Note[];
}

export interface Note {
  /** One line. */
  readonly text: string;
  /** Commands for another host. */
  readonly commands: readonly string[];
}

/** The routing cannot be set or removed; the message is one line for the operator. */
export class RoutingError extends Error {
  override readonly name = "RoutingError";
}

type Need = Pick<Options, "ipv4" | "ipv6" | "listenAddr" | "protocol" | "mark" | "table">;

/**
 * What the services of `--ipv4` and `--ipv6` need on this host.
 *
 * @param reach how this host reaches each of them
 * @param wildcards whether a UDP service of the family may be bound to a wildcard address
 * @throws {RoutingError} when it does not reach a service that the command line names
 */
export function planRoutes(
  options: Need,
  reach: Readonly<Partial<Record<Family, Reach>>>,
  wildcards: Readonly<Record<Family, boolean>> = { 4: true, 6: true },
): Plan {
  const plans = servicesOf(options).map((service) =>
    planFamily(
      { ...options, mayBeWildcard: wildcards[service.family] },
      service,
      reach[service.family] ?? { kind: "none" },
    )
  );
  const sysctls = new Set(plans.flatMap((plan) => plan.sysctls));
  return {
    steps: [
      ...[...sysctls].map((name): Sysctl => ({ kind: "sysctl", name })),
      ...plans.flatMap((plan) => plan.steps),
    ],
    notes: plans.flatMap((plan) => plan.notes),
  };
}

/** What a family's plan is made of. */
interface FamilyNeed extends Need {
  readonly mayBeWildcard: boolean;
}

interface FamilyPlan {
  readonly sysctls: readonly string[];
  readonly steps: readonly (Rule | Route)[];
  readonly notes: readonly Note[];
}

function planFamily(options: FamilyNeed, service: Address, reach: Reach): FamilyPlan {
  switch (reach.kind) {
    case "none":
      return unreachable(options, service);
    case "remote":
      return remote(options, service, reach);
    case "local":
      return isLoopback(service) ? loopback(options, service) : local(options, service);
  }
}

function unreachable(options: Need, { family, text }: Address): FamilyPlan {
  // Where neither flag was given, each family is meant as far as the host has it.
  if (!hasDefaultServices(options)) {
    throw new RoutingError(
      `This host has no route to ${text}: correct -${family}, or add the route (ip -${family} route)`,
    );
  }
  return { ...NOTHING, notes: [note(`Nothing is set for ${text}: this host has no IPv${family}`)] };
}

/** Nothing but a reply to a client goes from a loopback address to another host. */
function loopback(options: FamilyNeed, service: Address): FamilyPlan {
  const from = service.family === 4 ? { bytes: [127, 0, 0, 1], length: 8 } : host(service);
  const wildcard = wildcardRules(options, service);
  return {
    ...NOTHING,
    steps: [
      route(options, service, wildcard.length > 0),
      rule(options, service, "lo", { from }),
      ...wildcard,
    ],
  };
}

/**
 * An address of this host that also answers others. A mark tells the proxy's connections from direct
 * ones, where the kernel hands it from a connection's first packet on to the replies; UDP has no
 * connections, so there the port decides.
 */
function local(options: FamilyNeed, service: Address): FamilyPlan {
  const { family } = service;
  const marked = options.mark !== 0;
  const wildcard = wildcardRules(options, service);
  const steps: (Rule | Route)[] = [route(options, service, wildcard.length > 0)];
  const direct: string[] = [];
  for (const transport of transportsOf(options.protocol)) {
    if (transport === "tcp" && marked) {
      steps.push(rule(options, service, "lo", { mark: options.mark }));
    } else {
      steps.push(rule(options, service, "lo", { from: host(service), ...end(transport, service) }));
      direct.push(transport.toUpperCase());
    }
  }
  const advice = direct.includes("TCP") ? "; for TCP, --mark makes a difference between them" : "";
  return {
    sysctls: marked && options.protocol !== "udp"
      // The second one: a refusal (RST) of a closed port is a reply as well.
      ? ["net/ipv4/tcp_fwmark_accept", `net/ipv${family}/fwmark_reflect`]
      : [],
    steps: [...steps, ...wildcard],
    notes: direct.length === 0 ? [] : [note(
      `Other hosts that connect to ${service.text} directly (${direct.join(", ")}) get no answer ` +
        `while this is set: it takes all replies from there${advice}`,
    )],
  };
}

/**
 * The service is on another host, or in a container with a network of its own: its replies come in by
 * a device, if they come here at all. Only those of its port: what else it sends is passed on.
 */
function remote(
  options: Need,
  service: Address,
  reach: Extract<Reach, { kind: "remote" }>,
): FamilyPlan {
  const rules = transportsOf(options.protocol).map((transport) =>
    rule(options, service, reach.device, { from: host(service), ...end(transport, service) })
  );
  return {
    ...NOTHING,
    steps: [route(options, service, false), ...rules],
    notes: [returnRoute(options, service, reach)],
  };
}

function returnRoute(
  options: Need,
  service: Address,
  { gateway, source = "<this host's address>" }: Extract<Reach, { kind: "remote" }>,
): Note {
  const ip = `ip${service.family === 6 ? " -6" : ""}`;
  const there = addressText(service);
  // `iif lo` would keep a strict rp_filter over there from looking at ports, and UDP may be bound to a
  // wildcard address: its replies have no source yet.
  const rules = transportsOf(options.protocol).map((transport) => {
    const from = transport === "udp" && gateway === undefined ? "" : `from ${there} `;
    return `${ip} rule add ${from}ipproto ${transport} sport ${service.port} lookup ${options.table}`;
  });
  const route = `${ip} route add default via ${source}${
    gateway === undefined ? ` src ${there}` : ""
  } table ${options.table}`;
  const where = gateway === undefined
    ? `On ${there}, unless ${source} is its default gateway already`
    : `${there} is behind a router: on ${gateway}, and ${there} must send to clients through it`;
  return {
    text: `The replies of ${service.text} to clients must be routed to this host. ${where}:`,
    commands: [route, ...rules],
  };
}

/**
 * A UDP service on a wildcard address sends replies that have no source yet when they are routed:
 * these look in the table for the route, and get its `src`.
 */
function wildcardRules(options: FamilyNeed, service: Address): Rule[] {
  const { family, port } = service;
  if (!transportsOf(options.protocol).includes("udp") || !options.mayBeWildcard) return [];
  const anySource = { bytes: [0, 0, 0, 0], length: 32 };
  if (family === 4) {
    return [rule(options, service, "lo", { from: anySource, ...end("udp", service) })];
  }
  // IPv6 cannot ask for packets without a source, so that the rule would take the proxy's own replies
  // as well if it listened on the same port; but then no service can have the wildcard address.
  const { listenAddr } = options;
  if (listenAddr.family === 6 && listenAddr.port === port) return [];
  return [rule(options, service, "lo", end("udp", service))];
}

const NOTHING: FamilyPlan = { sysctls: [], steps: [], notes: [] };

function note(text: string): Note {
  return { text, commands: [] };
}

function rule(
  { table }: Need,
  { family }: Address,
  device: string,
  what: Pick<Rule, "from" | "mark" | "transport" | "port">,
): Rule {
  return { kind: "rule", family, device, ...what, table };
}

function route({ table }: Need, { family, bytes }: Address, withSource: boolean): Route {
  return { kind: "route", family, ...(withSource ? { source: bytes } : {}), table };
}

function end(transport: Transport, { port }: Address) {
  return { transport, port };
}

function host({ bytes }: Address) {
  return { bytes, length: 8 * bytes.length };
}

function isLoopback({ family, bytes }: Address): boolean {
  if (family === 4) return bytes[0] === 127;
  return bytes.slice(0, 15).every((byte) => byte === 0) && bytes[15] === 1;
}

function addressText({ family, bytes }: Address): string {
  return formatAddress(family, Uint8Array.from(bytes));
}

/** A rule or route that is there. */
export type Present = (Rule | Route) & {
  /** Who set it: `ORIGIN` for us. */
  readonly origin: number;
  /** A rule's position, or a route's metric. */
  readonly priority: number;
  /** It is more than what is said here: with further conditions, or another kind of route. */
  readonly other: boolean;
};

/** How a plan and what is there compare. */
export interface Comparison {
  readonly there: readonly Step[];
  readonly missing: readonly Step[];
  /** Routes of ours that stand in a missing one's way: with another source. */
  readonly replaced: readonly Present[];
  /** Of ours, and not in the plan. */
  readonly surplus: readonly Present[];
  /** Routes of others in the table, which may not be touched. */
  readonly foreign: readonly Present[];
}

/**
 * Compares a plan with what is there.
 *
 * @param present the rules that look in the plan's table, and its routes
 * @param sysctls the parameters of the plan that are 1
 */
export function compare(
  steps: readonly Step[],
  present: readonly Present[],
  sysctls: ReadonlySet<string>,
): Comparison {
  const isThere = (step: Step) =>
    step.kind === "sysctl" ? sysctls.has(step.name) : present.some((entry) => covers(entry, step));
  const missing = steps.filter((step) => !isThere(step));
  const needed = (entry: Present) =>
    steps.some((step) => step.kind !== "sysctl" && covers(entry, step));
  const unneeded = present.filter((entry) => !needed(entry));
  const ours = unneeded.filter((entry) => entry.origin === ORIGIN);
  const inTheWay = (entry: Present) =>
    entry.kind === "route" &&
    missing.some((step) => step.kind === "route" && step.family === entry.family);
  return {
    there: steps.filter(isThere),
    missing,
    replaced: ours.filter(inTheWay),
    surplus: ours.filter((entry) => !inTheWay(entry)),
    foreign: unneeded.filter((entry) => entry.kind === "route" && entry.origin !== ORIGIN),
  };
}

/** Whether what is there does what a step wants. A route's source may be more than was asked for. */
export function covers(entry: Present, step: Rule | Route): boolean {
  if (entry.other || entry.family !== step.family || entry.table !== step.table) return false;
  if (entry.kind === "route") {
    return step.kind === "route" &&
      (step.source === undefined || sameBytes(entry.source, step.source));
  }
  return step.kind === "rule" && entry.device === step.device && entry.mark === step.mark &&
    entry.transport === step.transport && entry.port === step.port &&
    entry.from?.length === step.from?.length &&
    sameBytes(network(entry.from), network(step.from));
}

function network(from: Rule["from"]): number[] | undefined {
  return from?.bytes.map((byte, index) => {
    const bits = Math.max(0, Math.min(8, from.length - 8 * index));
    return byte & (0xff << (8 - bits));
  });
}

function sameBytes(one: readonly number[] | undefined, other: readonly number[] | undefined) {
  return one?.join() === other?.join();
}
