/** `--offload`: established connections are handed over to the kernel. docs/offload.md says how. */
import type { ProxyConfig } from "../config/model.ts";
import type { Log } from "../log/log.ts";
import { type Library, NativeError } from "../native/library.ts";

/**
 * Starts what the option asks for. Where the host does not offer it, a warning says why, and connections
 * are relayed as without it. Call it before the sandbox.
 *
 * @returns whether connections are handed over
 */
export function startOffload(
  { offload }: Pick<ProxyConfig, "offload">,
  proxy: number,
  library: Pick<Library, "startOffload">,
  log: Log,
): boolean {
  if (offload === "off") return false;
  try {
    library.startOffload(proxy);
  } catch (error) {
    if (!(error instanceof NativeError)) throw error;
    log(
      "warn",
      `Offload: off: ${error.message}. It needs CAP_BPF, CAP_NET_ADMIN and Linux 5.17; ` +
        "connections are relayed as with --offload off",
      { event: "offload", offload: "off", reason: error.message },
    );
    return false;
  }
  log("info", "Offload: established TCP connections are handed over to the kernel", {
    event: "offload",
    offload: "on",
  });
  return true;
}
