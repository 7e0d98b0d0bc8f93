/** The few numbers that sum a series up. */

/** The middle, the ends and how many there are. */
export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

/**
 * Sums a series up.
 *
 * @returns undefined for an empty series.
 */
export function summarize(values: readonly number[]): Summary | undefined {
  const sorted = values.toSorted((a, b) => a - b);
  const min = sorted.at(0);
  const max = sorted.at(-1);
  if (min === undefined || max === undefined) return undefined;
  const low = sorted[Math.floor((sorted.length - 1) / 2)] ?? min;
  const high = sorted[Math.ceil((sorted.length - 1) / 2)] ?? max;
  return { median: (low + high) / 2, min, max, count: sorted.length };
}

/** Whether a higher or a lower value is the better one. */
export type Better = "more" | "less";

/**
 * The best of some values.
 *
 * @returns undefined when there is none.
 */
export function best(values: readonly number[], better: Better): number | undefined {
  if (values.length === 0) return undefined;
  return better === "more" ? Math.max(...values) : Math.min(...values);
}
