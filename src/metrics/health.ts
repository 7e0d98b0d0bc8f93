/** Health of the workers, and reachability of each listener's upstreams from a client's address. */
import { waitFor } from "../proxy/wait.ts";
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

/** Tries a spoofed connection to the upstreams of a listener; what is wrong, if anything is. */
export type Probe = (listener: string) => Promise<string | undefined>;

/** No answer is older than this. */
export const FRESH_MS = 5_000;
/** How long a request waits for results that are not fresh. */
export const WAIT_MS = 1_000;

/** What is known of one listener. */
interface Known {
  found?: { readonly problem: string | undefined; readonly at: number };
  running?: Promise<void>;
}

/** What readiness is about. */
export interface Subjects {
  /** The listeners now, by name. */
  readonly listeners: () => readonly string[];
  readonly workers: () => Workers;
  readonly probe: Probe;
}

/**
 * Remembers what the last probe of each listener found, for five seconds: a flood of requests costs one
 * probe in that time. Probes run only while somebody asks: they are connections that the upstream sees.
 */
export class Readiness {
  readonly #subjects: Subjects;
  readonly #now: () => number;
  readonly #wait: typeof waitFor;
  readonly #known = new Map<string, Known>();

  /**
   * @param now milliseconds, only ever growing
   * @param wait what a test moves in place of the clock
   */
  constructor(subjects: Subjects, now: () => number, wait = waitFor) {
    this.#subjects = subjects;
    this.#now = now;
    this.#wait = wait;
  }

  /**
   * Whether connections would be served. It answers within a second: a listener without a fresh result by
   * then is not ready.
   *
   * @param listener of which listener; of every one without it
   * @returns nothing if there is no such listener
   */
  async get(listener?: string): Promise<Health | undefined> {
    const workers = this.#subjects.workers();
    if (workers.stopping) return { good: false, text: "not ready: stopping" };
    const health = healthOf(workers);
    if (!health.good) return health;
    const listeners = this.#subjects.listeners();
    this.#forget(listeners);
    const asked = listener === undefined
      ? listeners
      : listeners.filter((name) => name === listener);
    const running = asked.flatMap((name) => this.#isFresh(name) ? [] : [this.#refresh(name)]);
    if (running.length > 0) await this.#wait(Promise.all(running), WAIT_MS);
    return readinessOf(asked.map((name) => ({ listener: name, problem: this.#problemOf(name) })));
  }

  /** A listener that a reload removed. */
  #forget(listeners: readonly string[]): void {
    const names = new Set(listeners);
    for (const name of this.#known.keys()) {
      if (!names.has(name)) this.#known.delete(name);
    }
  }

  #isFresh(name: string): boolean {
    const found = this.#known.get(name)?.found;
    return found !== undefined && this.#now() - found.at < FRESH_MS;
  }

  /** The probe of a listener that runs, begun if there is none. */
  #refresh(name: string): Promise<void> {
    let known = this.#known.get(name);
    if (!known) this.#known.set(name, known = {});
    return known.running ??= this.#run(name, known);
  }

  async #run(name: string, known: Known): Promise<void> {
    const problem = await this.#subjects.probe(name).catch((error) => `the check failed: ${error}`);
    known.found = { problem, at: this.#now() };
    delete known.running;
  }

  #problemOf(name: string): string | undefined {
    return this.#isFresh(name)
      ? this.#known.get(name)?.found?.problem
      : `no result within ${WAIT_MS / 1000} s, the check is still waiting for the upstream`;
  }
}

/** The results as text; with several listeners, one line each. */
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
