/** Findings as lines for people, or as one JSON document for machines. */
import type { Finding, State } from "./checks.ts";

/** A finding, and the check that it is of. */
export interface Entry extends Finding {
  readonly name: string;
}

const MARKS: Record<State, string> = { ok: "✓", failed: "✗", unknown: "?", skipped: "-" };

/**
 * One line a finding; under it, the commands that mend it. The last line says what it comes to. Where
 * findings are about several listeners, the lines are a table with their names.
 */
export function reportText(entries: readonly Entry[]): string {
  const names = new Set(
    entries.map(({ listener }) => listener).filter((name) => name !== undefined),
  );
  const lines = names.size > 1 ? tableLines(entries, names) : entries.map(plainLine);
  const text = entries.flatMap(({ mend }, index) => [
    lines[index],
    ...mend.map((command) => `    ${command}`),
  ]);
  const wrong = entries.filter(({ state }) => state === "failed").length;
  const sum = wrong === 0
    ? "It works"
    : `It does not work: mend ${wrong === 1 ? "that" : `the first of ${wrong}`} and ask again`;
  return [...text, sum].join("\n");
}

function plainLine(entry: Entry): string {
  return `${MARKS[entry.state]} ${entry.name}: ${subject(entry)}`;
}

/** The lines with the check and the listener in columns. */
function tableLines(entries: readonly Entry[], names: ReadonlySet<string>): string[] {
  const width = Math.max(...entries.map(({ name }) => name.length)) + 1;
  const room = Math.max(...[...names].map((name) => name.length));
  return entries.map((entry) => {
    const check = `${entry.name}:`.padEnd(width);
    const listener = (entry.listener ?? "").padEnd(room);
    return `${MARKS[entry.state]} ${check} ${listener} ${subject(entry)}`;
  });
}

function subject({ protocol, address, detail }: Entry): string {
  return [protocol?.toUpperCase(), address, detail].filter(Boolean).join(" ");
}

/**
 * `{"ok": …, "checks": [{"name", "state", "listener"?, "protocol"?, "address"?, "detail", "mend": […]}, …]}`; `ok` as
 * the exit code has it.
 */
export function reportJson(entries: readonly Entry[]): string {
  return JSON.stringify({ ok: isWell(entries), checks: entries }, undefined, 2);
}

/** Whether nothing that was checked speaks against a start. */
export function isWell(entries: readonly Entry[]): boolean {
  return entries.every(({ state }) => state !== "failed");
}
