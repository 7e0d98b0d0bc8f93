/**
 * Keeps Deno's debugger closed. Half a second after the start, SIGUSR1 would open it on 127.0.0.1:9229, where any user of the
 * host can run any code in this process (docs/decisions/0061-sigusr1.md).
 */
import type { Log } from "../log/log.ts";
import type { Library } from "../native/library.ts";
import { StartError } from "./start_error.ts";

/** What is needed of the native core. */
type Native = Pick<Library, "takeUsr1" | "usr1Received" | "debuggerListens" | "readFile">;

/** In this time Deno has opened the debugger, if a signal has asked it to. */
const OPENING_MS = 200;

/**
 * Takes SIGUSR1 from Deno, for good.
 *
 * @throws {StartError} when a signal came before the program had started, and the debugger is open
 */
export async function keepDebuggerShut(library: Native): Promise<void> {
  const late = library.takeUsr1();
  // Deno sets a signal's handler once, for its first listener: for this one, and not for its own later.
  Deno.addSignalListener("SIGUSR1", () => {});
  library.takeUsr1();
  if (!late || isAskedFor(library)) return;
  await new Promise((wake) => setTimeout(wake, OPENING_MS));
  if (!library.debuggerListens()) return;
  throw new StartError(
    "SIGUSR1 opened Deno's debugger on 127.0.0.1:9229 during the start; start mmproxy again",
  );
}

/** Whether Deno's own flags ask for the debugger. */
function isAskedFor(library: Native): boolean {
  const words = new TextDecoder().decode(library.readFile("/proc/self/cmdline")).split("\0");
  return words.some((word) => word.startsWith("--inspect"));
}

/** Returns a function, to be called periodically, that logs that a SIGUSR1 had no effect. */
export function watchUsr1(library: Native, log: Log): () => void {
  return () => {
    if (library.takeUsr1()) {
      log("error", "SIGUSR1 already had another handler: please report it", {
        event: "internal_error",
      });
    }
    const count = library.usr1Received();
    if (count === 0) return;
    log(
      "warn",
      "SIGUSR1 has no effect: the log goes to standard error, so there is no file to reopen; SIGHUP reloads the subnet file",
      { event: "signal_ignored", signal: "SIGUSR1", value: count },
    );
  };
}
