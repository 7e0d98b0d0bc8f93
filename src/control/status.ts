/** The content of `status`, shared by the control socket and the status page. */
import type { Stats } from "../native/stats.ts";
import type { Listeners } from "../proxy/listeners.ts";
import { countsOf } from "./counts.ts";
import type { ListenerStatus, Status } from "./protocol.ts";

/** What a status is made of. */
export interface StatusSource {
  readonly listeners: Pick<Listeners, "age" | "open">;
  /** The counters of a listener by its number; 0: those of the proxy. */
  readonly stats: (listener: number) => Stats;
  /** What the status says beside listeners and counters. */
  readonly state: () => Omit<Status, "listeners" | "total">;
}

/**
 * The status now.
 *
 * @param most listeners that it lists; by default all
 */
export function statusOf(source: StatusSource, most = Infinity): Status {
  const { listeners, stats, state } = source;
  return {
    ...state(),
    total: countsOf(stats(0)),
    listeners: listeners.open.slice(0, most).map(({ id, config }): ListenerStatus => ({
      name: config.name,
      listen: config.listen.map(({ text }) => text),
      protocol: config.protocol,
      upstreams: config.upstream === "destination"
        ? ["destination"]
        : [config.ipv4, config.ipv6].flatMap((upstream) => upstream ? [upstream.text] : []),
      uptime: listeners.age(id) / 1000,
      ...countsOf(stats(id)),
    })),
  };
}
