/** The allowed-subnets file, read at the start and again on SIGHUP. */
import { parseSubnets, SubnetsError } from "../config/subnets.ts";
import type { Log } from "../log/log.ts";
import { SUBNET } from "../native/layout.ts";
import { type Library, NativeError } from "../native/library.ts";
import type { RunningListener } from "./listeners.ts";

/**
 * Reads the file.
 *
 * @returns `SubnetRecord`s, one for each entry
 * @throws {SubnetsError | NativeError} when it cannot be read or says something wrong
 */
export function readSubnets(
  path: string,
  library: Pick<Library, "readFile">,
): Uint8Array<ArrayBuffer> {
  return parseSubnets(new TextDecoder().decode(library.readFile(path)), path);
}

/** Whether an error says what is wrong with the file. */
export function isSubnetsProblem(error: unknown): error is SubnetsError | NativeError {
  return error instanceof SubnetsError || error instanceof NativeError;
}

/**
 * What SIGHUP does: each listener's file is read again, every worker sees it whole at its next connection
 * or datagram, and the log says so, once for each file. A wrong file changes nothing. Connections that are
 * open stay so.
 *
 * @returns whether nothing was wrong
 */
export function reloadSubnets(
  listeners: readonly RunningListener[],
  library: Pick<Library, "readFile" | "setSubnets">,
  proxy: number,
  log: Log,
): boolean {
  const files = Map.groupBy(
    listeners,
    ({ config: { allowedSubnets } }) =>
      allowedSubnets?.kind === "file" ? allowedSubnets.path : undefined,
  );
  files.delete(undefined);
  if (files.size === 0) {
    log("warn", "Nothing to reload: the program runs without --allowed-subnets", {
      event: "nothing_to_reload",
    });
    return true;
  }
  const good = [...files].map(([path = "", users]) =>
    reloadFile(path, users.map(({ id }) => id), library, proxy, log)
  );
  return good.every(Boolean);
}

/** @param listeners the numbers of those that the file is for */
function reloadFile(
  path: string,
  listeners: readonly number[],
  library: Pick<Library, "readFile" | "setSubnets">,
  proxy: number,
  log: Log,
): boolean {
  try {
    const records = readSubnets(path, library);
    for (const listener of listeners) library.setSubnets(proxy, listener, records);
    const count = records.length / SUBNET.size;
    const subnets = count === 1 ? "1 allowed subnet" : `${count} allowed subnets`;
    log("info", `Reloaded ${path}: ${subnets}`, { event: "subnets_reloaded", value: count, path });
    return true;
  } catch (error) {
    if (!isSubnetsProblem(error)) throw error;
    log(
      "error",
      `Cannot reload the allowed subnets, the old ones stay in force: ${error.message}; mend it and send SIGHUP again`,
      { event: "reload_failed", error: error.message, path },
    );
    return false;
  }
}
