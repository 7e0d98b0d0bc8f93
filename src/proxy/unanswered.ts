/** Notices that the service answers no client at all, which is what missing routes look like. */
import type { Options } from "../config/options.ts";
import type { NativeEvent } from "../log/events.ts";
import { commandLine } from "../cli/command_line.ts";
import type { Log } from "../log/log.ts";
import type { Stats } from "../native/stats.ts";

/** So many first connections may time out before it is said. */
const FIRST = 3;

/**
 * Takes every event; when the first connections as clients to one service have all timed out, and no
 * other has ever succeeded, it says so once, and what to run.
 *
 * @param stats the service's counters at this moment
 */
export function unansweredWatch(
  options: Options,
  log: Log,
  stats: () => Pick<Stats, "get">,
): (event: Pick<NativeEvent, "kind" | "errno" | "leftOut" | "client" | "upstream">) => void {
  const timeouts = new Map<string, number>();
  let over = false;
  return ({ kind, errno, leftOut, client, upstream }) => {
    // Without an errno the time was up; without a client it was the proxy's own connection.
    if (over || kind !== "connect_failed" || errno !== 0 || !client || !upstream) return;
    const count = (timeouts.get(upstream) ?? 0) + 1 + leftOut;
    timeouts.set(upstream, count);
    if (count < FIRST) return;
    over = true;
    if (connectedAsClients(stats()) > 0) return;
    const command = commandLine("doctor", options);
    log(
      "warn",
      `None of the first ${count} connections to ${upstream} as clients was answered: find out why with: ${command}`,
      { event: "service_unanswered", upstream, value: count, command },
    );
  };
}

/** A load balancer's health checks connect from the proxy's own address: they need no routes. */
function connectedAsClients(stats: Pick<Stats, "get">): number {
  return stats.get("connected") - stats.get("headers_own");
}
