/** Readiness: whether the upstreams can be reached from a client's address. */
import { type Endpoint, isRange, upstreamEndpoints } from "../config/endpoints.ts";
import { READINESS_PROBES } from "../config/limits.ts";
import type { ListenerConfig } from "../config/model.ts";
import { hasDefaultServices } from "../config/options.ts";
import { connectProblem } from "../log/events.ts";
import { probe, PROBE_CLIENTS, type ProbeRequest, type ProbeResult } from "../native/probe.ts";

/** Makes a probe; a test sets its result. */
export type Try = (request: ProbeRequest) => Promise<ProbeResult>;

/**
 * A server need not answer a datagram that it does not understand, and a refusal takes one round trip. Below
 * the second that a request waits.
 */
const UDP_MS = 500;

/** Tries the upstreams of a listener; of several listeners at once only this many upstreams. */
export function reacher(
  library: Parameters<typeof probe>[0],
): (listener: ListenerConfig) => Promise<string | undefined> {
  const attempt = limited((request) => probe(library, request), READINESS_PROBES);
  return (listener) => findProblems(listener, attempt);
}

/**
 * Tries each upstream of a listener, as a client; all have to be reached. Where both are at their
 * defaults, one is enough. With UDP only, silence is acceptable and a refusal is not, except for a range: a
 * port of it need not have a server now, and its refusal came back.
 *
 * @returns what is wrong and what to do, or nothing
 */
export async function findProblems(
  listener: ListenerConfig,
  attempt: Try,
): Promise<string | undefined> {
  const tried = upstreamEndpoints(listener);
  const found = await Promise.all(tried.map((service) => problemOf(service, listener, attempt)));
  const problems = found.filter((problem) => problem !== undefined);
  const enough = hasDefaultServices(listener) && problems.length < tried.length ||
    problems.length === 0;
  return enough ? undefined : problems.join("; ");
}

async function problemOf(
  service: Endpoint,
  { protocol, mark, connectTimeout }: ListenerConfig,
  attempt: Try,
): Promise<string | undefined> {
  const udp = protocol === "udp";
  const { outcome, errno } = await attempt({
    protocol: udp ? "udp" : "tcp",
    service,
    spoofed: true,
    mark,
    timeout: udp ? UDP_MS : connectTimeout * 1000,
  });
  if (outcome === "ok" || udp && outcome === "silent") return undefined;
  if (outcome === "refused" && isRange(service)) return undefined;
  const client = PROBE_CLIENTS[service.family].text;
  const problem = connectProblem(outcome === "silent" ? 0 : errno, { connectTimeout });
  return `cannot connect to ${service.text} as ${client}: ${problem}`;
}

/** The same with this many attempts at once; the others wait for their turn. */
function limited(attempt: Try, most: number): Try {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (request) => {
    // Who comes meanwhile may have taken the turn.
    while (running >= most) await new Promise<void>((turn) => waiting.push(turn));
    running++;
    try {
      return await attempt(request);
    } finally {
      running--;
      waiting.shift()?.();
    }
  };
}
