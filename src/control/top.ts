/** `top`: the running program live in the terminal. */
import { cursor, erase } from "sisteransi";
import type { Top } from "./protocol.ts";
import { screen } from "./screen.ts";

const PERIOD_MS = 1_000;
/** xterm's other screen: what was there before comes back with it. */
const OTHER_SCREEN = "\x1b[?1049h";
const FIRST_SCREEN = "\x1b[?1049l";
const HINT = "q quits";
const Q = "q".charCodeAt(0);
const CTRL_C = 3;

/** What ends it from outside; Ctrl-C is a key here. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** There is no terminal. */
export class NoTerminalError extends Error {
  override readonly name = "NoTerminalError";
}

/**
 * Shows what `ask` answers, once a second, until somebody ends it. The terminal is afterwards as it was
 * before, also where `ask` fails.
 *
 * @returns the exit code
 * @throws {NoTerminalError}
 */
export async function runTop(ask: () => Promise<Top>): Promise<number> {
  if (!Deno.stdin.isTerminal() || !Deno.stdout.isTerminal()) {
    throw new NoTerminalError("top needs a terminal: use status, or connections");
  }
  // Asked before the terminal is touched: a program that does not answer is an ordinary line.
  let look = { top: await ask(), at: performance.now() };
  let before: typeof look | undefined;
  const { promise: ended, resolve: end } = Promise.withResolvers<void>();
  const draw = () =>
    write(frame(look.top, before?.top, (look.at - (before?.at ?? look.at)) / 1000));
  // A size that has changed is drawn at once.
  Deno.addSignalListener("SIGWINCH", draw);
  for (const signal of SIGNALS) Deno.addSignalListener(signal, end);
  Deno.stdin.setRaw(true);
  write(OTHER_SCREEN + cursor.hide);
  try {
    void readKeys().then(end, end);
    let over = false;
    void ended.then(() => over = true);
    while (!over) {
      draw();
      await Promise.race([ended, new Promise((wake) => setTimeout(wake, PERIOD_MS))]);
      if (over) break;
      const asked = ask().then((top) => ({ top, at: performance.now() }));
      const next = await Promise.race([asked, ended]);
      if (!next) {
        // Nobody waits for this answer any more.
        asked.catch(() => {});
        break;
      }
      [before, look] = [look, next];
    }
  } finally {
    write(cursor.show + FIRST_SCREEN);
    Deno.stdin.setRaw(false);
    Deno.removeSignalListener("SIGWINCH", draw);
    for (const signal of SIGNALS) Deno.removeSignalListener(signal, end);
  }
  return 0;
}

/** Ends with `q`, Ctrl-C, or the terminal itself. */
async function readKeys(): Promise<void> {
  const keys = new Uint8Array(64);
  for (;;) {
    const count = await Deno.stdin.read(keys);
    if (count === null || keys.subarray(0, count).some((key) => key === Q || key === CTRL_C)) {
      return;
    }
  }
}

/** The bytes that draw a look instead of the one before, without a flicker. */
function frame(now: Top, before: Top | undefined, seconds: number): string {
  const size = Deno.consoleSize();
  const lines = screen({ now, ...(before && { before }), seconds }, {
    columns: size.columns,
    rows: Math.max(1, size.rows - 1),
  });
  const drawn = [...lines, HINT.slice(0, size.columns)].map((line) => line + erase.lineEnd);
  // cursor.to(0, 0) of this library moves within the line; up ends at the top.
  return cursor.up(size.rows) + cursor.left + drawn.join("\r\n") + erase.down();
}

function write(text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let sent = 0; sent < bytes.length;) sent += Deno.stdout.writeSync(bytes.subarray(sent));
}
