/** The proxy from its start to its end: the native core, the workers, signals and the log. */
import { watchUsr1 } from "./usr1.ts";
import { accessLog } from "../log/access.ts";
import { setAutoRoutes } from "../routing/auto.ts";
import {
  limits,
  type Options,
  refusedFamilies,
  refusedSentence,
  servicesOf,
} from "../config/options.ts";
import { encodeListener, encodePorts, encodeProxy, portOf } from "../config/records.ts";
import { logEvent, readEvent } from "../log/events.ts";
import { KernelRouting } from "../routing/kernel.ts";
import type { Log } from "../log/log.ts";
import type { LogOutput } from "../log/output.ts";
import { EVENT, Level, Status } from "../native/layout.ts";
import { type Library, NativeError } from "../native/library.ts";
import { observe } from "../metrics/observation.ts";
import { isSubnetsProblem, readSubnets, reloadSubnets } from "./reload.ts";
import { enterSandbox } from "./sandbox.ts";
import { ServiceManager } from "./systemd.ts";
import { StartError } from "./start_error.ts";
import { spawnWorker, Supervisor } from "../worker/supervisor.ts";
import { unansweredWatch } from "./unanswered.ts";
import { logDefect, logUnhandled } from "./unhandled.ts";
import { workerUrl } from "../worker/source.ts";

const EVENTS_AT_ONCE = 256;
const EVENTS_WAIT_MS = 1_000;
/** While stopping nothing wakes the log when the last worker has ended. */
const STOPPING_WAIT_MS = 50;
/** How long the second signal waits for the log's reader. */
const LAST_WORDS_MS = 100;

/**
 * Serves until SIGINT or SIGTERM, goes on for `--shutdown-delay`, then lets connections finish for up to
 * `--drain-timeout`.
 *
 * @param output what `log` writes to
 * @throws {StartError} when it cannot start
 */
export async function runService(
  options: Options,
  library: Library,
  log: Log,
  output: LogOutput,
): Promise<void> {
  logUnhandled(log);
  const { proxy, workers, listener } = open(options, library, log);

  const phase: Phase = { stopping: false, draining: false, over: false, lastReloadGood: true };
  const supervisor = new Supervisor({
    spawn: spawnWorker(workerUrl()),
    log,
    now: () => performance.now(),
    sleep: (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds)),
  });
  const metrics = await observe(options, library, proxy, supervisor, phase, log, output);
  const manager = new ServiceManager(library, log);
  const drain = () => {
    phase.draining = true;
    supervisor.stop();
    library.stop(proxy, options.drainTimeout * 1000);
  };
  const stop = () => {
    const { shutdownDelay, drainTimeout } = options;
    const open = library.stats(proxy).get("connections_active");
    const first = shutdownDelay > 0
      ? `new connections are taken for ${shutdownDelay} s, then `
      : "";
    const stopping = `Stopping: ${first}${open} connections may finish for ${drainTimeout} s`;
    log("info", stopping, { event: "stopping", value: open });
    manager.stopping(stopping, shutdownDelay + drainTimeout);
    phase.stopping = true;
    if (shutdownDelay > 0) setTimeout(drain, shutdownDelay * 1000);
    else drain();
  };
  const onSignal = signalHandler(stop, output);
  Deno.addSignalListener("SIGINT", onSignal.SIGINT);
  Deno.addSignalListener("SIGTERM", onSignal.SIGTERM);
  Deno.addSignalListener("SIGHUP", () => {
    phase.lastReloadGood = manager.reload(() =>
      reloadSubnets(options, library, proxy, listener, log)
    );
  });

  // A signal from here on is one that removes them again.
  const removeRoutes = options.autoRoutes
    ? setAutoRoutes(options, new KernelRouting(library), log)
    : undefined;
  // All that is to be opened is open, and no worker runs yet: those to come inherit the sandbox.
  try {
    enterSandbox(options, library, log);
  } catch (error) {
    removeRoutes?.();
    throw error;
  }
  const logging = logEvents(options, library, proxy, log, output, phase);
  const { ready, ended } = supervisor.start(library.path, workers);
  await ready;
  // A signal may have come meanwhile.
  if (!phase.stopping) {
    const listening = listeningSentence(options);
    logListening(options, listening, log);
    logRefusedFamilies(options, log);
    if (metrics) logMetrics(options, log);
    manager.ready(listening);
    // A stop has its own deadline (TimeoutStopSec).
    manager.watch(() => phase.stopping || supervisor.allServe);
  }
  await ended;
  manager.close();
  phase.over = true;
  await logging;
  metrics?.close();
  removeRoutes?.();
  const counters = Object.fromEntries(
    [...library.stats(proxy).flat(), ["log_lines_lost", output.lost] as const]
      .filter(([, value]) => value !== 0),
  );
  const summary = Object.entries(counters).map(([name, value]) => `${name}=${value}`).join(" ");
  log("info", `Stopped${summary && `: ${summary}`}`, { event: "stopped", counters });
}

/** How far the proxy's life has come. */
interface Phase {
  /** A signal has come. */
  stopping: boolean;
  /** No new connections are taken. */
  draining: boolean;
  /** Every worker has ended. */
  over: boolean;
  /** What the last SIGHUP came to. */
  lastReloadGood: boolean;
}

/** What is open: the handles of the proxy and its workers, and the listener's number. */
interface Opened {
  readonly proxy: number;
  readonly workers: readonly number[];
  readonly listener: number;
}

function open(options: Options, library: Library, log: Log): Opened {
  const subnets = options.allowedSubnets === undefined
    ? undefined
    : firstSubnets(options.allowedSubnets, library);
  const budgets = limits(options, library.raiseFileLimit());
  const proxy = library.openProxy(encodeProxy(options, options.listeners, budgets));
  const workers = Array.from({ length: options.listeners }, () => library.openWorker(proxy));
  const listener = explained(
    options,
    () =>
      library.openListener(
        proxy,
        encodeListener(options, subnets !== undefined),
        encodePorts([portOf(options)]),
      ),
  );
  if (subnets) {
    library.setSubnets(proxy, listener, subnets);
  } else {
    log("warn", "Every peer may send headers: name your load balancers with --allowed-subnets", {
      event: "all_allowed",
    });
  }
  return { proxy, workers, listener };
}

/** @throws {StartError} when the file cannot be read or says something wrong */
function firstSubnets(path: string, library: Library): Uint8Array<ArrayBuffer> {
  try {
    return readSubnets(path, library);
  } catch (error) {
    if (!isSubnetsProblem(error)) throw error;
    throw new StartError(`Option -a, --allowed-subnets: ${error.message}`, { cause: error });
  }
}

/** Adds to a refusal of the native core what the operator can do about it. */
function explained<T>(options: Options, call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (!(error instanceof NativeError)) throw error;
    throw new StartError(error.message + advice(error.status, options), { cause: error });
  }
}

function advice(status: number, options: Options): string {
  const { text, port } = options.listenAddr;
  switch (status) {
    case Status.permission:
      return port < 1024
        ? "; run as root, or with CAP_NET_RAW (CAP_NET_ADMIN for --mark) and CAP_NET_BIND_SERVICE"
        : "; run as root, or with CAP_NET_RAW (CAP_NET_ADMIN for --mark)";
    case Status.address_in_use:
      return `; another program has it (ss -lntup 'sport = :${port}'): stop that, or choose another with --listen-addr`;
    case Status.loop:
      return "; choose another port with --listen-addr, or name the server behind it with -4 or -6";
    case Status.address_not_available:
      return `; ${text} is not an address of this host (ip address): choose one with --listen-addr`;
    default:
      return "";
  }
}

function listeningSentence(options: Options): string {
  const { protocol, listenAddr } = options;
  const protocols = protocol === "both" ? "TCP and UDP" : protocol.toUpperCase();
  const upstreams = servicesOf(options).map(({ text }) => text).join(" and ");
  return `Listening on ${listenAddr.text} (${protocols}), forwarding to ${upstreams}`;
}

function logListening(options: Options, sentence: string, log: Log): void {
  const { protocol, listenAddr, ipv4, ipv6, listeners } = options;
  log("info", sentence, {
    event: "listening",
    protocol,
    address: listenAddr.text,
    ...(ipv4 && { ipv4: ipv4.text }),
    ...(ipv6 && { ipv6: ipv6.text }),
    listeners,
  });
}

function logRefusedFamilies(options: Options, log: Log): void {
  for (const family of refusedFamilies(options)) {
    log("info", refusedSentence(family), { event: "no_upstream", value: family });
  }
}

function logMetrics({ metricsAddr }: Options, log: Log): void {
  const address = metricsAddr?.text;
  log("info", `Serving metrics on http://${address}/metrics`, { event: "metrics", address });
}

async function logEvents(
  options: Options,
  library: Library,
  proxy: number,
  log: Log,
  output: LogOutput,
  phase: Readonly<Phase>,
): Promise<void> {
  const records = new Uint8Array(EVENTS_AT_ONCE * EVENT.size);
  const watchUnanswered = unansweredWatch(options, log, () => library.stats(proxy));
  const logAccess = Level[options.logLevel] >= Level.access
    ? accessLog(library, proxy, log)
    : undefined;
  const usr1 = watchUsr1(library, log);
  for (;;) {
    // Asked before the events: those of the last moments are still to be fetched.
    const last = phase.over;
    const wait = last ? 0 : phase.draining ? STOPPING_WAIT_MS : EVENTS_WAIT_MS;
    const count = await library.nextEvents(proxy, records, wait);
    try {
      for (let index = 0; index < count; index++) {
        const event = readEvent(records, index * EVENT.size);
        if (!event) continue;
        logEvent(log, event, options);
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
