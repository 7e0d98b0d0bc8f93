/** What the metrics port shows: counters, workers, reachability of the upstreams. */
import project from "../../deno.json" with { type: "json" };
import type { ProxyConfig } from "../config/model.ts";
import type { StatusSource } from "../control/status.ts";
import { workerCount } from "../config/workers.ts";
import { healthOf, Readiness, type Workers } from "./health.ts";
import { families, type Surroundings } from "./metrics.ts";
import { serveMetrics } from "./server.ts";
import { type Library, NativeError } from "../native/library.ts";
import type { Stats } from "../native/stats.ts";
import type { Listeners } from "../proxy/listeners.ts";
import { reacher } from "./reach.ts";
import type { Log } from "../log/log.ts";
import type { LogOutput } from "../log/output.ts";
import type { Supervisor } from "../worker/supervisor.ts";

/** The phase of the run. */
export interface Phase {
  readonly stopping: boolean;
  readonly lastReloadGood: boolean;
}

/** What is shown. */
export interface Observed {
  /** As it was at the start, and as it is now. */
  readonly config: ProxyConfig;
  readonly current: () => ProxyConfig;
  readonly listeners: Pick<Listeners, "age" | "open">;
  readonly supervisor: Pick<Supervisor, "serving" | "restarts">;
  readonly phase: Phase;
  readonly output: Pick<LogOutput, "lost">;
  /** The counters of a listener by its number; 0: their sum and the proxy's own. */
  readonly stats: (id: number) => Stats;
  /** As for the control socket. */
  readonly state: StatusSource["state"];
}

/** What is served. */
export interface Observation {
  /** Notes a line of the native core's events for the status page. */
  readonly note: Log;
  /** Ends it at once: a question that waits for its answer is not waited for. */
  close(): void;
}

/**
 * Serves what `--metrics-addr` requests, if it does.
 *
 * @throws {StartError} when it cannot listen there
 */
export async function observe(
  { config, current, listeners, supervisor, phase, output, stats, state }: Observed,
  library: Library,
  log: Log,
): Promise<Observation | undefined> {
  if (!config.metricsAddr) return undefined;
  const count = workerCount(config.workers);
  const workers = (): Workers => ({
    workers: count,
    serving: supervisor.serving,
    stopping: phase.stopping,
  });
  const reach = reacher(library);
  const readiness = new Readiness({
    listeners: () => listeners.open.map(({ config }) => config.name),
    workers,
    probe: async (name) => {
      const listener = listeners.open.find(({ config }) => config.name === name);
      return listener && await reach(listener.config);
    },
  }, () => performance.now());
  const health = () => healthOf(workers());
  // Only now: who serves no page need not load it.
  const { StatusSite } = await import("../status/site.ts");
  const site = new StatusSite({
    listeners,
    stats,
    state,
    config: current,
    health,
    readiness: (listener) => readiness.get(listener),
  });
  const server = await serveMetrics(config.metricsAddr, {
    families: () =>
      families(
        listeners.open.map(({ id, config }) => ({ listener: config.name, stats: stats(id) })),
        stats(0),
        {
          version: project.version,
          deno: Deno.version.deno,
          arch: Deno.build.arch,
          startedAt: performance.timeOrigin / 1000,
          workers: count,
          serving: supervisor.serving,
          restarts: supervisor.restarts,
          lastReloadGood: phase.lastReloadGood,
          linesLost: output.lost,
          ...usageOf(library),
        },
      ),
    health,
    readiness: (listener) => readiness.get(listener),
    page: (question) => site.answer(question),
  }, log);
  return {
    note: site.note,
    close: () => {
      server.close();
      site.close();
    },
  };
}

/** What the process uses; nothing if /proc is not there. */
function usageOf(library: Pick<Library, "usage">): Pick<Surroundings, "usage"> {
  try {
    return { usage: library.usage() };
  } catch (error) {
    if (error instanceof NativeError) return {};
    throw error;
  }
}
