/** The metrics port of a run. */
import { isLoopback } from "../config/address.ts";
import type { ProxyConfig } from "../config/model.ts";
import type { Log } from "../log/log.ts";
import type { Observation } from "../metrics/observation.ts";
import { StartError } from "./start_error.ts";

const TRIES = 20;
const PAUSE_MS = 100;

/** The port of `--metrics-addr`; closed without the flag. */
export class MetricsPort {
  readonly #observe: () => Promise<Observation | undefined>;
  readonly #log: Log;
  #observation: Observation | undefined;

  constructor(observe: () => Promise<Observation | undefined>, log: Log) {
    this.#observe = observe;
    this.#log = log;
  }

  get isOpen(): boolean {
    return this.#observation !== undefined;
  }

  /** Notes a line for the status page. */
  readonly note: Log = (...line) => this.#observation?.note(...line);

  /** @throws {StartError} when it cannot listen there */
  async open(): Promise<void> {
    this.#observation = await this.#observe();
  }

  /** The predecessor has just left the port. One that cannot be had now must not end what runs already. */
  async takeOver(): Promise<void> {
    for (let tries = 1;; tries++) {
      try {
        return await this.open();
      } catch (error) {
        if (!(error instanceof StartError)) throw error;
        if (tries === TRIES) {
          const line = `${error.message}; there are no metrics until a restart`;
          return this.#log("error", line, { event: "metrics_failed" });
        }
        await new Promise((wake) => setTimeout(wake, PAUSE_MS));
      }
    }
  }

  close(): void {
    this.#observation?.close();
    this.#observation = undefined;
  }
}

/** Says where the metrics are, and who can reach them. */
export function logMetrics({ metricsAddr }: ProxyConfig, log: Log): void {
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
