/** Rules, routes and kernel parameters as text: as `ip` shows them, and as commands to paste. */
import { formatAddress } from "../config/address.ts";
import { ORIGIN, portsText, type Present, type Route, type Rule, type Step } from "./plan.ts";

/** The command that sets a step; pasted, it has the same effect as `routes up`. */
export function setCommand(step: Step): string {
  switch (step.kind) {
    case "sysctl":
      return `sysctl -w ${sysctlName(step.name)}=1`;
    case "rule":
      return `${ip(step)} rule add ${selector(step)} lookup ${step.table} protocol ${ORIGIN}`;
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
      return `IPv${step.family} rule ${selector(step)} lookup ${step.table}`;
    case "route":
      return `IPv${step.family} route ${target(step)} table ${step.table}`;
  }
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
