/** Whether the workers are up, and whether the service can be reached as a client. */
import type { Health } from "./server.ts";

/** What the workers are doing. */
export interface Workers {
  readonly listeners: number;
  /** Listeners whose worker serves. */
  readonly serving: number;
  readonly stopping: boolean;
}

/** Whether every listener has a worker that serves. A program that stops is well, and not ready. */
export function healthOf({ listeners, serving, stopping }: Workers): Health {
  if (stopping) return { good: true, text: "ok: stopping, open connections may finish" };
  if (serving >= listeners) return { good: true, text: "ok" };
  const up = `${serving} of ${listeners} listener workers serve`;
  return { good: false, text: `not well: ${up}; the log says why (worker_failed)` };
}

/** Tries a spoofed connection to the service: nothing when it works, or what is wrong. */
export type Probe = () => Promise<string | undefined>;

/** A result is taken for the present for so long; asked later, the next one is begun meanwhile. */
const FRESH_MS = 5_000;
/** Who asks after this waits for the next result. */
const STALE_MS = 30_000;

/**
 * Remembers what the last probe found, so that a request costs none and a flood of them no more than one
 * in five seconds. Probes run only while somebody asks: they are connections that the service sees.
 */
export class Readiness {
  readonly #probe: Probe;
  readonly #workers: () => Workers;
  readonly #now: () => number;
  #found: { readonly problem: string | undefined; readonly at: number } | undefined;
  #running: Promise<void> | undefined;

  /** @param now milliseconds, only ever growing */
  constructor(probe: Probe, workers: () => Workers, now: () => number) {
    this.#probe = probe;
    this.#workers = workers;
    this.#now = now;
  }

  /** Whether connections would be served. */
  async get(): Promise<Health> {
    const workers = this.#workers();
    if (workers.stopping) return { good: false, text: "not ready: stopping" };
    const health = healthOf(workers);
    if (!health.good) return health;
    const age = this.#found === undefined ? Infinity : this.#now() - this.#found.at;
    if (age >= FRESH_MS) this.#running ??= this.#run();
    if (age >= STALE_MS) await this.#running;
    const problem = this.#found?.problem;
    return problem === undefined
      ? { good: true, text: "ready" }
      : { good: false, text: `not ready: ${problem}` };
  }

  async #run(): Promise<void> {
    const problem = await this.#probe().catch((error) => `the check failed: ${error}`);
    this.#found = { problem, at: this.#now() };
    this.#running = undefined;
  }
}
