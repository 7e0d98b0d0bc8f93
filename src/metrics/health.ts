/** Whether the workers are up, and whether each listener's upstreams can be reached as a client. */
import type { Health } from "./server.ts";

/** What the workers are doing. */
export interface Workers {
  readonly workers: number;
  /** Workers that run. */
  readonly serving: number;
  readonly stopping: boolean;
}

/** Whether every worker runs. A program that stops is well, and not ready. */
export function healthOf({ workers, serving, stopping }: Workers): Health {
  if (stopping) return { good: true, text: "ok: stopping, open connections may finish" };
  if (serving >= workers) return { good: true, text: "ok" };
  const up = `${serving} of ${workers} workers running`;
  return { good: false, text: `unhealthy: ${up}; see worker_failed in the log` };
}

/** What is wrong with one listener's upstreams, if anything is. */
export interface Reached {
  readonly listener: string;
  readonly problem: string | undefined;
}

/** In place of a name: no listener has an empty one. */
const EVERY = "";

/** Tries a spoofed connection to the upstreams of every listener. */
export type Probe = () => Promise<readonly Reached[]>;

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
  #found: { readonly reached: readonly Reached[]; readonly at: number } | undefined;
  #running: Promise<void> | undefined;

  /** @param now milliseconds, only ever growing */
  constructor(probe: Probe, workers: () => Workers, now: () => number) {
    this.#probe = probe;
    this.#workers = workers;
    this.#now = now;
  }

  /**
   * Whether connections would be served.
   *
   * @param listener of which listener; of every one without it
   * @returns nothing where there is no such listener
   */
  async get(listener?: string): Promise<Health | undefined> {
    const workers = this.#workers();
    if (workers.stopping) return { good: false, text: "not ready: stopping" };
    const health = healthOf(workers);
    if (!health.good) return health;
    const age = this.#found === undefined ? Infinity : this.#now() - this.#found.at;
    if (age >= FRESH_MS) this.#running ??= this.#run();
    if (age >= STALE_MS) await this.#running;
    const reached = this.#found?.reached ?? [];
    return readinessOf(
      listener === undefined
        ? reached
        : reached.filter((one) => one.listener === listener || one.listener === EVERY),
    );
  }

  async #run(): Promise<void> {
    const reached = await this.#probe().catch((error): Reached[] => [
      { listener: EVERY, problem: `the check failed: ${error}` },
    ]);
    this.#found = { reached, at: this.#now() };
    this.#running = undefined;
  }
}

/** What was found in words; of more than one listener each on a line of its own. */
export function readinessOf(reached: readonly Reached[]): Health | undefined {
  const [only, ...more] = reached;
  if (!only) return undefined;
  const problems = reached.filter(({ problem }) => problem !== undefined);
  const good = problems.length === 0;
  if (more.length === 0) return { good, text: good ? "ready" : `not ready: ${only.problem}` };
  const sum = good ? "ready" : `not ready: ${problems.length} of ${reached.length} listeners`;
  const lines = reached.map(({ listener, problem }) =>
    problem === undefined ? `${listener}: ready` : `${listener}: not ready: ${problem}`
  );
  return { good, text: [sum, ...lines].join("\n") };
}
