/** What the metrics port shows of a service: its counters, its workers, its reach. */
import project from "../../deno.json" with { type: "json" };
import type { Options } from "../config/options.ts";
import { healthOf, Readiness, type Workers } from "./health.ts";
import { families } from "./metrics.ts";
import { type MetricsServer, serveMetrics } from "./server.ts";
import type { Library } from "../native/library.ts";
import { checkService } from "./service_check.ts";
import type { Log } from "../log/log.ts";
import type { LogOutput } from "../log/output.ts";
import type { Supervisor } from "../worker/supervisor.ts";

/** How far the service's life has come. */
export interface Phase {
  readonly stopping: boolean;
  readonly lastReloadGood: boolean;
}

/**
 * Serves what `--metrics-addr` asks for, if it does.
 *
 * @throws {StartError} when it cannot listen there
 */
export async function observe(
  options: Options,
  library: Library,
  service: number,
  supervisor: Pick<Supervisor, "serving" | "restarts">,
  phase: Phase,
  log: Log,
  output: Pick<LogOutput, "lost">,
): Promise<MetricsServer | undefined> {
  if (!options.metricsAddr) return undefined;
  const workers = (): Workers => ({
    listeners: options.listeners,
    serving: supervisor.serving,
    stopping: phase.stopping,
  });
  const readiness = new Readiness(
    () => checkService(options, library),
    workers,
    () => performance.now(),
  );
  return await serveMetrics(options.metricsAddr, {
    families: () =>
      families(library.stats(service), {
        version: project.version,
        deno: Deno.version.deno,
        arch: Deno.build.arch,
        startedAt: performance.timeOrigin / 1000,
        listeners: options.listeners,
        serving: supervisor.serving,
        restarts: supervisor.restarts,
        lastReloadGood: phase.lastReloadGood,
        linesLost: output.lost,
      }),
    health: () => healthOf(workers()),
    readiness: () => readiness.get(),
  }, log);
}
