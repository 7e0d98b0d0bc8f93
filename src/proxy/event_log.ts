/** The log of what the native core reports: its events, and its access records. */
import type { ProxyConfig } from "../config/model.ts";
import { accessLog } from "../log/access.ts";
import { logEvent, readEvent } from "../log/events.ts";
import type { Log } from "../log/log.ts";
import type { LogOutput } from "../log/output.ts";
import { EVENT, Level } from "../native/layout.ts";
import type { Library } from "../native/library.ts";
import type { Phase } from "./ending.ts";
import type { Listeners } from "./listeners.ts";
import { unansweredWatch } from "./unanswered.ts";
import { logDefect } from "./unhandled.ts";
import { watchUsr1 } from "./usr1.ts";

const EVENTS_AT_ONCE = 256;
const EVENTS_WAIT_MS = 1_000;
/** While stopping nothing wakes the log when the last worker has ended. */
const STOPPING_WAIT_MS = 50;

/** What is logged, and where. */
export interface Logged {
  readonly config: ProxyConfig;
  readonly library: Library;
  readonly proxy: number;
  readonly listeners: Listeners;
  readonly phase: Readonly<Phase>;
  readonly log: Log;
  readonly output: LogOutput;
  /** Gets the lines of events as well. */
  readonly note: Log;
}

/** Logs until every worker has ended, and the last event is logged. */
export async function logEvents(
  { config, library, proxy, listeners, phase, log, output, note }: Logged,
): Promise<void> {
  const records = new Uint8Array(EVENTS_AT_ONCE * EVENT.size);
  const stats = (listener: number) => library.stats(proxy, listener);
  const watchUnanswered = unansweredWatch(config, listeners, log, stats);
  const logAccess = Level[config.logLevel] >= Level.access
    ? accessLog(library, proxy, listeners, log)
    : undefined;
  const usr1 = watchUsr1(library, log);
  const logAndNote: Log = (level, message, details) => {
    log(level, message, details);
    note(level, message, details);
  };
  for (;;) {
    // Read before the events: those of the last moments are still to be fetched.
    const last = phase.over;
    const wait = last ? 0 : phase.draining ? STOPPING_WAIT_MS : EVENTS_WAIT_MS;
    const count = await library.nextEvents(proxy, records, wait);
    try {
      for (let index = 0; index < count; index++) {
        const event = readEvent(records, index * EVENT.size);
        if (!event) continue;
        logEvent(logAndNote, event, listeners);
        watchUnanswered(event);
      }
      logAccess?.();
      usr1();
      output.tellLost();
    } catch (error) {
      // A line that cannot be made must not be the last.
      logDefect(log, error);
    }
    if (last && count === 0) return;
  }
}
