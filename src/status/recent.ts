/** The last refusals and failures, in the log's own words, with what to do about them. */
import type { Details, Log } from "../log/log.ts";
import { adviceFor } from "./advice.ts";

/** One kind of refusal or failure at one listener. */
export interface Note {
  /** Of the last one, in milliseconds since 1970. */
  readonly time: number;
  readonly event: string;
  /** Its name in metrics and log. */
  readonly reason?: string;
  readonly listener?: string;
  /** How many there were while the note is kept. */
  readonly count: number;
  /** What the log says of the last one. */
  readonly message: string;
  /** What to do; empty if the message says it. */
  readonly advice: string;
}

/** Kinds that are kept: those that happened last. */
export const MOST_NOTES = 30;
/** Characters of a message that are kept. */
const LONGEST = 600;

/** Keeps a note for each kind; a flood of one kind does not displace the others. */
export class Recent {
  readonly #notes = new Map<string, Note>();

  /** The latest first. */
  get notes(): readonly Note[] {
    return [...this.#notes.values()].reverse();
  }

  /** Takes a line of the native core's events, as the log gets it. */
  readonly take: Log = (level, message, details) => {
    const { event, listener, refusal } = details;
    const isProblem = level === "error" || level === "warn" || refusal !== undefined;
    if (!isProblem) return;
    const key = JSON.stringify([event, listener, refusal]);
    const before = this.#notes.get(key);
    // Last in the map is latest.
    this.#notes.delete(key);
    this.#notes.set(key, {
      time: Date.now(),
      event,
      ...(typeof refusal === "string" && { reason: refusal }),
      ...(typeof listener === "string" && { listener }),
      count: (before?.count ?? 0) + countOf(details),
      message: message.length > LONGEST ? `${message.slice(0, LONGEST)}…` : message,
      advice: adviceFor(event, typeof refusal === "string" ? refusal : undefined),
    });
    const [oldest] = this.#notes.keys();
    if (this.#notes.size > MOST_NOTES && oldest !== undefined) this.#notes.delete(oldest);
  };
}

/** The number of events that a line represents. */
function countOf({ event, value, left_out }: Details): number {
  const counted = event === "datagrams_refused" ? Number(value) : 1 + Number(left_out ?? 0);
  return Number.isSafeInteger(counted) && counted > 0 ? counted : 1;
}
