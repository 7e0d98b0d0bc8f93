/** Waits for an event, no longer than so many milliseconds. */
export async function waitFor(event: Promise<unknown>, milliseconds: number): Promise<void> {
  const { promise: over, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  try {
    await Promise.race([event, over]);
  } finally {
    clearTimeout(timer);
  }
}
