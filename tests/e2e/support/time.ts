/** Bounded waiting: no test hangs. */

/** Milliseconds that anything may take which should be quick, on a machine that is busy. */
export const TIMEOUT = 15_000;

/** Resolves after `ms` milliseconds. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/**
 * The promise's result, unless it takes longer than `ms` milliseconds.
 *
 * @throws {Error} that names `what` did not happen in time.
 */
export async function within<T>(promise: Promise<T>, what: string, ms = TIMEOUT): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`No ${what} within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Asks again and again until the answer is neither `undefined` nor `false`.
 *
 * @throws {Error} that names `what` did not happen within `ms` milliseconds.
 */
export async function eventually<T>(
  ask: () => T | undefined | false | Promise<T | undefined | false>,
  what: string,
  ms = TIMEOUT,
): Promise<T> {
  const deadline = performance.now() + ms;
  // What is there soon is seen soon, and what takes long is not asked for all the time.
  for (let interval = 1;; interval = Math.min(2 * interval, 20)) {
    const answer = await ask();
    if (answer !== undefined && answer !== false) return answer;
    if (performance.now() > deadline) throw new Error(`No ${what} within ${ms} ms`);
    await pause(interval);
  }
}
