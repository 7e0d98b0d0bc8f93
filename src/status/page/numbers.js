/**
 * What the page computes: counters of two moments in, rates and texts out. No document, so that it is tested
 * apart.
 *
 * @typedef {import("../history.ts").Sample} Sample
 * @typedef {{ time: number, connections: number, flows: number, opened: number, up: number, down: number,
 *   refused: Record<string, number>, connectHalf: number | null, connectMost: number | null,
 *   headerMost: number | null }} Point time: seconds since 1970; rates: a second; times: milliseconds
 */

const STEPS = ["", "k", "M", "G", "T", "P"];
/** The part of the durations that is shorter than what is shown as "95 %". */
const MOST = 0.95;

/**
 * A number in few characters, by thousands.
 *
 * @param {number} value
 */
export function short(value) {
  let step = 0;
  let scaled = value;
  while (scaled >= 999.5 && step < STEPS.length - 1) {
    scaled /= 1000;
    step++;
  }
  const digits = scaled < 9.95 && (step > 0 || !Number.isInteger(value)) ? 1 : 0;
  return scaled.toFixed(digits).replace(/\.0$/, "") + (STEPS[step] ? `\u202f${STEPS[step]}` : "");
}

/**
 * Bytes a second.
 *
 * @param {number} value
 */
export function byteRate(value) {
  const text = short(value);
  return /[kMGTP]$/.test(text) ? `${text}B/s` : `${text}\u202fB/s`;
}

/**
 * Milliseconds.
 *
 * @param {number} value
 */
export function milliseconds(value) {
  return value >= 1000
    ? `${short(value / 1000)}\u202fs`
    : `${value < 9.95 ? value.toFixed(1).replace(/\.0$/, "") : value.toFixed(0)}\u202fms`;
}

/**
 * Seconds as days, hours, minutes: the two largest.
 *
 * @param {number} seconds
 */
export function duration(seconds) {
  const total = Math.max(0, Math.floor(seconds));
  const parts = [
    [Math.floor(total / 86_400), "d"],
    [Math.floor(total / 3600) % 24, "h"],
    [Math.floor(total / 60) % 60, "min"],
    [total % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count !== 0);
  if (first < 0) return "0 s";
  return parts.slice(first, first + 2).filter(([count]) => count !== 0)
    .map(([count, unit]) => `${count} ${unit}`).join(" ");
}

/**
 * The duration that a part of all durations does not exceed, estimated within its bucket.
 *
 * @param {readonly number[]} bounds upper bounds of the buckets in milliseconds, ascending
 * @param {readonly number[]} counts of each bucket by itself, and of what is longer than the last bound
 * @param {number} part 0 to 1
 * @returns {number | null} null if there are none
 */
export function quantile(bounds, counts, part) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (all <= 0) return null;
  let left = all * part;
  for (let index = 0; index < counts.length; index++) {
    const count = counts[index] ?? 0;
    if (left <= count && count > 0) {
      const low = index === 0 ? 0 : bounds[index - 1] ?? 0;
      const high = bounds[index] ?? low;
      return low + (high - low) * left / count;
    }
    left -= count;
  }
  return bounds.at(-1) ?? null;
}

/**
 * What happened between two samples. Counters never shrink but with a restart: then it is 0.
 *
 * @param {Sample} before
 * @param {Sample} after
 * @param {readonly number[]} bounds
 * @returns {Point}
 */
export function point(before, after, bounds) {
  const seconds = Math.max(0.001, (after.time - before.time) / 1000);
  /** @param {number | undefined} earlier @param {number} later */
  const rate = (earlier, later) => Math.max(0, later - (earlier ?? 0)) / seconds;
  const [from, to] = [before.total, after.total];
  /** @param {"header_time" | "connect_time"} name */
  const grown = (name) =>
    after.latency[name].map((count, index) =>
      Math.max(0, count - (before.latency[name][index] ?? 0))
    );
  const connect = grown("connect_time");
  return {
    time: after.time / 1000,
    connections: to.connections,
    flows: to.flows,
    opened: rate(from.accepted + from.flowsOpened, to.accepted + to.flowsOpened),
    up: rate(from.bytesUp, to.bytesUp),
    down: rate(from.bytesDown, to.bytesDown),
    refused: Object.fromEntries(
      Object.entries(to.refused).map(([name, count]) => [name, rate(from.refused[name], count)]),
    ),
    connectHalf: quantile(bounds, connect, 0.5),
    connectMost: quantile(bounds, connect, MOST),
    headerMost: quantile(bounds, grown("header_time"), MOST),
  };
}

/**
 * The reasons that refused most over these points, most first.
 *
 * @param {readonly Point[]} points
 * @param {number} most
 */
export function topReasons(points, most) {
  /** @type {Map<string, number>} */
  const sums = new Map();
  for (const { refused } of points) {
    for (const [name, rate] of Object.entries(refused)) {
      if (rate > 0) sums.set(name, (sums.get(name) ?? 0) + rate);
    }
  }
  return [...sums].sort(([, one], [, other]) => other - one).slice(0, most).map(([name]) => name);
}

/** @param {Record<string, number>} refused */
export function sum(refused) {
  return Object.values(refused).reduce((all, count) => all + count, 0);
}
