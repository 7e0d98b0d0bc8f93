/** The list of checks, in the order in which an operator would fix them: facts in, findings out. */
import type { Facts } from "./facts.ts";
import type { Finding, HostCheck, ListenerCheck } from "./finding.ts";
import { capabilities, conntrack, loopback, offload, openFiles, sandbox } from "./host_checks.ts";
import { listen, subnets, tproxy, upstreams } from "./listener_checks.ts";
import { reversePath, routes } from "./routing_checks.ts";
import { clients, service } from "./upstream_checks.ts";

/** A finding, and the check that it is of. */
export interface Entry extends Finding {
  readonly name: string;
}

/** The names are for machines, and do not change. */
export type Check =
  | { readonly name: string; readonly of: "host"; readonly run: HostCheck }
  | { readonly name: string; readonly of: "listener"; readonly run: ListenerCheck };

export const CHECKS: readonly Check[] = [
  { name: "capabilities", of: "host", run: capabilities },
  { name: "loopback", of: "host", run: loopback },
  { name: "subnets", of: "listener", run: subnets },
  { name: "listen", of: "listener", run: listen },
  { name: "tproxy", of: "listener", run: tproxy },
  { name: "upstreams", of: "listener", run: upstreams },
  { name: "sandbox", of: "host", run: sandbox },
  { name: "offload", of: "host", run: offload },
  { name: "nofile", of: "host", run: openFiles },
  { name: "service", of: "listener", run: service },
  { name: "routes", of: "host", run: routes },
  { name: "rp_filter", of: "host", run: reversePath },
  { name: "clients", of: "listener", run: clients },
  { name: "conntrack", of: "host", run: conntrack },
];

/**
 * Every finding. Of one listener in the order of the checks; of several first what is about the host, then
 * each listener's, in the order of the configuration.
 */
export function examine(facts: Facts): Entry[] {
  const { listeners } = facts;
  if (listeners.length <= 1) return CHECKS.flatMap((check) => findingsOf(check, facts, listeners));
  const of = (what: Check["of"]) => CHECKS.filter((check) => check.of === what);
  return [
    ...of("host").flatMap((check) => findingsOf(check, facts, listeners)),
    ...listeners.flatMap((given) =>
      of("listener").flatMap((check) => findingsOf(check, facts, [given]))
    ),
  ];
}

/** A check's findings; those about a listener name it. */
function findingsOf(check: Check, facts: Facts, listeners: Facts["listeners"]): Entry[] {
  const { name } = check;
  if (check.of === "host") return check.run(facts).map((finding) => ({ name, ...finding }));
  return listeners.flatMap((given) =>
    check.run(facts, given).map((finding) => ({
      name,
      ...finding,
      listener: given.listener.name,
    }))
  );
}
