/** Findings as lines for people, or as one JSON document for machines. */
import type { Paint, Style } from "../log/paint.ts";
import type { Entry } from "./checks.ts";
import type { State } from "./finding.ts";
import { count } from "../config/count.ts";

const MARKS: Record<State, string> = {
  ok: "✓",
  failed: "✗",
  warning: "!",
  unknown: "?",
  skipped: "-",
};
const STYLES: Record<State, Style> = {
  ok: "green",
  failed: "red",
  warning: "yellow",
  unknown: "cyan",
  skipped: "dim",
};

/**
 * One line a finding; under it, the commands that fix it. Of several listeners each is a group under its name.
 * The last line is a summary.
 */
export function reportText(entries: readonly Entry[], paint: Paint): string {
  const names = new Set(
    entries.map(({ listener }) => listener).filter((name) => name !== undefined),
  );
  const width = Math.max(...entries.map(({ name }) => name.length)) + 1;
  let group: string | undefined;
  const lines = entries.flatMap((entry, index) => {
    const heading = names.size > 1 && (index === 0 || entry.listener !== group)
      ? [paint("bold", entry.listener === undefined ? "This host" : `Listener ${entry.listener}`)]
      : [];
    group = entry.listener;
    const { state, name, fix } = entry;
    const check = `${name}:`.padEnd(width);
    return [
      ...heading,
      `${paint(STYLES[state], MARKS[state])} ${paint("dim", check)} ${subject(entry)}`,
      ...fix.map((command) => `    ${paint("bold", command)}`),
    ];
  });
  const style = !isWell(entries) ? "red" : countState(entries, "warning") > 0 ? "yellow" : "green";
  return [...lines, paint(style, summary(entries))].join("\n");
}

function subject({ protocol, address, detail }: Entry): string {
  return [protocol?.toUpperCase(), address, detail].filter(Boolean).join(" ");
}

function summary(entries: readonly Entry[]): string {
  const wrong = countState(entries, "failed");
  const warnings = countState(entries, "warning");
  const more = warnings === 0 ? "" : `, ${count(warnings, "warning")}`;
  if (wrong === 0) return warnings === 0 ? "All checks passed" : `No check failed${more}`;
  const what = wrong === 1 ? "it" : "the first one";
  return `${count(wrong, "check")} failed${more}. Fix ${what}, then run doctor again`;
}

function countState(entries: readonly Entry[], wanted: State): number {
  return entries.filter(({ state }) => state === wanted).length;
}

/**
 * `{"ok": …, "checks": [{"name", "state", "listener"?, "protocol"?, "address"?, "detail", "fix": […]}, …]}`; `ok` as
 * the exit code has it.
 */
export function reportJson(entries: readonly Entry[]): string {
  const checks = entries.map(({ sets: _, ...entry }) => entry);
  return JSON.stringify({ ok: isWell(entries), checks }, undefined, 2);
}

/** Whether nothing that was checked speaks against a start. */
export function isWell(entries: readonly Entry[]): boolean {
  return entries.every(({ state }) => state !== "failed");
}
