/** The counters that interest an operator, out of all counters. */
import type { Stats } from "../native/stats.ts";
import type { Counts } from "./protocol.ts";

/** Those of a listener or of the proxy. */
export function countsOf(stats: Pick<Stats, "get" | "refusals">): Counts {
  return {
    connections: stats.get("connections_active"),
    flows: stats.get("flows_active"),
    accepted: stats.get("accepted"),
    flowsOpened: stats.get("flows_opened"),
    bytesUp: stats.get("bytes_up") + stats.get("datagram_bytes_up"),
    bytesDown: stats.get("bytes_down") + stats.get("datagram_bytes_down"),
    refused: Object.fromEntries([...stats.refusals].filter(([, count]) => count > 0)),
  };
}
