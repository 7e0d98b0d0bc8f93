/** Findings as lines for people, or as one JSON document for machines. */
import type { Finding, State } from "./checks.ts";

/** A finding, and the check that it is of. */
export interface Entry extends Finding {
  readonly name: string;
}

const MARKS: Record<State, string> = { ok: "✓", failed: "✗", unknown: "?", skipped: "-" };

/** One line a finding; under it, the commands that mend it. The last line says what it comes to. */
export function reportText(entries: readonly Entry[]): string {
  const lines = entries.flatMap(({ name, state, protocol, address, detail, mend }) => [
    [MARKS[state], `${name}:`, protocol?.toUpperCase(), address, detail].filter(Boolean).join(" "),
    ...mend.map((command) => `    ${command}`),
  ]);
  const wrong = entries.filter(({ state }) => state === "failed").length;
  const sum = wrong === 0
    ? "It works"
    : `It does not work: mend ${wrong === 1 ? "that" : `the first of ${wrong}`} and ask again`;
  return [...lines, sum].join("\n");
}

/**
 * `{"ok": …, "checks": [{"name", "state", "protocol"?, "address"?, "detail", "mend": […]}, …]}`; `ok` as
 * the exit code has it.
 */
export function reportJson(entries: readonly Entry[]): string {
  return JSON.stringify({ ok: isWell(entries), checks: entries }, undefined, 2);
}

/** Whether nothing that was checked speaks against a start. */
export function isWell(entries: readonly Entry[]): boolean {
  return entries.every(({ state }) => state !== "failed");
}
