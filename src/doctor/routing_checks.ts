/** Checks that replies to clients come back to this host. */
import { commandLine } from "../cli/command_line.ts";
import { type Detour, RoutingError, type Step } from "../routing/plan.ts";
import { describeDetour, describeStep, detourRule } from "../routing/text.ts";
import type { Facts, ServiceFacts } from "./facts.ts";
import { asRoot, failed, type Finding, ok, skipped, wrongSysctl } from "./finding.ts";
import { ourHolder } from "./host_checks.ts";
import { isAnswered, isSpare } from "./spare.ts";

function allServices({ listeners }: Facts): ServiceFacts[] {
  return listeners.flatMap(({ services }) => services);
}

/** Whether clients' connections were seen to work, or to be refused as they should be. */
function isProven(facts: Facts, family: number): boolean {
  const its = allServices(facts).filter(({ address }) => address.family === family);
  return its.length > 0 && its.every(isAnswered);
}

/** The families that something is set for, and that some listener needs. */
function familiesOf({ routing, listeners }: Facts): number[] {
  const steps = routing instanceof RoutingError ? [] : routing.steps;
  const spare = new Set(
    listeners.flatMap((given) =>
      given.services.filter((service) => isSpare(given, service)).map(({ address }) =>
        address.family
      )
    ),
  );
  const needed = listeners.flatMap((given) =>
    given.services.filter((service) => !isSpare(given, service)).map(({ address }) =>
      address.family
    )
  );
  const set = steps.flatMap((step) => step.kind === "sysctl" ? [] : [step.family]);
  return [...needed, ...set.filter((family) => needed.includes(family) || !spare.has(family))];
}

/** The families whose connections were not seen to work. */
function openFamilies(facts: Facts): Set<number> {
  return new Set(familiesOf(facts).filter((family) => !isProven(facts, family)));
}

/** Steps that are missing, for the families whose connections were not seen to work. */
function missingSteps(facts: Facts): readonly Step[] {
  const { routing } = facts;
  if (routing instanceof RoutingError) return [];
  const open = openFamilies(facts);
  return routing.missing.filter((step) =>
    step.kind === "sysctl" ? open.size > 0 : open.has(step.family)
  );
}

/** Rules that another program's rule keeps without effect, for those families. */
function detours(facts: Facts): readonly Detour[] {
  const { routing } = facts;
  if (routing instanceof RoutingError) return [];
  const open = openFamilies(facts);
  return routing.detours.filter(({ step }) => open.has(step.family));
}

/** They are there once the program runs. */
function setAtStart({ config, self, listeners }: Facts): boolean {
  return config.autoRoutes && !ourHolder(listeners) && self.capabilities.has("net_admin");
}

/** Why a client of a family cannot be tried, if the routing is not there. */
export function routingGap(facts: Facts, family: number): string | undefined {
  const isOf = (step: Step) => step.kind === "sysctl" || step.family === family;
  const isMissing = missingSteps(facts).some(isOf);
  const isTaken = detours(facts).some(({ step }) => isOf(step));
  if (!isMissing && !isTaken) return undefined;
  if (setAtStart(facts)) return "the routes are set at the start";
  return isMissing
    ? "rules or routes are missing"
    : "another program's rule comes before the one for replies";
}

export function routes(facts: Facts): Finding[] {
  const { config, self, routing } = facts;
  if (routing instanceof RoutingError) return [failed(routing.message)];
  const [missing, astray] = [missingSteps(facts), detours(facts)];
  if (missing.length === 0 && astray.length === 0) {
    const own = routing.missing.length > 0 &&
      familiesOf(facts).every((family) => isProven(facts, family));
    return [ok(
      own
        ? "Replies to clients come back through rules of your own"
        : `Rules and routes of table ${config.table} are present`,
    )];
  }
  if (setAtStart(facts)) return [ok("--auto-routes sets the rules and routes at the start")];
  const up = [asRoot(self, commandLine("routes up", config))];
  const sets = { kind: "routes" } as const;
  if (missing.length === 0) {
    return astray.map((detour) => {
      const what = `${describeStep(detour.step)} has no effect: ${describeDetour(detour)}`;
      return detour.ahead
        ? failed(
          `${what}; the rule of mmproxy must come before it, at priority ${detour.ahead.priority}`,
          up,
          sets,
        )
        : failed(`${what}; give that rule a priority of 2 or more`, [detourRule(detour)]);
    });
  }
  const what = `${missing.map(describeStep).join(", ")}: missing`;
  if (routing.foreign.length === 0) return [failed(what, up, sets)];
  const table = config.table + 1;
  return [failed(
    `${what}, and table ${config.table} has routes that mmproxy did not set: choose another table with --table`,
    [asRoot(self, commandLine("routes up", config, { table }))],
  )];
}

export function reversePath(facts: Facts): Finding[] {
  const { filter, self } = facts;
  const four = allServices(facts).filter(({ address }) => address.family === 4);
  if (four.length === 0) return [];
  if (four.every(({ reach }) => reach?.kind !== "remote")) {
    return [ok("Not relevant: the upstream's replies never leave this host")];
  }
  if (filter.strict.length === 0) return [ok("Not strict on any interface")];
  const strict = `Strict on ${filter.strict.join(", ")}`;
  const silent = four.some(({ spoofed }) => spoofed?.outcome === "silent");
  if (four.every(({ spoofed }) => spoofed === undefined)) {
    return [skipped(`${strict}; no connection from a client's address could be tried`)];
  }
  if (filter.dropped === 0 || !silent) return [ok(`${strict}, and no reply was dropped`)];
  // The larger of `all` and the interface's own counts: 2 (loose) wins over 1.
  const dropped = `${strict}: ${filter.dropped} replies to clients were dropped`;
  return [wrongSysctl(dropped, self, "net/ipv4/conf/all/rp_filter", 2)];
}
