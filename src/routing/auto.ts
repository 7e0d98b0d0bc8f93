/** `--auto-routes`: the routing of one run, set at its start and removed at its end. */
import type { ProxyConfig } from "../config/model.ts";
import type { Routing } from "./kernel.ts";
import type { Log } from "../log/log.ts";
import { RoutingError, type Step } from "./plan.ts";
import { isSetBy, setMissing, survey } from "./command.ts";
import { describeStep } from "./text.ts";

/**
 * Sets what the routing lacks.
 *
 * @returns what removes exactly that again; what was there before stays
 * @throws {RoutingError} when it cannot be set; then nothing of it is left
 */
export function setAutoRoutes(config: ProxyConfig, routing: Routing, log: Log): () => void {
  const set: Step[] = [];
  const remove = () => removeSteps(set, config.table, routing, log);
  try {
    const found = survey(config, routing);
    setMissing(config, found, routing, (step) => set.push(step));
    for (const { text, commands } of found.notes) {
      log("warn", [text, ...commands].join(" "), { event: "routes_note", commands });
    }
  } catch (error) {
    remove();
    throw error;
  }
  const there = `Routes are ${set.length === 0 ? "there already" : "set"}`;
  log("info", sentence(there, set), {
    event: "routes_set",
    routes: set.map(describeStep),
  });
  return remove;
}

/** Removes the rules, then the routes to which no other rule leads, then switches parameters back. */
function removeSteps(set: readonly Step[], table: number, routing: Routing, log: Log): void {
  if (set.length === 0) return;
  const removed: Step[] = [];
  try {
    for (const kind of ["rule", "route"] as const) {
      const present = routing.list(table);
      for (const step of set.filter((step) => step.kind === kind)) {
        const entry = present.find((entry) => isSetBy(entry, step));
        const used = kind === "route" &&
          present.some(({ kind, family }) => kind === "rule" && family === entry?.family);
        if (!entry || used) continue;
        routing.remove(entry);
        removed.push(step);
      }
    }
    for (const step of set) {
      if (step.kind !== "sysctl") continue;
      routing.switch(step.name, false);
      removed.push(step);
    }
  } catch (error) {
    if (!(error instanceof RoutingError)) throw error;
    log("warn", error.message, { event: "routes_left" });
  }
  log("info", sentence("Routes are removed", removed), {
    event: "routes_removed",
    routes: removed.map(describeStep),
  });
}

function sentence(what: string, steps: readonly Step[]): string {
  return steps.length === 0 ? what : `${what}: ${steps.map(describeStep).join(", ")}`;
}
