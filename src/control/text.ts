/** Answers as text for people. */
import type { Closed, Connections, Counts, Status } from "./protocol.ts";
import { printable, table } from "./table.ts";
import { count } from "../config/count.ts";
import { byteRate, duration, short } from "./units.ts";

const MOST_REASONS = 8;

/** The lines of `status`. */
export function statusLines(status: Status): string[] {
  const { version, pid, config, uptime, workers, total, draining = [] } = status;
  const serving = workers.serving === workers.configured
    ? count(workers.configured, "worker")
    : `${workers.serving} of ${count(workers.configured, "worker")} running`;
  const notes = [
    ...(status.stopping ? ["stopping"] : []),
    ...(status.lastReloadGood ? [] : ["the last reload failed, see the log"]),
  ];
  return [
    [`mmproxy ${version}`, `pid ${pid}`, `up ${duration(uptime)}`, serving, ...notes].join(", "),
    ...(config === undefined ? [] : [`Configuration: ${printable(config)}`]),
    ...draining.map(({ pid, connections, seconds }) =>
      `Draining: process ${pid}, replaced ${duration(seconds)} ago with ${
        count(connections, "connection")
      }`
    ),
    `Open: ${count(total.connections, "connection")}, ${
      count(total.flows, "flow")
    }; since the start: ` +
    `${total.accepted} accepted, ${count(total.flowsOpened, "flow")}, ${
      short(total.bytesUp)
    }B up, ` +
    `${short(total.bytesDown)}B down`,
    "",
    ...listenerTable(status),
    ...refusedLines(total),
  ];
}

function listenerTable({ listeners }: Status): string[] {
  return table(
    [
      { heading: "LISTENER" },
      { heading: "ADDRESSES" },
      { heading: "UPSTREAM" },
      { heading: "CONNS", right: true },
      { heading: "FLOWS", right: true },
      { heading: "NEW/S", right: true },
      { heading: "UP", right: true },
      { heading: "DOWN", right: true },
      { heading: "REFUSED", right: true },
    ],
    listeners.map((listener) => {
      const a = (value: number) => value / Math.max(1, listener.uptime);
      return [
        listener.name,
        `${some(listener.listen)}/${listener.protocol === "both" ? "tcp+udp" : listener.protocol}`,
        some(listener.upstreams),
        String(listener.connections),
        String(listener.flows),
        short(a(listener.accepted + listener.flowsOpened)),
        byteRate(a(listener.bytesUp)),
        byteRate(a(listener.bytesDown)),
        String(refusals(listener)),
      ];
    }),
  );
}

/** The first of several, and how many more there are. */
function some([first = "", ...more]: readonly string[]): string {
  return more.length === 0
    ? first
    : more.length === 1
    ? `${first},${more[0]}`
    : `${first},+${more.length}`;
}

/** What was refused, all in all. */
export function refusals({ refused }: Pick<Counts, "refused">): number {
  return Object.values(refused).reduce((sum, count) => sum + count, 0);
}

function refusedLines(total: Counts): string[] {
  const reasons = Object.entries(total.refused).sort(([, one], [, other]) => other - one);
  if (reasons.length === 0) return [];
  const shown = reasons.slice(0, MOST_REASONS).map(([name, count]) => `${name} ${count}`);
  const more = reasons.length - shown.length;
  return [
    "",
    `Refused: ${shown.join(", ")}${more > 0 ? `, and ${count(more, "more reason")}` : ""}`,
  ];
}

/** The lines of `connections`. */
export function connectionLines({ found, silentWorkers, connections }: Connections): string[] {
  const lines = table(
    [
      { heading: "LISTENER" },
      { heading: "PROTO" },
      { heading: "STATE" },
      { heading: "CLIENT" },
      { heading: "PEER" },
      { heading: "UPSTREAM" },
      { heading: "AGE", right: true },
      { heading: "IDLE", right: true },
      { heading: "UP", right: true },
      { heading: "DOWN", right: true },
    ],
    connections.map((it) => [
      it.listener,
      it.protocol,
      it.phase,
      it.client ?? "-",
      it.peer ?? "-",
      it.upstream ?? "-",
      duration(it.age),
      duration(it.idle),
      short(it.bytesUp),
      short(it.bytesDown),
    ]),
  );
  const left = found - connections.length;
  return [
    ...(connections.length > 0 ? lines : found > 0 ? [] : ["No connections or flows"]),
    ...(left > 0 ? [`and ${left} more; see --limit`] : []),
    ...silence(silentWorkers),
  ];
}

/** The lines of `close`. */
export function closedLines({ closed, silentWorkers }: Closed): string[] {
  return [`Closed ${closed}`, ...silence(silentWorkers)];
}

function silence(workers: number): string[] {
  return workers === 0
    ? []
    : [`${count(workers, "worker")} did not answer in time: the list is incomplete`];
}
