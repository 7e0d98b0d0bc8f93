/** The counters of the last minutes, so that charts start before the page was opened. */
import { countsOf } from "../control/counts.ts";
import type { Counts } from "../control/protocol.ts";
import type { HistogramName, Stats } from "../native/stats.ts";

/** The durations of a histogram since the start, by bucket: each by itself, the last without a bound. */
export type Latency = Readonly<Record<HistogramName, readonly number[]>>;

/** The counters of the proxy at one moment. */
export interface Sample {
  /** Milliseconds since 1970. */
  readonly time: number;
  readonly total: Counts;
  readonly latency: Latency;
}

/** Between two samples. */
export const SAMPLE_MS = 5_000;
/** A quarter of an hour. */
export const MOST_SAMPLES = 180;

/** The histograms of these counters. */
export function latencyOf({ histograms }: Pick<Stats, "histograms">): Latency {
  const counts = (name: HistogramName) => histograms.get(name)?.counts ?? [];
  return { header_time: counts("header_time"), connect_time: counts("connect_time") };
}

/** Takes a sample every five seconds until it is closed; keeps the last 180. */
export class History {
  readonly #stats: () => Stats;
  readonly #samples: Sample[] = [];
  readonly #timer: ReturnType<typeof setInterval>;

  /** @param stats the counters of the proxy now */
  constructor(stats: () => Stats) {
    this.#stats = stats;
    this.#take();
    this.#timer = setInterval(() => this.#take(), SAMPLE_MS);
  }

  /** The oldest first. */
  get samples(): readonly Sample[] {
    return this.#samples;
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #take(): void {
    const stats = this.#stats();
    this.#samples.push({ time: Date.now(), total: countsOf(stats), latency: latencyOf(stats) });
    if (this.#samples.length > MOST_SAMPLES) this.#samples.shift();
  }
}
