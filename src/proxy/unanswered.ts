/** Detects that an upstream answers no client, which is the symptom of missing routes. */
import type { ProxyConfig } from "../config/model.ts";
import type { NativeEvent } from "../log/events.ts";
import { commandLine } from "../cli/command_line.ts";
import type { Log } from "../log/log.ts";
import type { Stats } from "../native/stats.ts";
import type { Listeners } from "./listeners.ts";

/** This many first connections may time out before it is said. */
const FIRST = 3;

/**
 * Takes every event; when the first connections as clients to one upstream of a listener have all timed
 * out, and no other of the listener has ever succeeded, it reports it once a listener, and what to run.
 *
 * @param stats the counters of a listener at this moment, by its number
 */
export function unansweredWatch(
  config: ProxyConfig,
  listeners: Pick<Listeners, "name" | "isMany">,
  log: Log,
  stats: (listener: number) => Pick<Stats, "get">,
): (
  event: Pick<NativeEvent, "kind" | "errno" | "leftOut" | "client" | "upstream" | "listener">,
) => void {
  const timeouts = new Map<string, number>();
  const over = new Set<number>();
  return ({ kind, errno, leftOut, client, upstream, listener }) => {
    // Without an errno the time was up; without a client it was the proxy's own connection.
    if (over.has(listener) || kind !== "connect_failed" || errno !== 0 || !client || !upstream) {
      return;
    }
    const key = `${listener} ${upstream}`;
    const count = (timeouts.get(key) ?? 0) + 1 + leftOut;
    timeouts.set(key, count);
    if (count < FIRST) return;
    over.add(listener);
    if (connectedAsClients(stats(listener)) > 0) return;
    const command = commandLine("doctor", config);
    const name = listeners.name(listener);
    const whose = name !== undefined && listeners.isMany ? `${name}: ` : "";
    log(
      "warn",
      `${whose}None of the first ${count} connections to ${upstream} from client addresses was answered; to find out why, run: ${command}`,
      {
        event: "service_unanswered",
        ...(name !== undefined && { listener: name }),
        upstream,
        value: count,
        command,
      },
    );
  };
}

/** A load balancer's health checks connect from the proxy's own address: they need no routes. */
function connectedAsClients(stats: Pick<Stats, "get">): number {
  return stats.get("connected") - stats.get("headers_own");
}
