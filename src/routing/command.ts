/** `routes up|down|show`: sets, removes or checks the routing, and prints lines about it. */
import type { RoutesAction } from "../cli/arguments.ts";
import type { ProxyConfig } from "../config/model.ts";
import type { Address } from "../config/options.ts";
import { type Paint, plain } from "../log/paint.ts";
import type { Routing } from "./kernel.ts";
import { datagramPorts, type Need, routingNeeds } from "./needs.ts";
import {
  compare,
  type Comparison,
  covers,
  type Detour,
  findDetours,
  hostIn,
  isSameStep,
  type Note,
  ORIGIN,
  type Plan,
  planRoutes,
  type Present,
  RoutingError,
  type Step,
} from "./plan.ts";
import { describeDetour, describeStep, detourRule, removeCommand, setCommand } from "./text.ts";

/** Takes one line for the operator. */
export type Print = (line: string) => void;

/**
 * Does what was asked.
 *
 * @returns the exit code: 1 when `show` finds something missing
 * @throws {RoutingError} when it cannot be done
 */
export function runRoutes(
  { action, dryRun }: { readonly action: RoutesAction; readonly dryRun: boolean },
  config: ProxyConfig,
  routing: Routing,
  print: Print,
  paint: Paint = plain,
): number {
  switch (action) {
    case "up":
      return dryRun ? printUp(config, routing, print) : routesUp(config, routing, print, paint);
    case "down":
      return down(config, routing, print, dryRun);
    case "show":
      return show(config, routing, print, paint);
  }
}

/** A plan, and what of it is there and has an effect. */
export interface Survey extends Plan, Comparison {
  /** Rules of the plan that are there, and that another program's rule keeps without effect. */
  readonly detours: readonly Detour[];
}

/**
 * @param mayBeWildcard whether a UDP server there may be bound to a wildcard address
 * @throws {RoutingError} when it cannot be asked, or no routing here would do
 */
export function survey(
  config: ProxyConfig,
  routing: Routing,
  mayBeWildcard: (need: Need) => boolean = () => true,
): Survey {
  const { table } = config;
  const needs = routingNeeds(config);
  const reaches = new Map(needs.map((need) => [need.text, routing.reach(addressOf(need))]));
  const plan = planRoutes(needs, {
    table,
    reach: ({ text }) => reaches.get(text) ?? { kind: "none" },
    mayBeWildcard,
    datagramPorts: datagramPorts(config),
  });
  const names = plan.steps.flatMap((step) => step.kind === "sysctl" ? [step.name] : []);
  const sysctls = new Set(names.filter((name) => routing.isOn(name)));
  const present = routing.list(table);
  const compared = compare(plan.steps, present, sysctls);
  const troubles = new Set<string>();
  const detours = findDetours(plan, compared, present, (reply) => {
    try {
      return routing.replyRoute(reply);
    } catch (error) {
      if (!(error instanceof RoutingError)) throw error;
      // What is set may be right anyway.
      troubles.add(`Cannot determine the route of replies: ${error.message}`);
      return { isLocal: true, device: "" };
    }
  });
  const notes = [...plan.notes, ...[...troubles].map((text): Note => ({ text, commands: [] }))];
  return { ...plan, ...compared, notes, detours };
}

/** The address that the kernel is asked about. */
function addressOf(need: Need): Address {
  const { family, scope, ports, text } = need;
  return { family, bytes: hostIn(need), scope, port: ports.first, text };
}

/**
 * Sets what is missing, and sets a rule again, before the other one, if another rule keeps it without effect.
 *
 * @param told hears of each step that was set
 * @throws {RoutingError} when the table is another's, or the kernel refuses
 */
export function setMissing(
  config: ProxyConfig,
  survey: Survey,
  routing: Routing,
  told: (step: Step) => void,
): void {
  refuseForeign(config, survey);
  for (const entry of survey.replaced) routing.remove(entry);
  for (const step of survey.missing) {
    if (step.kind === "sysctl") routing.switch(step.name, true);
    else routing.add(step);
    told(step);
  }
  for (const { ahead } of survey.detours) {
    if (!ahead) continue;
    routing.add(ahead);
    told(ahead);
  }
}

/** Rules of ours that another program's rule keeps without effect: `setMissing` replaces them. */
function withoutEffect({ detours }: Survey, present: readonly Present[]): Present[] {
  return present.filter((entry) =>
    detours.some(({ step, by, ahead }) =>
      ahead && isSetBy(entry, step) && entry.priority > by.priority
    )
  );
}

function refuseForeign({ table }: ProxyConfig, { foreign, replaced }: Survey): void {
  const [route] = foreign;
  if (route) {
    throw new RoutingError(
      `Routing table ${table} has routes that mmproxy did not set (ip -${route.family} route show table ${table}): choose another table with --table`,
    );
  }
  if (replaced.some((entry) => entry.kind === "route" && entry.source)) {
    throw new RoutingError(
      `Routing table ${table} is set for another UDP upstream: remove it (mmproxy routes down --table ${table}), or choose another table with --table`,
    );
  }
}

/**
 * Sets what is missing, and prints each step.
 *
 * @returns the exit code: 1 when replies still take another way
 * @throws {RoutingError} when it cannot be set
 */
export function routesUp(
  config: ProxyConfig,
  routing: Routing,
  print: Print,
  paint: Paint = plain,
): number {
  const found = survey(config, routing);
  for (const step of found.there) print(`Already set: ${describeStep(step)}`);
  const useless = withoutEffect(found, routing.list(config.table));
  setMissing(config, found, routing, (step) => print(`Set: ${describeStep(step)}`));
  for (const entry of useless) routing.remove(entry);
  for (const note of found.notes) printNote(note, print);
  const { detours } = survey(config, routing);
  for (const detour of detours) printDetour(detour, print, paint);
  return detours.length === 0 ? 0 : 1;
}

function printUp(config: ProxyConfig, routing: Routing, print: Print): number {
  const found = survey(config, routing);
  refuseForeign(config, found);
  for (const step of found.there) print(`# Already set: ${describeStep(step)}`);
  for (const entry of found.replaced) print(removeCommand(entry));
  for (const step of found.missing) print(setCommand(step));
  for (const { ahead } of found.detours) if (ahead) print(setCommand(ahead));
  for (const entry of withoutEffect(found, routing.list(config.table))) print(removeCommand(entry));
  for (const note of found.notes) printNote(note, (line) => print(`# ${line}`));
  return 0;
}

/** Removes all that is ours in the table, whatever flags it was set with. */
function down({ table }: ProxyConfig, routing: Routing, print: Print, dryRun: boolean): number {
  const ours = routing.list(table).filter(({ origin }) => origin === ORIGIN);
  for (const entry of rulesFirst(ours)) {
    if (!dryRun) routing.remove(entry);
    print(dryRun ? removeCommand(entry) : `Removed: ${describeStep(entry)}`);
  }
  if (ours.length === 0) {
    print(`${dryRun ? "# " : ""}Nothing to remove: mmproxy has set nothing for table ${table}`);
  }
  return 0;
}

/** Whether what is there is what a step of ours has set. */
export function isSetBy(entry: Present, step: Step): boolean {
  if (step.kind === "rule" && ![undefined, entry.priority].includes(step.priority)) return false;
  return entry.origin === ORIGIN && step.kind !== "sysctl" && covers(entry, step);
}

/** A rule is removed before the route to which it leads. */
function rulesFirst(entries: readonly Present[]): Present[] {
  return entries.toSorted((one, other) =>
    Number(one.kind === "route") - Number(other.kind === "route")
  );
}

function show(config: ProxyConfig, routing: Routing, print: Print, paint: Paint): number {
  const [good, bad] = [paint("green", "✓"), paint("red", "✗")];
  const found = survey(config, routing);
  for (const step of found.steps) {
    const detour = found.detours.find((detour) => isSameStep(detour.step, step));
    if (detour) printDetour(detour, print, paint);
    else if (found.there.includes(step)) print(`${good} ${describeStep(step)}`);
    else print(`${bad} ${describeStep(step)}: missing; ${setCommand(step)}`);
  }
  for (const entry of [...found.replaced, ...found.surplus]) {
    print(`- ${describeStep(entry)}: not needed with these flags; ${removeCommand(entry)}`);
  }
  if (found.foreign.length > 0) {
    print(
      `${bad} Table ${config.table} has routes that mmproxy did not set: choose another table with --table`,
    );
  }
  for (const note of found.notes) printNote(note, print);
  return found.missing.length + found.foreign.length + found.detours.length === 0 ? 0 : 1;
}

function printDetour(detour: Detour, print: Print, paint: Paint): void {
  const { step, ahead } = detour;
  const fix = ahead
    ? setCommand(ahead)
    : `no rule can come before it: change its priority (${detourRule(detour)})`;
  print(`${paint("red", "✗")} ${describeStep(step)}: ${describeDetour(detour)}; ${fix}`);
}

function printNote({ text, commands }: Note, print: Print): void {
  print(text);
  for (const command of commands) print(`  ${command}`);
}
