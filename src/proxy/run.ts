/** A run from start to end: the native core, the workers, signals and the log. */
import { markOf, type ProxyConfig } from "../config/model.ts";
import type { ControlSocket } from "../control/server.ts";
import type { Log } from "../log/log.ts";
import type { LogOutput } from "../log/output.ts";
import { observe } from "../metrics/observation.ts";
import { checkPermission } from "../metrics/server.ts";
import type { Library } from "../native/library.ts";
import { AutoRoutes } from "../routing/auto.ts";
import { KernelRouting } from "../routing/kernel.ts";
import { warnOfMissingRoutes } from "../routing/missing.ts";
import { Presence } from "../routing/presence.ts";
import { workerUrl } from "../worker/source.ts";
import { spawnWorker, Supervisor } from "../worker/supervisor.ts";
import { aboutProgram, openControl } from "./control.ts";
import { Ending, Phase } from "./ending.ts";
import { logEvents } from "./event_log.ts";
import { Listeners } from "./listeners.ts";
import { logListening, statusLine } from "./listening.ts";
import { logMetrics, MetricsPort } from "./metrics_port.ts";
import { openProxy } from "./open.ts";
import { Configuration } from "./reload.ts";
import { drainingOf, stillRunning } from "./replaced.ts";
import { endOffload, startOffload } from "./offload.ts";
import { orStartErrorSync } from "./start_error.ts";
import { ServiceManager } from "./systemd.ts";
import { finishTakeOver, type Predecessor, takeOver, wordsFor } from "./take_over.ts";
import { logDefect, logUnhandled } from "./unhandled.ts";
import { Upgrade } from "./upgrade.ts";
import { watchFiles } from "./watch.ts";

/**
 * Runs until SIGINT or SIGTERM, goes on for `--shutdown-delay`, then lets connections finish for up to
 * `--drain-timeout`.
 *
 * @param output what `log` writes to
 * @param reread reads the configuration file again, if there is one
 * @throws {StartError} when it cannot start
 */
export async function runService(
  config: ProxyConfig,
  library: Library,
  log: Log,
  output: LogOutput,
  reread?: () => Promise<ProxyConfig>,
): Promise<void> {
  logUnhandled(log);
  const run = await open({ config, library, log, output, ...(reread && { reread }) });
  const logging = logEvents({ ...run, note: run.metrics.note });
  const { ready, ended } = run.supervisor.start(library.path, run.workers);
  await ready;
  library.releaseMemory();
  await serve(run);
  await ended;
  await close(run, logging);
}

/** What a run is given. */
interface Given {
  readonly config: ProxyConfig;
  readonly library: Library;
  readonly log: Log;
  readonly output: LogOutput;
  readonly reread?: () => Promise<ProxyConfig>;
}

/** A run, all of which is open. */
interface Run extends Given {
  readonly predecessor: Predecessor | undefined;
  readonly proxy: number;
  readonly workers: readonly number[];
  readonly listeners: Listeners;
  readonly configuration: Configuration;
  readonly supervisor: Supervisor;
  readonly phase: Phase;
  readonly metrics: MetricsPort;
  readonly manager: ServiceManager;
  readonly ending: Ending;
  readonly control: ControlSocket | undefined;
  /** Reads the configuration again. */
  readonly reload: (onlyChanges?: boolean) => ReturnType<Configuration["reload"]>;
}

/** Opens all that is to be opened, and enters the sandbox: no worker runs yet. */
async function open(given: Given): Promise<Run> {
  const { config, library, log, output, reread } = given;
  const { control: path } = config;
  // Here and not later: what it does not share with this process yet it need not keep.
  if (path !== undefined) orStartErrorSync(() => library.openSpawner(path));
  const predecessor = takeOver(config, library, log);
  const { proxy, workers, fileLimit } = openProxy(config, library, predecessor?.handle);
  const listeners = new Listeners();
  const configuration = await Configuration.open(config, {
    proxy,
    workers: workers.length,
    fileLimit,
    library,
    listeners,
    log,
    ...(reread && { reread }),
  });
  // Takes a turn of the event loop. Deno stores what it has compiled meanwhile, so that the next start is 10 ms shorter;
  // the sandbox forbids to write it.
  const { enterSandbox } = await import("./sandbox.ts");
  const phase = new Phase();
  const supervisor = new Supervisor({
    spawn: spawnWorker(workerUrl()),
    log,
    now: () => performance.now(),
    sleep: (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds)),
  });
  const stats = (listener = 0) => library.stats(proxy, listener);
  const presence = new Presence(library, config.table);
  const replaced = () => stillRunning(predecessor?.replaced ?? [], presence);
  const state = () => ({
    ...aboutProgram(config),
    workers: { configured: workers.length, serving: supervisor.serving },
    stopping: phase.stopping,
    lastReloadGood: phase.lastReloadGood,
    draining: drainingOf(replaced()),
  });
  const current = () => configuration.config;
  const observed = { config, current, listeners, supervisor, phase, output, stats, state };
  const metrics = new MetricsPort(() => observe(observed, library, log), log);
  // The predecessor has the port as long as it has all others.
  if (!predecessor) await metrics.open();
  if (config.metricsAddr) checkPermission(config.metricsAddr);
  const manager = new ServiceManager(library, log, proxy);
  const parts = { ...given, predecessor, proxy, workers, listeners, configuration, supervisor };
  const ending = new Ending({ ...parts, phase, metrics, manager, stats });
  ending.onSignals();
  const reload = async (onlyChanges = false) => {
    const status = () => statusLine(configuration.config);
    const came = await manager.reload(() => configuration.reload(onlyChanges), status);
    phase.lastReloadGood = came.good;
    return came;
  };
  Deno.addSignalListener("SIGHUP", () => void reload());
  const control = openControl(config, library, predecessor?.handle);
  // A signal from here on is one that removes them again.
  openRoutes(configuration, config, presence, library, log);
  const upgrade = new Upgrade({
    library,
    proxy,
    log,
    alone: (work) => configuration.alone(work),
    obstacle: () => {
      if (phase.stopping) return "this program is stopping";
      if (!supervisor.allServe) return "not every worker is running";
      return path === undefined
        ? "there is no control socket for the hand-over: start mmproxy with --control"
        : undefined;
    },
    words: () => {
      const connections = stats().get("connections_active");
      const own = { process: Deno.pid, connections, since: Date.now(), sign: presence.sign };
      return wordsFor(configuration.routes?.steps ?? [], [...replaced(), own]);
    },
    drain: (handed, successor) => ending.handOver(handed, successor),
  });
  Deno.addSignalListener("SIGUSR2", () => void upgrade.run());
  // Workers inherit the sandbox.
  try {
    const offload = phase.offload = startOffload(config, proxy, library, log);
    enterSandbox({ ...config, mark: markOf(config), offload }, library, log);
  } catch (error) {
    if (phase.offload) endOffload(proxy, library, log);
    configuration.routes?.remove();
    control?.close();
    throw error;
  }
  const defect = (error: unknown) => logDefect(log, error);
  const controlled = { library, proxy, listeners, stats, state, upgrade, defect };
  void control?.serve({ ...controlled, reload: () => reload() });
  return { ...parts, phase, metrics, manager, ending, control, reload };
}

/** Sets the routes of `--auto-routes`, or warns of those that are missing. */
function openRoutes(
  configuration: Configuration,
  { autoRoutes }: ProxyConfig,
  presence: Presence,
  library: Library,
  log: Log,
): void {
  const routing = new KernelRouting(library);
  if (autoRoutes) {
    configuration.routes = new AutoRoutes(configuration.resolved, routing, log, presence);
  } else {
    presence.announce(false);
    configuration.warnOfMissingRoutes = (config, log) => warnOfMissingRoutes(config, routing, log);
    configuration.warnOfMissingRoutes(configuration.resolved, log);
  }
}

/** The workers run: takes over from a predecessor, and says so to all that wait for it. */
async function serve(run: Run): Promise<void> {
  const { predecessor, configuration, library, log, phase, metrics, manager } = run;
  if (predecessor && !phase.stopping) {
    try {
      await finishTakeOver(run.proxy, predecessor, library, log);
    } catch (error) {
      if (phase.offload) endOffload(run.proxy, library, log);
      configuration.routes?.remove();
      throw error;
    }
    configuration.routes?.inherit(predecessor.routes);
    run.control?.accept();
    await metrics.takeOver();
  }
  // A signal may have come meanwhile.
  if (phase.stopping) return;
  const { config } = configuration;
  for (const listener of config.listeners) logListening(config, listener, run.workers.length, log);
  if (metrics.isOpen) logMetrics(config, log);
  manager.ready(statusLine(config));
  if (config.watch) void watchFiles(configuration, run.reload, library, () => phase.stopping, log);
  // A stop has its own deadline (TimeoutStopSec).
  manager.watch(() => phase.stopping || run.supervisor.allServe);
}

/** Every worker has ended. */
async function close(run: Run, logging: Promise<void>): Promise<void> {
  const { control, phase, output } = run;
  run.ending.close();
  // Whoever asked for the upgrade waits for what it came to.
  if (phase.handedOver) await control?.answered();
  control?.close();
  run.manager.close();
  phase.over = true;
  await logging;
  run.metrics.close();
  const left = phase.offload ? endOffload(run.proxy, run.library, run.log) : 0;
  if (left > 0) run.configuration.routes?.stay();
  else run.configuration.routes?.remove();
  const counters = Object.fromEntries(
    [...run.library.stats(run.proxy, 0).flat(), ["log_lines_lost", output.lost] as const]
      .filter(([, value]) => value !== 0),
  );
  const summary = Object.entries(counters).map(([name, value]) => `${name}=${value}`).join(" ");
  run.log("info", `Stopped${summary && `: ${summary}`}`, { event: "stopped", counters });
}
