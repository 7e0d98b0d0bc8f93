/** `--metrics-addr`: /metrics for Prometheus, /healthz and /readyz for whoever restarts and routes. */
import { formatAddress } from "../address.ts";
import type { Address } from "../config.ts";
import type { Family } from "./metrics.ts";
import { StartError } from "../start_error.ts";

/** An answer to "is it well?": whether, and a line that says why not. */
export interface Health {
  readonly good: boolean;
  readonly text: string;
}

/** What is served. Each is asked at every request. */
export interface Sources {
  readonly families: () => readonly Family[];
  readonly health: () => Health;
  readonly readiness: () => Promise<Health>;
}

/** A running server. */
export interface MetricsServer {
  /** Ends it at once: a question that waits for its answer is not waited for. */
  close(): void;
}

type PromClient = typeof import("prom-client");

const OPTION = "Option --metrics-addr";
const INDEX = "mmproxy\n/metrics  counters for Prometheus\n/healthz  workers are up\n" +
  "/readyz   the service answers, too\n";

/**
 * Starts the server.
 *
 * @throws {StartError} when --allow-net is missing, or the address cannot be listened on
 */
export async function serveMetrics(address: Address, sources: Sources): Promise<MetricsServer> {
  const hostname = formatAddress(address.family, Uint8Array.from(address.bytes));
  // Asked first: left to itself, Deno would ask at the terminal.
  const host = formatAddress(address.family, Uint8Array.from(address.bytes), address.port);
  if (Deno.permissions.querySync({ name: "net", host }).state !== "granted") {
    // A compiled binary has the permissions that it was compiled with.
    const remedy = Deno.build.standalone
      ? `which this binary lacks: use deno run --allow-ffi --allow-net=${host} main.ts`
      : `add --allow-net=${host} before main.ts`;
    throw new StartError(`${OPTION}: listening on ${host} needs a permission: ${remedy}`);
  }
  // Only now: who serves no metrics need not load it.
  const client = await import("prom-client");
  const closing = new AbortController();
  try {
    Deno.serve(
      { hostname, port: address.port, onListen: () => {}, signal: closing.signal },
      (request) => answer(request, sources, client),
    );
    return { close: () => closing.abort() };
  } catch (error) {
    throw new StartError(`${OPTION}: cannot listen on ${address.text}: ${reason(error)}`, {
      cause: error,
    });
  }
}

/** Answers a request. */
async function answer(request: Request, sources: Sources, client: PromClient): Promise<Response> {
  if (request.method !== "GET" && request.method !== "HEAD") {
    return text("Only GET and HEAD are served\n", 405, { allow: "GET, HEAD" });
  }
  switch (new URL(request.url).pathname) {
    case "/metrics":
      return await metrics(sources.families(), client);
    case "/healthz":
      return health(sources.health());
    case "/readyz":
      return health(await sources.readiness());
    case "/":
      return text(INDEX, 200);
    default:
      return text(`Not here\n${INDEX}`, 404);
  }
}

/** The families as Prometheus reads them. */
async function metrics(families: readonly Family[], client: PromClient): Promise<Response> {
  const { Registry } = client;
  // A registry a scrape: all values are of one moment, and nothing has to be set back.
  const registry = new Registry();
  for (const family of families) {
    const { name, help, type, samples } = family;
    // What a registry asks of a metric at run time: its name, and its values when it is read.
    const metric = { name, get: () => Promise.resolve({ name, help, type, values: samples }) };
    registry.registerMetric(metric as unknown as InstanceType<PromClient["Counter"]>);
  }
  return text(await registry.metrics(), 200, { "content-type": registry.contentType });
}

function health({ good, text: words }: Health): Response {
  return text(`${words}\n`, good ? 200 : 503);
}

function text(body: string, status: number, headers: Record<string, string> = {}): Response {
  return new Response(body, {
    status,
    headers: {
      "content-type": "text/plain; charset=utf-8",
      "cache-control": "no-store",
      ...headers,
    },
  });
}

function reason(error: unknown): string {
  if (error instanceof Deno.errors.AddrInUse) return "another program has it; choose another port";
  if (error instanceof Deno.errors.AddrNotAvailable) {
    return "it is not an address of this host (ip address)";
  }
  if (error instanceof Deno.errors.PermissionDenied) {
    return "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE";
  }
  return error instanceof Error ? error.message.replaceAll("\n", " ") : String(error);
}
