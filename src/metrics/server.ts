/**
 * `--metrics-addr`: /metrics for Prometheus, /healthz and /readyz for orchestrators and load balancers, and the status
 * page for people.
 */
import { formatAddress } from "../config/address.ts";
import { METRICS_CONNECTIONS } from "../config/limits.ts";
import type { Address } from "../config/options.ts";
import { type Answer, HttpServer, type Question, type Troubles } from "./http.ts";
import type { Log } from "../log/log.ts";
import type { Family } from "./metrics.ts";
import { StartError } from "../proxy/start_error.ts";
import { logDefect } from "../proxy/unhandled.ts";

/** An answer to "is it well?": whether, and a line that says why not. */
export interface Health {
  readonly good: boolean;
  readonly text: string;
}

/** What is served. Each is asked at every request. */
export interface Sources {
  readonly families: () => readonly Family[];
  readonly health: () => Health;
  /** Of one listener or of all; nothing if there is no such listener. */
  readonly readiness: (listener?: string) => Promise<Health | undefined>;
  /** The status page's answer; nothing if the path is not the page's. */
  readonly page: (question: Question) => Promise<Answer | undefined>;
}

/** A running server. */
export interface MetricsServer {
  /** Ends it at once: a question that waits for its answer is not waited for. */
  close(): void;
}

const MINUTE_MS = 60_000;

type PromClient = typeof import("prom-client");

const OPTION = "Option --metrics-addr";
const INDEX =
  "mmproxy\n/         status page\n/metrics  counters for Prometheus\n/healthz  workers are up\n" +
  "/readyz   every upstream answers, too; /readyz/<listener>: those of one listener\n";

/**
 * Starts the server.
 *
 * @throws {StartError} when --allow-net is missing, or the address cannot be listened on
 */
export async function serveMetrics(
  address: Address,
  sources: Sources,
  log: Log,
): Promise<MetricsServer> {
  checkPermission(address);
  const hostname = formatAddress(address.family, Uint8Array.from(address.bytes));
  // Only now: who serves no metrics need not load it.
  // It is CommonJS: in a bundle its exports are in `default` alone, which its types do not have.
  const { default: client } = await import("prom-client") as unknown as { default: PromClient };
  try {
    const listener = Deno.listen({ hostname, port: address.port });
    const answering = (asked: Question) => answer(asked, sources, client);
    return new HttpServer(listener, METRICS_CONNECTIONS, answering, troubles(log));
  } catch (error) {
    throw new StartError(`${OPTION}: cannot listen on ${address.text}: ${reason(error)}`, {
      cause: error,
      lasting: error instanceof Deno.errors.PermissionDenied,
    });
  }
}

/**
 * Whether the program may listen there.
 *
 * @throws {StartError}
 */
export function checkPermission(address: Address): void {
  // Asked first: left to itself, Deno would ask at the terminal.
  const host = formatAddress(address.family, Uint8Array.from(address.bytes), address.port);
  if (Deno.permissions.querySync({ name: "net", host }).state !== "granted") {
    // A compiled binary has the permissions that it was compiled with.
    const remedy = Deno.build.standalone
      ? `which this binary lacks: use a release's bin/mmproxy`
      : `start it with bin/mmproxy, or add --allow-net=${host} before main.ts`;
    throw new StartError(`${OPTION}: no permission to listen on ${host}: ${remedy}`, {
      lasting: true,
    });
  }
}

/** What goes wrong at the port, for the log; the want of descriptors once a minute. */
function troubles(log: Log): Troubles {
  let toldAt = -Infinity;
  return {
    accept: (error) => {
      const now = performance.now();
      if (now - toldAt < MINUTE_MS) return;
      toldAt = now;
      log(
        "warn",
        `Cannot accept a connection on the metrics port, retrying: ${reason(error)}`,
        {
          event: "metrics_paused",
          error: reason(error),
        },
      );
    },
    answer: (error) => logDefect(log, error),
  };
}

/** Answers a question. */
async function answer(
  question: Question,
  sources: Sources,
  client: PromClient,
): Promise<Answer> {
  const { path } = question;
  switch (path) {
    case "/metrics":
      return await metrics(sources.families(), client);
    case "/healthz":
      return health(sources.health());
    case "/readyz":
      return readiness(await sources.readiness());
  }
  const name = /^\/readyz\/([^/]+)$/.exec(path)?.[1];
  if (name !== undefined) return readiness(await sources.readiness(decoded(name)));
  return await sources.page(question) ?? { status: 404, body: `Not here\n${INDEX}` };
}

function readiness(found: Health | undefined): Answer {
  return found ? health(found) : { status: 404, body: "No listener has this name\n" };
}

/** A decoded part of a path; invalid encoding is left unchanged. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** The families as Prometheus reads them. */
async function metrics(families: readonly Family[], client: PromClient): Promise<Answer> {
  const { Registry } = client;
  // A registry a scrape: all values are of one moment, and nothing has to be set back.
  const registry = new Registry();
  for (const family of families) {
    const { name, help, type, samples } = family;
    // What a registry asks of a metric at run time: its name, and its values when it is read.
    const metric = { name, get: () => Promise.resolve({ name, help, type, values: samples }) };
    registry.registerMetric(metric as unknown as InstanceType<PromClient["Counter"]>);
  }
  return { status: 200, body: await registry.metrics(), type: registry.contentType };
}

function health({ good, text }: Health): Answer {
  return { status: good ? 200 : 503, body: `${text}\n` };
}

function reason(error: unknown): string {
  if (error instanceof Deno.errors.AddrInUse) return "another program uses it; choose another port";
  if (error instanceof Deno.errors.AddrNotAvailable) {
    return "it is not an address of this host (ip address)";
  }
  if (error instanceof Deno.errors.PermissionDenied) {
    return "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE";
  }
  return error instanceof Error ? error.message.replaceAll("\n", " ") : String(error);
}
