/** A proxy from its start to its end: the native core, the workers, signals and the log. */
import { watchUsr1 } from "./usr1.ts";
import { isLoopback } from "../config/address.ts";
import { accessLog } from "../log/access.ts";
import { AutoRoutes } from "../routing/auto.ts";
import { markOf, type ProxyConfig } from "../config/model.ts";
import { logEvent, readEvent } from "../log/events.ts";
import { KernelRouting } from "../routing/kernel.ts";
import { warnOfMissingRoutes } from "../routing/missing.ts";
import { Presence } from "../routing/presence.ts";
import type { Log } from "../log/log.ts";
import type { LogOutput } from "../log/output.ts";
import { EVENT, Level } from "../native/layout.ts";
import type { Successor } from "../control/protocol.ts";
import type { HandedOver, Library } from "../native/library.ts";
import { checkPermission } from "../metrics/server.ts";
import { orStartErrorSync, StartError } from "./start_error.ts";
import { type Observation, observe } from "../metrics/observation.ts";
import { aboutProgram, openControl } from "./control.ts";
import { Listeners } from "./listeners.ts";
import { logListening, statusLine } from "./listening.ts";
import { openProxy } from "./open.ts";
import { Configuration } from "./reload.ts";
import { enterSandbox } from "./sandbox.ts";
import { ServiceManager } from "./systemd.ts";
import { spawnWorker, Supervisor } from "../worker/supervisor.ts";
import { unansweredWatch } from "./unanswered.ts";
import { watchFiles } from "./watch.ts";
import { logDefect, logUnhandled } from "./unhandled.ts";
import { finishTakeOver, takeOver, wordsFor } from "./take_over.ts";
import { Upgrade } from "./upgrade.ts";
import { workerUrl } from "../worker/source.ts";
import { count } from "../config/count.ts";

const EVENTS_AT_ONCE = 256;
const EVENTS_WAIT_MS = 1_000;
/** While stopping nothing wakes the log when the last worker has ended. */
const STOPPING_WAIT_MS = 50;
/** By so much the native core's end of an upgrade's drain is later than the one that is logged. */
const SPARE_S = 5;
const METRICS_TRIES = 20;
const METRICS_PAUSE_MS = 100;
/** How long the second signal waits for the log's reader. */
const LAST_WORDS_MS = 100;

/**
 * Serves until SIGINT or SIGTERM, goes on for `--shutdown-delay`, then lets connections finish for up to
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
  // Here and not later: what it does not share with this process yet it need not keep.
  const { control: path } = config;
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
  const stats = (listener = 0) => library.stats(proxy, listener);

  const phase: Phase = {
    stopping: false,
    draining: false,
    handedOver: false,
    over: false,
    lastReloadGood: true,
  };
  const supervisor = new Supervisor({
    spawn: spawnWorker(workerUrl()),
    log,
    now: () => performance.now(),
    sleep: (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds)),
  });
  const state = () => ({
    ...aboutProgram(config),
    workers: { configured: workers.length, serving: supervisor.serving },
    stopping: phase.stopping,
    lastReloadGood: phase.lastReloadGood,
  });
  const current = () => configuration.config;
  const observed = () =>
    observe(
      { config, current, listeners, supervisor, phase, output, stats, state },
      library,
      log,
    );
  // The predecessor has the port as long as it has all others.
  let metrics = predecessor ? undefined : await observed();
  if (config.metricsAddr) checkPermission(config.metricsAddr);
  const manager = new ServiceManager(library, log, proxy);
  const drain = () => {
    phase.draining = true;
    configuration.close();
    supervisor.stop();
    library.stop(proxy, configuration.config.drainTimeout * 1000);
  };
  const stop = () => {
    const { shutdownDelay, drainTimeout } = configuration.config;
    const open = stats().get("connections_active");
    if (phase.handedOver) {
      const stopping = `Stopping: ${finishing(open, drainTimeout)}`;
      log("info", stopping, { event: "stopping", value: open });
      return library.stop(proxy, drainTimeout * 1000);
    }
    const first = shutdownDelay > 0
      ? `accepting new connections for ${shutdownDelay} s, then `
      : "";
    const stopping = `Stopping: ${first}${finishing(open, drainTimeout)}`;
    log("info", stopping, { event: "stopping", value: open });
    manager.stopping(stopping, shutdownDelay + drainTimeout);
    phase.stopping = true;
    if (shutdownDelay > 0) setTimeout(drain, shutdownDelay * 1000);
    else drain();
  };
  const onSignal = signalHandler(stop, output);
  Deno.addSignalListener("SIGINT", onSignal.SIGINT);
  Deno.addSignalListener("SIGTERM", onSignal.SIGTERM);
  const reload = async (onlyChanges = false) => {
    const status = () => statusLine(configuration.config);
    const came = await manager.reload(() => configuration.reload(onlyChanges), status);
    phase.lastReloadGood = came.good;
    return came;
  };
  Deno.addSignalListener("SIGHUP", () => void reload());

  const control = openControl(config, library, predecessor?.handle);
  // A signal from here on is one that removes them again.
  const presence = new Presence(library, config.table);
  const routes = config.autoRoutes
    ? new AutoRoutes(configuration.resolved, new KernelRouting(library), log, presence)
    : undefined;
  if (!routes) {
    presence.announce(false);
    warnOfMissingRoutes(configuration.resolved, new KernelRouting(library), log);
  }
  configuration.routes = routes;
  const drainAfter = ({ process, flows, pausedMs }: HandedOver, { version }: Successor): string => {
    const { upgradeDrain } = configuration.config;
    phase.handedOver = phase.stopping = phase.draining = true;
    metrics?.close();
    metrics = undefined;
    routes?.leave();
    manager.handOver(process);
    configuration.close();
    supervisor.stop();
    library.stop(proxy, (upgradeDrain + SPARE_S) * 1000);
    library.finishHandOver(proxy);
    const open = stats().get("connections_active");
    const line = `Upgraded: process ${process} runs ${version} and has ${
      count(flows, "UDP flow")
    }; process ${Deno.pid} drains ${count(open, "connection")} for up to ${upgradeDrain} s`;
    log("info", line, {
      event: "upgraded",
      value: open,
      successor: process,
      version,
      flows,
      paused_ms: pausedMs,
    });
    cutTimer = setTimeout(() => {
      const left = stats().get("connections_active");
      log(
        "warn",
        `Cutting ${count(left, "connection")} after ${upgradeDrain} s (--upgrade-drain)`,
        {
          event: "upgrade_drain_over",
          value: left,
        },
      );
      library.stop(proxy, 0);
    }, upgradeDrain * 1000);
    return line;
  };
  let cutTimer: ReturnType<typeof setTimeout> | undefined;
  const upgrade = new Upgrade({
    library,
    proxy,
    log,
    alone: (work) => configuration.alone(work),
    obstacle: () => {
      if (phase.stopping) return "this program stops";
      if (!supervisor.allServe) return "not every worker serves";
      return config.control === undefined
        ? "there is no control socket to hand over by: start the program with --control"
        : undefined;
    },
    words: () => wordsFor(routes?.steps ?? []),
    drain: drainAfter,
  });
  Deno.addSignalListener("SIGUSR2", () => void upgrade.run());
  // All that is to be opened is open, and no worker runs yet: those to come inherit the sandbox.
  try {
    enterSandbox({ ...config, mark: markOf(config) }, library, log);
  } catch (error) {
    routes?.remove();
    control?.close();
    throw error;
  }
  void control?.serve({
    library,
    proxy,
    listeners,
    stats,
    state,
    reload: () => reload(),
    upgrade,
    defect: (error) => logDefect(log, error),
  });
  const note: Log = (...line) => metrics?.note(...line);
  const logging = logEvents(config, listeners, library, proxy, log, output, phase, note);
  const { ready, ended } = supervisor.start(library.path, workers);
  await ready;
  if (predecessor && !phase.stopping) {
    try {
      await finishTakeOver(proxy, predecessor, library, log);
    } catch (error) {
      routes?.remove();
      throw error;
    }
    routes?.inherit(predecessor.routes);
    control?.accept();
    metrics = await openMetrics(observed, log);
  }
  // A signal may have come meanwhile.
  if (!phase.stopping) {
    const { config } = configuration;
    for (const listener of config.listeners) logListening(config, listener, workers.length, log);
    if (metrics) logMetrics(config, log);
    manager.ready(statusLine(config));
    if (config.watch) void watchFiles(configuration, reload, library, () => phase.stopping, log);
    // A stop has its own deadline (TimeoutStopSec).
    manager.watch(() => phase.stopping || supervisor.allServe);
  }
  await ended;
  clearTimeout(cutTimer);
  // Whoever asked for the upgrade waits for what it came to.
  if (phase.handedOver) await control?.answered();
  control?.close();
  manager.close();
  phase.over = true;
  await logging;
  metrics?.close();
  routes?.remove();
  const counters = Object.fromEntries(
    [...stats().flat(), ["log_lines_lost", output.lost] as const]
      .filter(([, value]) => value !== 0),
  );
  const summary = Object.entries(counters).map(([name, value]) => `${name}=${value}`).join(" ");
  log("info", `Stopped${summary && `: ${summary}`}`, { event: "stopped", counters });
}

/** How far the service's life has come. */
interface Phase {
  /** A signal has come. */
  stopping: boolean;
  /** No new connections are taken. */
  draining: boolean;
  /** Another program has taken over. */
  handedOver: boolean;
  /** Every worker has ended. */
  over: boolean;
  /** What the last SIGHUP came to. */
  lastReloadGood: boolean;
}

/** The predecessor has just left the port. One that cannot be had now must not end what serves already. */
async function openMetrics(
  open: () => Promise<Observation | undefined>,
  log: Log,
): Promise<Observation | undefined> {
  for (let tries = 1;; tries++) {
    try {
      return await open();
    } catch (error) {
      if (!(error instanceof StartError)) throw error;
      if (tries === METRICS_TRIES) {
        log("error", `${error.message}; there are no metrics until a restart`, {
          event: "metrics_failed",
        });
        return undefined;
      }
      await new Promise((wake) => setTimeout(wake, METRICS_PAUSE_MS));
    }
  }
}

function finishing(open: number, seconds: number): string {
  return `${count(open, "connection")} ${open === 1 ? "has" : "have"} ${seconds} s to finish`;
}

function logMetrics({ metricsAddr }: ProxyConfig, log: Log): void {
  if (!metricsAddr) return;
  const { text } = metricsAddr;
  const details = { event: "metrics", address: text };
  log("info", `Status page on http://${text}/, metrics on http://${text}/metrics`, details);
  if (isLoopback(metricsAddr)) return;
  log(
    "warn",
    `Other hosts can reach http://${text}/, which needs no password: it shows addresses of clients, ` +
      "and the configuration; listen on a loopback address, or let a firewall admit the monitoring alone",
    { ...details, event: "metrics_exposed" },
  );
}

async function logEvents(
  config: ProxyConfig,
  listeners: Listeners,
  library: Library,
  proxy: number,
  log: Log,
  output: LogOutput,
  phase: Readonly<Phase>,
  note: Log,
): Promise<void> {
  const records = new Uint8Array(EVENTS_AT_ONCE * EVENT.size);
  const watchUnanswered = unansweredWatch(
    config,
    listeners,
    log,
    (listener) => library.stats(proxy, listener),
  );
  const logAccess = Level[config.logLevel] >= Level.access
    ? accessLog(library, proxy, listeners, log)
    : undefined;
  const usr1 = watchUsr1(library, log);
  const tell: Log = (level, message, details) => {
    log(level, message, details);
    note(level, message, details);
  };
  for (;;) {
    // Asked before the events: those of the last moments are still to be fetched.
    const last = phase.over;
    const wait = last ? 0 : phase.draining ? STOPPING_WAIT_MS : EVENTS_WAIT_MS;
    const count = await library.nextEvents(proxy, records, wait);
    try {
      for (let index = 0; index < count; index++) {
        const event = readEvent(records, index * EVENT.size);
        if (!event) continue;
        logEvent(tell, event, listeners);
        watchUnanswered(event);
      }
      logAccess?.();
      usr1();
      output.tellLost();
    } catch (error) {
      // A line that cannot be made must not be the last.
      logDefect(log, error);
    }
    if (last && count === 0) return;
  }
}

/** The first signal stops, a second one ends the process at once. */
function signalHandler(
  stop: () => void,
  output: LogOutput,
): Record<"SIGINT" | "SIGTERM", () => void> {
  let stopping = false;
  const on = (code: number) => () => {
    if (stopping) {
      output.flush(LAST_WORDS_MS);
      Deno.exit(code);
    }
    stopping = true;
    stop();
  };
  // The codes that a shell gives a process that such a signal ended.
  return { SIGINT: on(130), SIGTERM: on(143) };
}
