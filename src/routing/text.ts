/** Rules, routes and kernel parameters as text: as `ip` shows them, and as commands to paste. */
import { formatAddress } from "../config/address.ts";
import {
  type Detour,
  ORIGIN,
  portsText,
  type Present,
  type Route,
  type Rule,
  type Step,
} from "./plan.ts";

/** The command that sets a step; pasted, it has the same effect as `routes up`. */
export function setCommand(step: Step): string {
  switch (step.kind) {
    case "sysctl":
      return `sysctl -w ${sysctlName(step.name)}=1`;
    case "rule":
      return `${ip(step)} rule add ${position(step)}${
        selector(step)
      } lookup ${step.table} protocol ${ORIGIN}`;
    case "route":
      return `${ip(step)} route add ${target(step)} table ${step.table} proto ${ORIGIN}`;
  }
}

/** The command that removes what is there, and that alone. */
export function removeCommand(entry: Present): string {
  return entry.kind === "rule"
    ? `${ip(entry)} rule del pref ${entry.priority} ${
      selector(entry)
    } lookup ${entry.table} protocol ${entry.origin}`
    : `${ip(entry)} route del ${target(entry)} table ${entry.table} proto ${entry.origin}`;
}

/** A step in a few words. */
export function describeStep(step: Step): string {
  switch (step.kind) {
    case "sysctl":
      return `sysctl ${sysctlName(step.name)} = 1`;
    case "rule":
      return `IPv${step.family} rule ${position(step)}${selector(step)} lookup ${step.table}`;
    case "route":
      return `IPv${step.family} route ${target(step)} table ${step.table}`;
  }
}

/** What keeps a rule without effect, in one line. */
export function describeDetour({ step: { family }, by, device }: Detour): string {
  const what = by.table === 0 ? "which refuses packets" : `lookup ${tableName(by.table)}`;
  const where = device === "" ? "drops replies" : `sends replies out of ${device}`;
  return `IPv${family} rule ${by.priority} (${what}) comes before it and ${where}`;
}

/** What the operator runs to see the other rule, if no place is before it. */
export function detourRule({ step, by }: Detour): string {
  return `${ip(step)} rule show priority ${by.priority}`;
}

/** Tables with names of their own (ip-route(8)). */
function tableName(table: number): string {
  return { 253: "default", 254: "main", 255: "local" }[table] ?? String(table);
}

/** For a step only: the position of an existing rule is in its listing. */
function position(rule: Rule | Present): string {
  return rule.priority === undefined || "origin" in rule ? "" : `pref ${rule.priority} `;
}

function ip({ family }: Rule | Route): string {
  return family === 6 ? "ip -6" : "ip";
}

function selector({ family, from, mark, device, transport, ports }: Rule): string {
  const source = from && prefix(family, from);
  return [
    source && `from ${source}`,
    mark !== undefined && `fwmark 0x${mark.toString(16)}`,
    `iif ${device}`,
    transport && `ipproto ${transport}`,
    ports && `sport ${portsText(ports)}`,
  ].filter(Boolean).join(" ");
}

function prefix(family: number, { bytes, length }: NonNullable<Rule["from"]>): string {
  const address = formatAddress(family, Uint8Array.from(bytes));
  return length === 8 * bytes.length ? address : `${address}/${length}`;
}

function target({ family, source }: Route): string {
  const text = source && ` src ${formatAddress(family, Uint8Array.from(source))}`;
  return `local default dev lo${text ?? ""}`;
}

function sysctlName(name: string): string {
  return name.replaceAll("/", ".");
}
