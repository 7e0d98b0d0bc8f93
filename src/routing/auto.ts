/** `--auto-routes`: the routing of one run, set at its start and removed at its end. */
import type { ProxyConfig } from "../config/model.ts";
import type { Routing } from "./kernel.ts";
import type { Log } from "../log/log.ts";
import type { Presence } from "./presence.ts";
import { PARAMETERS, RoutingError, type Step } from "./plan.ts";
import { isSetBy, setMissing, survey } from "./command.ts";
import { describeStep } from "./text.ts";

/** The routing of one run. */
export class AutoRoutes {
  readonly #routing: Routing;
  readonly #log: Log;
  readonly #table: number;
  readonly #presence: Presence | undefined;
  #set: Step[] = [];

  /**
   * Sets what the routing lacks.
   *
   * @param presence the other users of the table, whose routes must stay
   * @throws {RoutingError} when it cannot be set; then nothing of it is left
   */
  constructor(config: ProxyConfig, routing: Routing, log: Log, presence?: Presence) {
    this.#routing = routing;
    this.#log = log;
    this.#table = config.table;
    this.#presence = presence;
    this.#add(config, true);
    if (config.file !== undefined) this.#keepParameters();
    presence?.announce(this.#set.length > 0);
  }

  /**
   * Sets what another configuration needs beside. What it does not need any more stays: connections that
   * there are may; see `keepFor`.
   *
   * @returns what takes exactly that back
   * @throws {RoutingError} when it cannot be set; then all is as it was
   */
  follow(config: ProxyConfig): () => void {
    const added = this.#add(config, false);
    return () => this.#takeBack(added);
  }

  /** Whether more is set than these listeners need. */
  exceeds(config: ProxyConfig): boolean {
    return this.#surplus(config).length > 0;
  }

  /** Removes what was set and these listeners do not need. */
  keepFor(config: ProxyConfig): void {
    const surplus = this.#surplus(config);
    if (surplus.length > 0) this.#takeBack(surplus);
  }

  #surplus(config: ProxyConfig): Step[] {
    if (this.#set.length === 0 || this.#isShared) return [];
    try {
      const { steps } = survey(config, this.#routing);
      return this.#set.filter((step) => !steps.some((needed) => doesFor(step, needed)));
    } catch (error) {
      // What is needed cannot be known: all of it, until the end.
      if (error instanceof RoutingError) return [];
      throw error;
    }
  }

  /** Whether another run uses the table, so that nothing may be taken from there. */
  get #isShared(): boolean {
    return (this.#presence?.others().length ?? 0) > 0;
  }

  /** What is to be removed at the end. */
  get steps(): readonly Step[] {
    return this.#set;
  }

  /** Removes at the end what a predecessor has set, too: it leaves that to its successor. */
  inherit(steps: readonly Step[]): void {
    for (const step of steps) {
      // The sandbox lets nobody open it at the end.
      if (step.kind === "sysctl") this.#routing.switch(step.name, true);
    }
    const known = new Set(this.#set.map((step) => JSON.stringify(step)));
    this.#set.push(...steps.filter((step) => !known.has(JSON.stringify(step))));
  }

  /** Leaves everything to a successor. */
  leave(): void {
    this.#set = [];
  }

  /** Leaves everything as it is at the end: connections that the kernel goes on with need it. */
  stay(): void {
    if (this.#set.length === 0) return;
    this.#log(
      "info",
      "Routes stay: the connections that the kernel goes on with need them; where mmproxy does not start again, " +
        `remove them afterwards with "mmproxy routes down --table ${this.#table}"`,
      { event: "routes_kept" },
    );
    this.leave();
  }

  /**
   * Removes exactly what was set, here or by a run that has left it to this one; what was there before
   * stays. While another run uses the table, everything stays.
   */
  remove(): void {
    if (this.#set.length > 0 && this.#isShared) {
      this.#log(
        "info",
        `Routes stay: another mmproxy uses table ${this.#table}; if it runs without --auto-routes, ` +
          `remove them afterwards with "mmproxy routes down --table ${this.#table}"`,
        { event: "routes_kept" },
      );
      return;
    }
    this.#takeBack(this.#set);
  }

  /** A reload may need them when the sandbox lets nobody open them: what was set once is kept open. */
  #keepParameters(): void {
    for (const name of PARAMETERS) {
      try {
        this.#routing.switch(name, this.#routing.isOn(name));
      } catch (error) {
        // A reload that needs it reports it.
        if (!(error instanceof RoutingError)) throw error;
      }
    }
  }

  #add(config: ProxyConfig, isFirst: boolean): readonly Step[] {
    const added: Step[] = [];
    try {
      const found = survey(config, this.#routing);
      // What another run has set, and would have removed at its end, is this one's to remove as well.
      const shared = this.#presence?.others().some(({ hasSet }) => hasSet)
        ? found.there.filter((step) => step.kind !== "sysctl")
        : [];
      setMissing(config, found, this.#routing, (step) => added.push(step));
      this.#set.push(...shared.filter((step) => !this.#set.includes(step)));
      if (isFirst || added.length > 0) {
        for (const { text, commands } of found.notes) {
          this.#log("warn", [text, ...commands].join(" "), { event: "routes_note", commands });
        }
      }
    } catch (error) {
      removeSteps(added, this.#table, this.#routing, this.#log);
      throw error;
    }
    this.#set.push(...added);
    if (!isFirst && added.length === 0) return added;
    const there = `Routes are ${added.length === 0 ? "already present" : "set"}`;
    this.#log("info", sentence(there, added), {
      event: "routes_set",
      routes: added.map(describeStep),
    });
    return added;
  }

  #takeBack(steps: readonly Step[]): void {
    removeSteps(steps, this.#table, this.#routing, this.#log);
    this.#set = this.#set.filter((step) => !steps.includes(step));
  }
}

/**
 * Whether a step that was set does what another is to do. A family's route in a table is one, whatever its
 * source, and a rule may have been set at a place before another program's.
 */
function doesFor(set: Step, needed: Step): boolean {
  if (set.kind === "route") return needed.kind === "route" && set.family === needed.family;
  const anywhere = (step: Step) => JSON.stringify({ ...step, priority: undefined });
  return anywhere(set) === anywhere(needed);
}

/** Removes the rules, then the routes to which no other rule leads, then switches parameters back. */
function removeSteps(set: readonly Step[], table: number, routing: Routing, log: Log): void {
  if (set.length === 0) return;
  const removed: Step[] = [];
  try {
    for (const kind of ["rule", "route"] as const) {
      const present = routing.list(table);
      // Where a rule was set twice, the step with a place takes the rule at that place.
      const steps = set.filter((step) => step.kind === kind)
        .toSorted((one, other) => Number(hasPlace(other)) - Number(hasPlace(one)));
      for (const step of steps) {
        const at = present.findIndex((entry) => isSetBy(entry, step));
        const entry = present[at];
        const used = kind === "route" &&
          present.some(({ kind, family }) => kind === "rule" && family === entry?.family);
        if (!entry || used) continue;
        routing.remove(entry);
        present.splice(at, 1);
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
  log("info", sentence("Routes removed", removed), {
    event: "routes_removed",
    routes: removed.map(describeStep),
  });
}

function hasPlace(step: Step): boolean {
  return step.kind === "rule" && step.priority !== undefined;
}

function sentence(what: string, steps: readonly Step[]): string {
  return steps.length === 0 ? what : `${what}: ${steps.map(describeStep).join(", ")}`;
}
