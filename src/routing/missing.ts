/** Warns at a start or reload if the routing for replies is missing, with the command that sets it. */
import { commandLine } from "../cli/command_line.ts";
import type { ProxyConfig } from "../config/model.ts";
import type { Log } from "../log/log.ts";
import { survey } from "./command.ts";
import type { Routing } from "./kernel.ts";
import { RoutingError } from "./plan.ts";
import { describeStep } from "./text.ts";

/**
 * Warns where rules or routes are missing. What a UDP server that is bound to all addresses needs beside is
 * the doctor's to see: it knows how the server is bound.
 *
 * @param config its upstreams have addresses
 */
export function warnOfMissingRoutes(config: ProxyConfig, routing: Routing, log: Log): void {
  const missing = missingSteps(config, routing, log).map(describeStep);
  if (missing.length === 0) return;
  const command = commandLine("routes up", config);
  log(
    "warn",
    `Clients will get no answer: table ${config.table} lacks the routing for the upstreams' replies ` +
      `(${missing.join(", ")}); set it with "${command}", or start with --auto-routes`,
    { event: "routes_missing", routes: missing, command },
  );
}

function missingSteps(config: ProxyConfig, routing: Routing, log: Log) {
  try {
    return survey(config, routing, () => false).missing;
  } catch (error) {
    if (!(error instanceof RoutingError)) throw error;
    log("debug", `Cannot check the routing: ${error.message}`, {
      event: "routes_unknown",
      error: error.message,
    });
    return [];
  }
}
