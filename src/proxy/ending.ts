/** How a run ends: by a signal, or because another program has taken over. */
import { count } from "../config/count.ts";
import type { Successor } from "../control/protocol.ts";
import type { Log } from "../log/log.ts";
import type { LogOutput } from "../log/output.ts";
import type { HandedOver, Library } from "../native/library.ts";
import type { Stats } from "../native/stats.ts";
import type { Supervisor } from "../worker/supervisor.ts";
import type { MetricsPort } from "./metrics_port.ts";
import type { Configuration } from "./reload.ts";
import type { ServiceManager } from "./systemd.ts";

/** By so much the native core's end of an upgrade's drain is later than the one that is logged. */
const SPARE_S = 5;
/** How long the second signal waits for the log's reader. */
const LAST_WORDS_MS = 100;

/** The phase of a run. */
export class Phase {
  /** A signal has come. */
  stopping = false;
  /** No new connections are accepted. */
  draining = false;
  /** Another program has taken over. */
  handedOver = false;
  /** Every worker has ended. */
  over = false;
  /** Connections are handed over to the kernel. */
  offload = false;
  /** What the last SIGHUP came to. */
  lastReloadGood = true;
}

/** What ends. */
export interface Ended {
  readonly library: Library;
  readonly proxy: number;
  readonly configuration: Configuration;
  readonly supervisor: Supervisor;
  readonly manager: ServiceManager;
  readonly metrics: MetricsPort;
  readonly phase: Phase;
  readonly stats: () => Stats;
  readonly log: Log;
  readonly output: LogOutput;
}

/** The end of one run. */
export class Ending {
  readonly #run: Ended;
  #cutTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(run: Ended) {
    this.#run = run;
  }

  /** SIGINT and SIGTERM stop; a second one ends the process at once. */
  onSignals(): void {
    const { phase, output } = this.#run;
    let came = false;
    const on = (code: number) => () => {
      if (came) {
        output.flush(LAST_WORDS_MS);
        Deno.exit(code);
      }
      came = true;
      if (phase.handedOver) this.#stopDraining();
      else this.#stop();
    };
    // The codes that a shell gives a process that such a signal ended.
    Deno.addSignalListener("SIGINT", on(130));
    Deno.addSignalListener("SIGTERM", on(143));
  }

  /**
   * Another program has the listening sockets: what is open may go on for `--upgrade-drain`.
   *
   * @returns a line for the report
   */
  handOver({ process, flows, pausedMs }: HandedOver, { version }: Successor): string {
    const { library, proxy, configuration, manager, metrics, phase, log } = this.#run;
    const { upgradeDrain } = configuration.config;
    phase.handedOver = phase.stopping = true;
    metrics.close();
    configuration.routes?.leave();
    manager.handOver(process);
    this.#drain(upgradeDrain + SPARE_S);
    library.finishHandOver(proxy);
    const open = this.#open();
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
    this.#cutTimer = setTimeout(() => this.#cut(upgradeDrain), upgradeDrain * 1000);
    return line;
  }

  /** Every worker has ended. */
  close(): void {
    clearTimeout(this.#cutTimer);
  }

  #stop(): void {
    const { configuration, manager, phase } = this.#run;
    const { shutdownDelay, drainTimeout } = configuration.config;
    const first = shutdownDelay > 0
      ? `accepting new connections for ${shutdownDelay} s, then `
      : "";
    const stopping = this.#logStopping(first, drainTimeout);
    manager.stopping(stopping, shutdownDelay + drainTimeout);
    phase.stopping = true;
    const drain = () => {
      this.#leave();
      this.#drain(drainTimeout);
    };
    if (shutdownDelay > 0) setTimeout(drain, shutdownDelay * 1000);
    else drain();
  }

  /** A signal to a program that was taken over: the drain of a stop in place of the upgrade's. */
  #stopDraining(): void {
    const { library, proxy, configuration: { config } } = this.#run;
    this.#logStopping("", config.drainTimeout);
    this.#leave();
    library.stop(proxy, config.drainTimeout * 1000);
  }

  /** Connections that the kernel goes on with need not be waited for. */
  #leave(): void {
    const { library, proxy, phase } = this.#run;
    if (phase.offload) library.leaveOffload(proxy);
  }

  #drain(seconds: number): void {
    const { library, proxy, configuration, supervisor, phase } = this.#run;
    phase.draining = true;
    configuration.close();
    supervisor.stop();
    library.stop(proxy, seconds * 1000);
  }

  #cut(seconds: number): void {
    const { library, proxy, log } = this.#run;
    const open = this.#open();
    const line = `Closing ${count(open, "connection")} after ${seconds} s (--upgrade-drain)`;
    log("warn", line, { event: "upgrade_drain_over", value: open });
    library.stop(proxy, 0);
  }

  #logStopping(first: string, seconds: number): string {
    const open = this.#open();
    const line = `Stopping: ${first}${count(open, "connection")} ` +
      `${open === 1 ? "has" : "have"} ${seconds} s to finish`;
    this.#run.log("info", line, { event: "stopping", value: open });
    return line;
  }

  #open(): number {
    return this.#run.stats().get("connections_active");
  }
}
