/** Counters, in the form in which `stats` of the native core writes them. */
import { BUCKETS_MS, COUNTERS, ERRNOS, HISTOGRAMS, REFUSALS } from "./layout.ts";

export type CounterName = (typeof COUNTERS)[number];
export type RefusalName = (typeof REFUSALS)[number];
export type HistogramName = (typeof HISTOGRAMS)[number];

/** How many `u64` there are. */
export const STATS_LENGTH = COUNTERS.length + REFUSALS.length + ERRNOS +
  HISTOGRAMS.length * (BUCKETS_MS.length + 2);

/** Durations by bucket. */
export interface Buckets {
  /** One for each bound of `BUCKETS_MS` and one for what is longer, each by itself. */
  readonly counts: readonly number[];
  /** Of all durations, in milliseconds. */
  readonly sum: number;
}

/** The counters of a listener or of the proxy, summed over the workers. */
export class Stats {
  readonly counters: ReadonlyMap<CounterName, number>;
  readonly refusals: ReadonlyMap<RefusalName, number>;
  /** Failed connections to the upstream, by the operating system's error number. */
  readonly connectErrors: ReadonlyMap<number, number>;
  readonly histograms: ReadonlyMap<HistogramName, Buckets>;

  /** @param values `STATS_LENGTH` of them */
  constructor(values: BigUint64Array) {
    let at = 0;
    const take = () => Number(values[at++]);
    this.counters = new Map(COUNTERS.map((name) => [name, take()]));
    this.refusals = new Map(REFUSALS.map((name) => [name, take()]));
    this.connectErrors = new Map(
      Array.from({ length: ERRNOS }, (_, errno): [number, number] => [errno, take()])
        .filter(([, count]) => count > 0),
    );
    this.histograms = new Map(HISTOGRAMS.map((name) => {
      const counts = Array.from({ length: BUCKETS_MS.length + 1 }, take);
      return [name, { counts, sum: take() }];
    }));
  }

  /** A counter. */
  get(name: CounterName): number {
    return this.counters.get(name) ?? 0;
  }

  /** Counters and refusals by name, the latter as `refused_<reason>`. */
  flat(): Map<string, number> {
    return new Map<string, number>([
      ...this.counters,
      ...[...this.refusals].map(([name, count]): [string, number] => [`refused_${name}`, count]),
    ]);
  }
}
