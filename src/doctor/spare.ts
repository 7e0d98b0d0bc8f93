/** The effect of one upstream's result on the others of its listener. */
import { isRange } from "../config/endpoints.ts";
import { hasDefaultServices } from "../config/options.ts";
import type { ListenerFacts, ServiceFacts } from "./facts.ts";

/** A refusal is an answer, too: it came back. */
export function isAnswered({ address, plain, spoofed }: ServiceFacts): boolean {
  return spoofed?.outcome === "ok" ||
    isRange(address) && plain.outcome === "refused" && spoofed?.outcome === "refused";
}

/**
 * Whether an upstream is not there and need not be: where neither flag is given, each family is meant as far
 * as the host has it, and one is enough, as for /readyz.
 */
export function isSpare(
  { listener, services }: ListenerFacts,
  { address, plain }: ServiceFacts,
): boolean {
  return hasDefaultServices(listener) && plain.outcome !== "ok" &&
    services.some((other) =>
      other.address.family !== address.family && other.plain.outcome === "ok"
    );
}
