/** The number of workers. */
import type { ProxyConfig } from "./model.ts";

/** The number of workers; `auto` is one for each processor that this process may use. */
export function workerCount(
  workers: ProxyConfig["workers"],
  processors = navigator.hardwareConcurrency,
): number {
  return workers === "auto" ? Math.max(1, processors) : workers;
}
