/**
 * An upgrade in the running program: it starts the new program, hands over to it, and drains. If the new program does not
 * start, nothing changes (docs/upgrade.md).
 */
import { Problem } from "../config/problem.ts";
import type { Successor, Upgraded } from "../control/protocol.ts";
import type { Log } from "../log/log.ts";
import { type HandedOver, type Library, NativeError } from "../native/library.ts";
import { waitFor } from "./wait.ts";

/** How long a new program may take to start. */
const STARTING_MS = 30_000;
/** How long its last words may take once its hand-over has failed, or it has ended. */
const LAST_WORDS_MS = 2_000;
/** Looks so often whether the new program says something. */
const WORDS_MS = 250;
/** Characters of what it says that are kept for the report. */
const MOST_WORDS = 16_384;

/** With the first process of a container everything in it ends. */
const FIRST =
  "this program is the first process of its container, which ends with it: start the new " +
  "program in a container of its own, with --take-over (docs/upgrade.md)";

/** What a run gives it. */
export interface Parts {
  readonly library: Pick<
    Library,
    "answerRequest" | "endSuccessor" | "handOver" | "pushLog" | "startSuccessor" | "successorWords"
  >;
  readonly proxy: number;
  readonly log: Log;
  /** Does nothing else to the listeners meanwhile. */
  readonly alone: <T>(work: () => Promise<T>) => Promise<T>;
  /** Why there can be no hand-over now, if so. */
  readonly obstacle: () => string | undefined;
  /** What the new program is told of this one. */
  readonly words: () => string;
  /** Another program has the listening sockets: this one drains. A line for the report comes back. */
  readonly drain: (handed: HandedOver, successor: Successor) => string;
  /** How long a new program may take to start, in milliseconds. */
  readonly startingMs?: number;
  /** This process. */
  readonly process?: number;
}

/** Upgrades of one run: one at a time, and the last one ends it. */
export class Upgrade {
  readonly #parts: Parts;
  /** Set while a new program is expected; it gets what its hand-over came to. */
  #expected: PromiseWithResolvers<string | Problem> | undefined;
  /** A hand-over goes on. */
  #handing = false;
  #done = false;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Starts the new program and waits until it has taken over, or has failed. The log has the outcome. */
  async run(): Promise<Upgraded> {
    const { log, alone, process = Deno.pid } = this.#parts;
    const outcome = this.#obstacle(this.#expected !== undefined) ??
      (process === 1 ? new Problem(FIRST) : await alone(() => this.#start()));
    if (!(outcome instanceof Problem)) return { good: true, lines: [outcome] };
    const line = `Cannot upgrade: ${outcome.text}; this program continues`;
    log("error", line, { event: "upgrade_failed", error: outcome.text });
    return { good: false, lines: [line] };
  }

  /** Hands over to the new program that has asked with this request at a control socket. */
  async handOver(control: number, request: number, successor: Successor): Promise<void> {
    const obstacle = this.#obstacle(this.#handing);
    const hand = () => this.#handOver(control, request, successor, obstacle);
    const expected = this.#expected;
    // The one that was started has its turn already.
    const outcome = expected ? await hand() : await this.#parts.alone(hand);
    if (expected) return expected.resolve(outcome);
    if (!(outcome instanceof Problem)) return;
    this.#parts.log("error", `Cannot hand over: ${outcome.text}; this program continues`, {
      event: "upgrade_failed",
      error: outcome.text,
    });
  }

  async #start(): Promise<string | Problem> {
    const { library, log, startingMs = STARTING_MS } = this.#parts;
    const obstacle = this.#obstacle(false);
    if (obstacle) return obstacle;
    const expected = this.#expected = Promise.withResolvers<string | Problem>();
    const words = new Words(library);
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      const process = library.startSuccessor();
      log("info", `Upgrading: process ${process} starts`, { event: "upgrading", value: process });
      const ended = words.read();
      const late = new Problem(`it did not start within ${startingMs / 1000} s`);
      const over = new Promise<void>((end) => timer = setTimeout(end, startingMs));
      // A hand-over that goes on has an end of its own, whatever comes first.
      const unless = (outcome?: Problem) =>
        this.#handing || this.#done ? expected.promise : outcome;
      const outcome = await Promise.race([
        expected.promise,
        ended.then(() => unless()),
        over.then(() => unless(late)),
      ]);
      if (typeof outcome === "string") {
        // It writes to the log itself from now on.
        await waitFor(ended, LAST_WORDS_MS);
        return outcome;
      }
      if (outcome !== late) await waitFor(ended, LAST_WORDS_MS);
      const status = library.endSuccessor();
      const why = words.reason() ?? outcome?.text ?? ending(status);
      return new Problem(`the new program failed: ${why}`);
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      return new Problem(error.message);
    } finally {
      clearTimeout(timer);
      words.close();
      this.#expected = undefined;
    }
  }

  async #handOver(
    control: number,
    request: number,
    successor: Successor,
    obstacle: Problem | undefined,
  ): Promise<string | Problem> {
    const { library, proxy, words, drain } = this.#parts;
    this.#handing = true;
    try {
      if (obstacle) {
        library.answerRequest(control, request, JSON.stringify({ error: obstacle.text }));
        return obstacle;
      }
      const handed = await library.handOver(proxy, control, request, words());
      this.#done = true;
      return drain(handed, successor);
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      return new Problem(error.message);
    } finally {
      this.#handing = false;
    }
  }

  #obstacle(isBusy: boolean): Problem | undefined {
    if (this.#done) return new Problem("another program has taken over already");
    if (isBusy) return new Problem("an upgrade is under way");
    const text = this.#parts.obstacle();
    return text === undefined ? undefined : new Problem(text);
  }
}

/** What a new program says on its standard error while it starts: the log has it, and so has the report. */
class Words {
  #text = "";
  #rest = "";
  #closed = false;

  constructor(readonly library: Pick<Library, "pushLog" | "successorWords">) {}

  /** Reads until it says no more. */
  async read(): Promise<void> {
    const decoder = new TextDecoder();
    for (;;) {
      const words = await this.library.successorWords(WORDS_MS);
      if (words === undefined || this.#closed) break;
      const text = decoder.decode(words, { stream: true });
      this.#text = (this.#text + text).slice(-MOST_WORDS);
      const lines = (this.#rest + text).split("\n");
      this.#rest = lines.pop() ?? "";
      if (lines.length > 0) this.library.pushLog(lines.join("\n") + "\n");
    }
    if (this.#rest !== "") this.library.pushLog(`${this.#rest}\n`);
    this.#rest = "";
  }

  close(): void {
    this.#closed = true;
  }

  /** Why it has ended, as it says itself. */
  reason(): string | undefined {
    return reasonIn(this.#text);
  }
}

/** Why a program has ended, from what it said: its own words, or Deno's, or the last line. */
export function reasonIn(text: string): string | undefined {
  // deno-lint-ignore no-control-regex -- Deno may colour what it says.
  const plain = text.replace(/\x1b\[[0-9;]*m/g, "");
  const lines = plain.split("\n").map((line) => line.trim()).filter((line) => line !== "");
  const own = lines.flatMap((line) => {
    // In the journal a line has its priority in front: 3 is an error.
    const [, priority, rest = ""] = /^(?:<(\d)>)?(.*)$/.exec(line) ?? [];
    if (rest.startsWith("mmproxy: ")) return [rest.slice("mmproxy: ".length)];
    if (rest.startsWith("{")) return errorOf(rest) ?? [];
    return priority === "3" ? [rest] : [];
  });
  if (own.length > 0) return own.join("; ");
  return lines.find((line) => line.startsWith("error: "))?.slice("error: ".length) ??
    lines.filter((line) => !line.startsWith("{")).at(-1);
}

/** The message of an error in the log's JSON. */
function errorOf(line: string): string | undefined {
  try {
    const { level, message } = JSON.parse(line) as { level?: unknown; message?: unknown };
    return level === "error" ? String(message) : undefined;
  } catch {
    // A line that was cut.
    return undefined;
  }
}

/** A status of wait(2) in words. */
function ending(status: number): string {
  const signal = status & 0x7f;
  return signal === 0
    ? `it ended with code ${status >> 8 & 0xff} without a word`
    : `signal ${signal} ended it`;
}
