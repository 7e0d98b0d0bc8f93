/** The screen of `top`, as lines of plain text: two samples of the program in, a screen out. */
import type { ClientLoad, Counts, ListenerStatus, Top } from "./protocol.ts";
import { printable, table } from "./table.ts";
import { count } from "../config/count.ts";
import { byteRate, duration, short } from "./units.ts";

/** Seconds lie between the two looks. */
export interface Looks {
  readonly before?: Top;
  readonly now: Top;
  readonly seconds: number;
}

export interface Size {
  readonly columns: number;
  readonly rows: number;
}

const MOST_REASONS = 5;
/** So wide a name may be in 80 columns. */
const NAME_WIDTH = 28;
/** If there is nothing to compare with yet. */
const UNKNOWN = "-";

/** The screen's lines: at most as many as there are rows, none longer than there are columns. */
export function screen({ before, now, seconds }: Looks, { columns, rows }: Size): string[] {
  const { status } = now;
  const rate = new Rates(before, seconds);
  const head = [
    `mmproxy ${status.version}, pid ${status.pid}, up ${duration(status.uptime)}, ` +
    `${status.workers.serving} of ${count(status.workers.configured, "worker")} running` +
    (status.stopping ? ", stopping" : ""),
    `Open: ${count(status.total.connections, "connection")}, ${
      count(status.total.flows, "flow")
    }; ` +
    rate.line(before?.status.total, status.total),
    "",
  ];
  const refused = refusedTable(rate, before?.status.total, status.total);
  const left = Math.max(2, rows - head.length - refused.length - 1);
  // Clients get what listeners leave, and half at least.
  const listeners = listenerTable(rate, before, status.listeners, Math.ceil(left / 2) - 1);
  const clients = clientTable(rate, before, now.clients, left - listeners.length - 2);
  const lines = [...head, ...listeners, "", ...refused, ...clients];
  return lines.slice(0, rows).map((line) => line.slice(0, columns));
}

/** What counters have grown by in a second. */
class Rates {
  constructor(readonly before: Top | undefined, readonly seconds: number) {}

  /** @param earlier the counter at the earlier look: 0 for what was not there yet */
  of(earlier: number, later: number): number | undefined {
    // What closes takes its bytes along.
    return this.before && this.seconds > 0
      ? Math.max(0, later - earlier) / this.seconds
      : undefined;
  }

  number(earlier: number, later: number): string {
    const rate = this.of(earlier, later);
    return rate === undefined ? UNKNOWN : short(rate);
  }

  bytes(earlier: number, later: number): string {
    const rate = this.of(earlier, later);
    return rate === undefined ? UNKNOWN : byteRate(rate);
  }

  line(earlier: Counts | undefined, later: Counts): string {
    const up = this.bytes(earlier?.bytesUp ?? 0, later.bytesUp);
    const down = this.bytes(earlier?.bytesDown ?? 0, later.bytesDown);
    return `${this.number(opened(earlier), opened(later))} new/s, up ${up}, down ${down}`;
  }
}

function opened(counts: Counts | undefined): number {
  return counts ? counts.accepted + counts.flowsOpened : 0;
}

function refusals(counts: Counts | undefined): number {
  return Object.values(counts?.refused ?? {}).reduce((sum, refused) => sum + refused, 0);
}

function listenerTable(
  rate: Rates,
  before: Top | undefined,
  listeners: readonly ListenerStatus[],
  most: number,
): string[] {
  const known = new Map(before?.status.listeners.map((listener) => [listener.name, listener]));
  const rows = listeners.map((listener) => {
    const earlier = known.get(listener.name);
    return {
      weight: rate.of(
        (earlier?.bytesUp ?? 0) + (earlier?.bytesDown ?? 0),
        listener.bytesUp + listener.bytesDown,
      ) ?? 0,
      cells: [
        clipped(listener.name),
        String(listener.connections),
        String(listener.flows),
        rate.number(opened(earlier), opened(listener)),
        rate.bytes(earlier?.bytesUp ?? 0, listener.bytesUp),
        rate.bytes(earlier?.bytesDown ?? 0, listener.bytesDown),
        rate.number(refusals(earlier), refusals(listener)),
      ],
    };
  });
  const fits = rows.length <= most;
  // Where not all fit, those that move most.
  const shown = fits
    ? rows
    : rows.toSorted((one, other) => other.weight - one.weight).slice(0, Math.max(0, most - 1));
  const lines = table(
    [
      { heading: "LISTENER" },
      { heading: "CONNS", right: true },
      { heading: "FLOWS", right: true },
      { heading: "NEW/S", right: true },
      { heading: "UP", right: true },
      { heading: "DOWN", right: true },
      { heading: "REFUSED/S", right: true },
    ],
    shown.map(({ cells }) => cells),
  );
  return fits ? lines : [...lines, `and ${rows.length - shown.length} more`];
}

function refusedTable(rate: Rates, before: Counts | undefined, now: Counts): string[] {
  const reasons = Object.entries(now.refused).map(([name, all]) => ({
    name,
    all,
    lately: rate.of(before?.refused[name] ?? 0, all) ?? 0,
  })).sort((one, other) => other.lately - one.lately || other.all - one.all);
  if (reasons.length === 0) return [];
  const lines = table(
    [{ heading: "REFUSED" }, { heading: "ALL", right: true }, { heading: "A SECOND", right: true }],
    reasons.slice(0, MOST_REASONS).map(({ name, all }) => [
      name,
      String(all),
      rate.number(before?.refused[name] ?? 0, all),
    ]),
  );
  return [...lines, ""];
}

function clientTable(
  rate: Rates,
  before: Top | undefined,
  clients: readonly ClientLoad[],
  most: number,
): string[] {
  const known = new Map(before?.clients.map((load) => [load.client, load]));
  const loads = clients.map((load) => {
    const earlier = known.get(load.client);
    return {
      load,
      earlier,
      lately: rate.of(
        (earlier?.bytesUp ?? 0) + (earlier?.bytesDown ?? 0),
        load.bytesUp + load.bytesDown,
      ) ?? 0,
    };
  });
  const busiest = loads.sort((one, other) => other.lately - one.lately).slice(0, Math.max(0, most));
  if (busiest.length === 0) return [];
  return table(
    [
      { heading: "CLIENT" },
      { heading: "OPEN", right: true },
      { heading: "UP", right: true },
      { heading: "DOWN", right: true },
      { heading: "ALL", right: true },
    ],
    busiest.map(({ load, earlier }) => [
      load.client,
      String(load.connections),
      rate.bytes(earlier?.bytesUp ?? 0, load.bytesUp),
      rate.bytes(earlier?.bytesDown ?? 0, load.bytesDown),
      `${short(load.bytesUp + load.bytesDown)}B`,
    ]),
  );
}

function clipped(name: string): string {
  const plain = printable(name);
  return plain.length <= NAME_WIDTH ? plain : `${plain.slice(0, NAME_WIDTH - 1)}…`;
}
