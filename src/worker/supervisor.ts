/** N workers: start them, restart those that fail, and end them all. */
import type { Assignment, Report } from "./worker.ts";
import type { Log } from "../log/log.ts";

/** A running worker. */
export interface WorkerHandle {
  /** Ends it at once. One that serves is ended by the native core alone. */
  terminate(): void;
}

/** Starts a worker; `told` receives its reports, and a failure as a separate report. */
export type Spawn = (assignment: Assignment, told: (report: Report) => void) => WorkerHandle;

/** What the supervisor needs of its surroundings. */
export interface Surroundings {
  readonly spawn: Spawn;
  readonly log: Log;
  /** Milliseconds, only ever growing. */
  readonly now: () => number;
  readonly sleep: (milliseconds: number) => Promise<void>;
}

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 10_000;
/** A worker that served so long was healthy: its next failure is a new story. */
const HEALTHY_MS = 60_000;

/** The pause before the next start, after one that served for `served` ms and paused for `before`. */
export function nextPause(before: number, served: number): number {
  if (before === 0 || served >= HEALTHY_MS) return FIRST_PAUSE_MS;
  return Math.min(2 * before, LONGEST_PAUSE_MS);
}

/** Keeps a thread running for each worker until the end. */
export class Supervisor {
  readonly #around: Surroundings;
  readonly #stopped = Promise.withResolvers<void>();
  #stopping = false;
  #workers = 0;
  readonly #serving = new Set<WorkerHandle>();
  #restarts = 0;

  constructor(around: Surroundings) {
    this.#around = around;
  }

  /**
   * Starts a thread at each worker.
   *
   * @param workers their handles
   *
   * @returns `ready`: all serve for the first time; `ended`: all have ended after `stop`
   */
  start(library: string, workers: readonly number[]): Running {
    this.#workers += workers.length;
    const readies: Promise<void>[] = [];
    const ends: Promise<void>[] = [];
    workers.forEach((worker, index) => {
      readies.push(
        new Promise((ready) => ends.push(this.#keep({ library, worker }, index, ready))),
      );
    });
    return {
      ready: Promise.all(readies).then(() => {}),
      ended: Promise.all(ends).then(() => {}),
    };
  }

  /** How many workers serve now. */
  get serving(): number {
    return this.#serving.size;
  }

  /** Whether every worker serves. */
  get allServe(): boolean {
    return this.#serving.size === this.#workers;
  }

  /** How many workers were started again after they had failed. */
  get restarts(): number {
    return this.#restarts;
  }

  /** From now on a worker that ends is not started again, nor is one whose pause continues. */
  stop(): void {
    this.#stopping = true;
    this.#stopped.resolve();
  }

  /** Runs one thread after another at a worker. */
  async #keep(assignment: Assignment, index: number, ready: () => void): Promise<void> {
    const { log, now, sleep } = this.#around;
    let pause = 0;
    for (;;) {
      const began = now();
      const failure = await this.#run(assignment, ready);
      if (this.#stopping) {
        // Also when it failed: what it served is closed, and there is nothing to wait for.
        ready();
        return;
      }
      pause = nextPause(pause, now() - began);
      log("error", `Worker ${index} failed: ${failure}; restarting in ${pause} ms`, {
        event: "worker_failed",
        worker: index,
        error: failure,
        value: pause,
      });
      await Promise.race([sleep(pause), this.#stopped.promise]);
      if (this.#stopping) return ready();
      this.#restarts++;
      log("info", `Worker ${index} restarted`, {
        event: "worker_restarted",
        worker: index,
      });
    }
  }

  /** One worker's life; why it ended. */
  #run(assignment: Assignment, ready: () => void): Promise<string> {
    return new Promise((end) => {
      const worker = this.#around.spawn(assignment, (report) => {
        if (report.kind === "ready") {
          this.#serving.add(worker);
          return ready();
        }
        this.#serving.delete(worker);
        worker.terminate();
        end(report.error || "it ended by itself");
      });
    });
  }
}

/** The workers that `start` has started. */
export interface Running {
  readonly ready: Promise<void>;
  readonly ended: Promise<void>;
}

/** Starts a Deno worker from its linked source. */
export function spawnWorker(url: string): Spawn {
  return (assignment, told) => {
    const worker = new Worker(url, { type: "module", name: `worker ${assignment.worker}` });
    worker.onmessage = ({ data }: MessageEvent<Report>) => told(data);
    worker.onerror = (event) => {
      event.preventDefault();
      told({ kind: "ended", status: -1, error: event.message });
    };
    worker.postMessage(assignment);
    return worker;
  };
}
