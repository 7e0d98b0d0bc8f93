/** `--watch`: a reload when a file of the configuration changes. */
import type { Log } from "../log/log.ts";
import { type Library, NativeError } from "../native/library.ts";
import type { Configuration } from "./reload.ts";

/** The native core looks by itself if nothing tells it of changes. */
const WAIT_MS = 60_000;

/**
 * Reloads on every change until `isOver()`.
 *
 * @param reload as `Configuration.reload`
 */
export async function watchFiles(
  configuration: Pick<Configuration, "files">,
  reload: (onlyChanges: boolean) => Promise<unknown>,
  library: Pick<Library, "nextChange" | "watchFiles">,
  isOver: () => boolean,
  log: Log,
): Promise<void> {
  try {
    // What was written between its reading and its being watched is read now.
    while (library.watchFiles(configuration.files)) await reload(true);
    while (!isOver()) {
      if (!await library.nextChange(WAIT_MS) || isOver()) continue;
      await reload(false);
      while (library.watchFiles(configuration.files)) await reload(true);
    }
  } catch (error) {
    if (!(error instanceof NativeError)) throw error;
    log("error", `${error.message}: send SIGHUP after a change`, {
      event: "watch_failed",
      error: error.message,
    });
  }
}
