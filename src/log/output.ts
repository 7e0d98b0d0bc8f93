/** Output of the log: standard error, through the native core's queue. Nothing waits for its reader. */
import type { Library } from "../native/library.ts";

/** What is needed of the native core. */
type Native = Pick<Library, "pushLog" | "failedLogLines" | "flushLog">;

/** Interval of reports about lost lines, because such a report may fail as well. */
const PAUSE_MS = 1_000;

/** Accepts lines, in order. Lines without room are counted, and a separate line reports their number. */
export class LogOutput {
  readonly #native: Native;
  readonly #lostLines: (count: number) => string;
  readonly #now: () => number;
  /** Lines that found no room. */
  #refused = 0;
  #refusedTold = 0;
  #failedTold = 0;
  #failedToldAt = -Infinity;

  /**
   * @param lostLines the line that reports this many lost ones
   * @param now milliseconds, only ever growing
   */
  constructor(
    native: Native,
    lostLines: (count: number) => string,
    now: () => number = () => performance.now(),
  ) {
    this.#native = native;
    this.#lostLines = lostLines;
    this.#now = now;
  }

  /** Takes a whole line. */
  write(line: string): void {
    if (!this.tellLost() || !this.#native.pushLog(line)) this.#refused++;
  }

  /**
   * Reports the lines that were lost since the last report, if there are any.
   *
   * @returns whether there may be room for a line
   */
  tellLost(): boolean {
    const refused = this.#refused - this.#refusedTold;
    const failed = this.#native.failedLogLines() - this.#failedTold;
    const due = this.#now() - this.#failedToldAt >= PAUSE_MS;
    if (refused === 0 && (failed === 0 || !due)) return true;
    if (!this.#native.pushLog(this.#lostLines(refused + failed))) return false;
    this.#refusedTold += refused;
    this.#failedTold += failed;
    this.#failedToldAt = this.#now();
    return true;
  }

  /** How many lines were lost so far: they found no room, or could not be written. */
  get lost(): number {
    return this.#refused + this.#native.failedLogLines();
  }

  /** Waits until everything is written, `milliseconds` at most. */
  flush(milliseconds: number): void {
    this.tellLost();
    this.#native.flushLog(milliseconds);
  }
}
