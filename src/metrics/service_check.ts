/** Whether the service can be reached as its clients would be seen to: what readiness is. */
import { type Address, hasDefaultServices, type Options, servicesOf } from "../config/options.ts";
import { connectProblem } from "../log/events.ts";
import { probe, PROBE_CLIENTS, type ProbeRequest, type ProbeResult } from "../native/probe.ts";

type Service = Pick<
  Options,
  "ipv4" | "ipv6" | "protocol" | "mark" | "connectTimeout"
>;

/** Makes a probe, or is told by a test what came of one. */
export type Try = (request: ProbeRequest) => Promise<ProbeResult>;

/** A service need not answer a datagram that it does not understand: no use in waiting long. */
const UDP_MS = 1_000;

/**
 * Tries each service that the command line names, as a client; all have to be reached. Where both are at
 * their defaults, one is enough. Over UDP alone silence is no problem, and a refusal is.
 *
 * @returns what is wrong and what to do, or nothing
 */
export async function checkService(
  options: Service,
  library: Parameters<typeof probe>[0],
): Promise<string | undefined> {
  return await findProblems(options, (request) => probe(library, request));
}

/** The same by any way of trying. */
export async function findProblems(options: Service, attempt: Try): Promise<string | undefined> {
  const tried = servicesOf(options);
  const found = await Promise.all(tried.map((service) => problemOf(service, options, attempt)));
  const problems = found.filter((problem) => problem !== undefined);
  const enough = hasDefaultServices(options) && problems.length < tried.length ||
    problems.length === 0;
  return enough ? undefined : problems.join("; ");
}

async function problemOf(
  service: Address,
  options: Service,
  attempt: Try,
): Promise<string | undefined> {
  const udp = options.protocol === "udp";
  const { outcome, errno } = await attempt({
    protocol: udp ? "udp" : "tcp",
    service,
    spoofed: true,
    mark: options.mark,
    timeout: udp ? UDP_MS : options.connectTimeout * 1000,
  });
  if (outcome === "ok" || udp && outcome === "silent") return undefined;
  const client = PROBE_CLIENTS[service.family].text;
  const problem = connectProblem(outcome === "silent" ? 0 : errno, options);
  return `cannot connect to ${service.text} as ${client}: ${problem}`;
}
