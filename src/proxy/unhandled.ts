/** Uncaught errors: logged, and not fatal while the process has connections. */
import type { Log } from "../log/log.ts";

/** From now on logs uncaught errors. */
export function logUnhandled(log: Log): void {
  globalThis.addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    logDefect(log, event.reason);
  });
  globalThis.addEventListener("error", (event) => {
    event.preventDefault();
    logDefect(log, event.error);
  });
}

/** Logs a defect of the program. */
export function logDefect(log: Log, error: unknown): void {
  const text = error instanceof Error ? error.stack ?? error.message : String(error);
  log("error", `Internal error; mmproxy keeps running, please report it: ${text}`, {
    event: "internal_error",
    error: text,
  });
}
