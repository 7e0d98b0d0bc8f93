/**
 * The routing that brings the upstreams' replies to clients back to this host: which rules, routes and
 * kernel parameters are needed, as data. Nothing here asks the kernel. docs/routes.md says why.
 */
import { formatAddress } from "../config/address.ts";
import type { Transport } from "../config/options.ts";
import type { Ports } from "../config/ranges.ts";
import type { Need } from "./needs.ts";

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
  /** Their source ports. */
  readonly ports?: Ports;
  readonly table: number;
  /** Its position: a lower one comes first. The kernel's choice without it: before all others. */
  readonly priority?: number;
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

/** Every parameter that a plan may switch on. */
export const PARAMETERS = [
  "net/ipv4/tcp_fwmark_accept",
  "net/ipv4/fwmark_reflect",
  "net/ipv6/fwmark_reflect",
];

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
  /** A reply that each rule is for: by these the kernel is asked what it does. */
  readonly replies: readonly Reply[];
}

/** A reply to a client, which a rule is to send to the table. */
export interface Reply {
  readonly rule: Rule;
  /** Who sends it, network byte order; zeroes where the kernel has yet to choose an address. */
  readonly source: readonly number[];
  readonly port: number;
  readonly transport: Transport;
}

/** What the kernel does with a reply. */
export interface ReplyRoute {
  /** It is delivered on this host. */
  readonly isLocal: boolean;
  /** Where it goes out; empty if it does not. */
  readonly device: string;
  /** The rule that decides it. */
  readonly rule?: { readonly priority: number; readonly table: number };
}

/** A rule that is there and has no effect: another one comes before it. */
export interface Detour {
  readonly step: Rule;
  /** The other rule. */
  readonly by: { readonly priority: number; readonly table: number };
  /** Where replies go out; empty if they are dropped. */
  readonly device: string;
  /** The step at a place before the other rule; none if there is no such place. */
  readonly ahead?: Rule;
}

/**
 * The detours among replies. Only a rule before the plan's own is one: what the kernel says of a
 * reply may have other reasons, such as rp_filter.
 *
 * @param present what `compare` compared with
 * @param ask what the kernel does with a reply; asked only for rules that are there
 */
export function findDetours(
  { replies }: Plan,
  { missing }: Comparison,
  present: readonly Present[],
  ask: (reply: Reply) => ReplyRoute,
): Detour[] {
  const incomplete = new Set(missing.map((step) => step.kind === "sysctl" ? 0 : step.family));
  const found: Detour[] = [];
  for (const reply of replies) {
    const { rule } = reply;
    if (incomplete.has(rule.family) || found.some(({ step }) => isSameStep(step, rule))) continue;
    const own = present.find((entry) => entry.kind === "rule" && covers(entry, rule));
    if (!own) continue;
    const { isLocal, device, rule: by } = ask(reply);
    if (isLocal || !by || by.priority >= own.priority) continue;
    // The kernel's own rule is at 0.
    const ahead = by.priority > 1 ? { ahead: { ...rule, priority: by.priority - 1 } } : {};
    found.push({ step: rule, by, device, ...ahead });
  }
  return found;
}

export interface Note {
  /** One line. */
  readonly text: string;
  /** Commands for another host. */
  readonly commands: readonly string[];
  /** The upstream that has to be set up elsewhere, as its need has it. */
  readonly upstream?: string;
}

/** The routing cannot be set or removed; the message is one line for the operator. */
export class RoutingError extends Error {
  override readonly name = "RoutingError";
}

/** What a plan is made for. */
export interface Surroundings {
  /** The table that the rules lead to. */
  readonly table: number;
  /** How this host reaches a server. */
  readonly reach: (need: Need) => Reach;
  /** Whether a UDP server there may be bound to a wildcard address. */
  readonly mayBeWildcard?: (need: Need) => boolean;
  /** IPv6 ports on which the proxy itself takes datagrams. */
  readonly datagramPorts?: readonly Ports[];
}

/**
 * What all of these upstreams need on this host, each step once.
 *
 * @throws {RoutingError} when the host does not reach one that the operator names
 */
export function planRoutes(needs: readonly Need[], around: Surroundings): Plan {
  const sources = sourcesOf(needs, around);
  const plans = needs.map((need) => planOne({ ...around, need, sources }));
  const steps = plans.flatMap((plan) => plan.steps);
  return {
    steps: distinct([
      ...plans.flatMap((plan) => plan.sysctls).map((name): Sysctl => ({ kind: "sysctl", name })),
      // A route with a source does what one without does, and there can be only one.
      ...steps.filter((step) =>
        step.kind !== "route" || step.source !== undefined || !sources.has(step.family)
      ),
    ]),
    notes: distinct(plans.flatMap((plan) => plan.notes)),
    replies: plans.flatMap((plan, index) => {
      const need = needs[index];
      return need
        ? plan.steps.flatMap((step) => step.kind === "rule" ? repliesOf(step, need) : [])
        : [];
    }),
  };
}

/** What a rule of an upstream is for, over each of its transports. */
function repliesOf(rule: Rule, need: Need): Reply[] {
  const hasSource = rule.from
    ? rule.from.bytes.some((byte) => byte !== 0)
    : rule.mark !== undefined;
  const source = hasSource ? hostIn(need) : need.bytes.map(() => 0);
  return (rule.transport ? [rule.transport] : need.transports)
    .map((transport) => ({ rule, source, port: need.ports.first, transport }));
}

/** Of a subnet the first address that a host can have. */
export function hostIn({ bytes, prefix }: Pick<Need, "bytes" | "prefix">): readonly number[] {
  const isOne = prefix >= 8 * bytes.length - 1;
  return isOne ? bytes : [...bytes.slice(0, -1), (bytes.at(-1) ?? 0) | 1];
}

/**
 * The source of replies that have none yet, for each family: its route has room for one alone, so it is
 * the first that needs it.
 */
function sourcesOf(needs: readonly Need[], around: Surroundings): Map<Family, readonly number[]> {
  const sources = new Map<Family, readonly number[]>();
  for (const need of needs) {
    if (sources.has(need.family) || !isLocal(need, around)) continue;
    if (wildcardRules({ ...around, need }).length > 0) sources.set(need.family, need.bytes);
  }
  return sources;
}

function isLocal(need: Need, { reach }: Surroundings): boolean {
  return reach(need).kind === "local";
}

/** Each value once. */
function distinct<T>(values: readonly T[]): T[] {
  return [...new Map(values.map((value) => [JSON.stringify(value), value])).values()];
}

/** Whether two steps of a plan are one, which several upstreams need. */
export function isSameStep(one: Step, other: Step): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** One upstream, and what is around it. */
interface Case extends Surroundings {
  readonly need: Need;
}

interface SourcedCase extends Case {
  readonly sources: ReadonlyMap<Family, readonly number[]>;
}

interface PlanPart {
  readonly sysctls: readonly string[];
  readonly steps: readonly (Rule | Route)[];
  readonly notes: readonly Note[];
}

function planOne(given: SourcedCase): PlanPart {
  const reach = given.reach(given.need);
  switch (reach.kind) {
    case "none":
      return unreachable(given);
    case "remote":
      return remote(given, reach);
    case "local":
      return isLoopback(given.need) ? loopback(given) : local(given);
  }
}

function unreachable({ need: { family, text, writtenIn, isSpare } }: Case): PlanPart {
  // Where neither flag was given, each family is meant as far as the host has it.
  if (!isSpare) {
    throw new RoutingError(
      `This host has no route to ${text}: correct ${writtenIn}, or add the route (ip -${family} route)`,
    );
  }
  return { ...NOTHING, notes: [note(`Nothing to set for ${text}: this host has no IPv${family}`)] };
}

/** Nothing but a reply to a client goes from a loopback address to another host. */
function loopback(given: SourcedCase): PlanPart {
  const { need } = given;
  const from = need.family === 4 ? { bytes: [127, 0, 0, 1], length: 8 } : host(need);
  const wildcard = wildcardPart(given);
  return {
    ...NOTHING,
    steps: [route(given), rule(given, "lo", { from }), ...wildcard.steps],
    notes: wildcard.notes,
  };
}

/**
 * An address of this host that also answers others. A mark distinguishes the proxy's connections from direct
 * ones, where the kernel hands it from a connection's first packet on to the replies; UDP has no
 * connections, so there the port decides.
 */
function local(given: SourcedCase): PlanPart {
  const { need } = given;
  const { family, transports, mark } = need;
  const wildcard = wildcardPart(given);
  const steps: (Rule | Route)[] = [route(given)];
  const direct: string[] = [];
  const unset: string[] = [];
  for (const transport of transports) {
    if (transport === "tcp" && mark !== 0) {
      steps.push(rule(given, "lo", { mark }));
    } else if (takesOwnPorts(need.ports)) {
      unset.push(transport.toUpperCase());
    } else {
      steps.push(rule(given, "lo", { from: host(need), ...end(transport, need) }));
      direct.push(transport.toUpperCase());
    }
  }
  const advice = direct.includes("TCP") ? "; for TCP, --mark avoids this" : "";
  return {
    sysctls: mark !== 0 && transports.includes("tcp")
      // The second one: a refusal (RST) of a closed port is a reply as well.
      ? ["net/ipv4/tcp_fwmark_accept", `net/ipv${family}/fwmark_reflect`]
      : [],
    steps: [...steps, ...wildcard.steps],
    notes: [
      ...(direct.length === 0 ? [] : [note(
        `Other hosts that connect to ${need.text} directly (${direct.join(", ")}) get no answer ` +
          `while this is set: the rule matches all replies from that address${advice}`,
      )]),
      ...(unset.length === 0 ? [] : [note(
        `Nothing is set for the replies of ${need.text} (${
          unset.join(", ")
        }): so many ports are those ` +
          `of this host's own connections as well; forward to a loopback address`,
      )]),
      ...wildcard.notes,
    ],
  };
}

/**
 * The upstream is on another host, or in a container with a network of its own: its replies come in by
 * a device, if they come here at all. Only those of its ports: what else it sends is passed on.
 */
function remote(given: Case, reach: Extract<Reach, { kind: "remote" }>): PlanPart {
  const { need } = given;
  const rules = need.transports.map((transport) =>
    rule(given, reach.device, { from: host(need), ...end(transport, need) })
  );
  return {
    ...NOTHING,
    steps: [plainRoute(given), ...rules],
    notes: [returnRoute(given, reach)],
  };
}

function returnRoute(
  { need, table }: Case,
  { gateway, source = "<this host's address>" }: Extract<Reach, { kind: "remote" }>,
): Note {
  const ip = `ip${need.family === 6 ? " -6" : ""}`;
  const there = prefixText(need);
  // `iif lo` would keep a strict rp_filter over there from looking at ports, and UDP may be bound to a
  // wildcard address: its replies have no source yet.
  const rules = need.transports.map((transport) => {
    const from = transport === "udp" && gateway === undefined ? "" : `from ${there} `;
    return `${ip} rule add ${from}ipproto ${transport} sport ${
      portsText(need.ports)
    } lookup ${table}`;
  });
  const src = gateway === undefined && isOneHost(need) ? ` src ${there}` : "";
  const route = `${ip} route add default via ${source}${src} table ${table}`;
  const where = gateway === undefined
    ? `On ${there}, unless ${source} is already its default gateway`
    : `${there} is behind a router: on ${gateway}, and ${there} must send its replies to clients through it`;
  return {
    text: `The replies of ${need.text} to clients must be routed to this host. ${where}:`,
    commands: [route, ...rules],
    upstream: need.text,
  };
}

/** The rules for an upstream on a wildcard address, as far as the table's route has its source. */
function wildcardPart(given: SourcedCase): { steps: readonly Rule[]; notes: readonly Note[] } {
  const { need, sources, table } = given;
  const steps = wildcardRules(given);
  if (steps.length === 0 || sameBytes(sources.get(need.family), need.bytes)) {
    return { steps, notes: [] };
  }
  return {
    steps: [],
    notes: [note(
      `A UDP server at ${need.text} must be bound to that address: table ${table} supports only ` +
        `one address whose server is bound to all addresses`,
    )],
  };
}

/**
 * A UDP server on a wildcard address sends replies that have no source yet when they are routed:
 * these look in the table for the route, and get its `src`.
 */
function wildcardRules(given: Case): Rule[] {
  const { need, mayBeWildcard, datagramPorts = [] } = given;
  const { family, transports, ports } = need;
  if (!transports.includes("udp") || !isOneHost(need)) return [];
  if (mayBeWildcard?.(need) === false || takesOwnPorts(ports)) return [];
  const anySource = { bytes: [0, 0, 0, 0], length: 32 };
  if (family === 4) return [rule(given, "lo", { from: anySource, ...end("udp", need) })];
  // IPv6 cannot ask for packets without a source, so that the rule would take the proxy's own replies
  // as well if it listened on the same port; but then no server can have the wildcard address.
  if (datagramPorts.some(({ first, last }) => first <= ports.last && ports.first <= last)) {
    return [];
  }
  return [rule(given, "lo", end("udp", need))];
}

/**
 * Whether ports hold all that the kernel gives to this host's own connections and queries
 * (net.ipv4.ip_local_port_range): a rule for them would lead those astray.
 */
function takesOwnPorts({ first, last }: Ports): boolean {
  return first <= 32_768 && last >= 60_999;
}

const NOTHING: PlanPart = { sysctls: [], steps: [], notes: [] };

function note(text: string): Note {
  return { text, commands: [] };
}

function rule(
  { table, need: { family } }: Case,
  device: string,
  what: Pick<Rule, "from" | "mark" | "transport" | "ports">,
): Rule {
  return { kind: "rule", family, device, ...what, table };
}

/** The route that rules on `lo` lead to. */
function route({ table, need: { family }, sources }: SourcedCase): Route {
  const source = sources.get(family);
  return { kind: "route", family, ...(source ? { source } : {}), table };
}

function plainRoute({ table, need: { family } }: Case): Route {
  return { kind: "route", family, table };
}

function end(transport: Transport, { ports }: Need) {
  return { transport, ports };
}

function host({ bytes, prefix }: Need) {
  return { bytes, length: prefix };
}

function isOneHost({ bytes, prefix }: Need): boolean {
  return prefix === 8 * bytes.length;
}

/** Whether an address is in 127.0.0.0/8, or ::1. */
export function isLoopback({ family, bytes }: Pick<Need, "family" | "bytes">): boolean {
  if (family === 4) return bytes[0] === 127;
  return bytes.slice(0, 15).every((byte) => byte === 0) && bytes[15] === 1;
}

function prefixText(need: Need): string {
  const address = formatAddress(need.family, Uint8Array.from(need.bytes));
  return isOneHost(need) ? address : `${address}/${need.prefix}`;
}

/** As ip-rule(8) takes them: `53`, `30000-30999`. */
export function portsText({ first, last }: Ports): string {
  return first === last ? String(first) : `${first}-${last}`;
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
  /** Our own routes that block a missing one, because they have another source. */
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

/** Whether what is there does what a step wants. A route's source may be more than was requested. */
export function covers(entry: Present, step: Rule | Route): boolean {
  if (entry.other || entry.family !== step.family || entry.table !== step.table) return false;
  if (entry.kind === "route") {
    return step.kind === "route" &&
      (step.source === undefined || sameBytes(entry.source, step.source));
  }
  return step.kind === "rule" && entry.device === step.device && entry.mark === step.mark &&
    entry.transport === step.transport && entry.ports?.first === step.ports?.first &&
    entry.ports?.last === step.ports?.last &&
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
