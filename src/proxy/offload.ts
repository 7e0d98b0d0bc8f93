/** `--offload`: established connections are handed over to the kernel. docs/offload.md says how. */
import { count } from "../config/count.ts";
import type { ProxyConfig } from "../config/model.ts";
import { LITTLE_ENDIAN } from "../config/options.ts";
import type { Log } from "../log/log.ts";
import { ADOPTION } from "../native/layout.ts";
import { type Library, problemOf } from "../native/library.ts";

/**
 * Starts what the option asks for. Where the host does not offer it, a warning says why, and connections
 * are relayed as without it. Call it before the sandbox.
 *
 * @returns whether connections are handed over
 */
export function startOffload(
  { offload }: Pick<ProxyConfig, "offload">,
  proxy: number,
  library: Pick<Library, "startOffload" | "checkOutlives" | "adoptOffload">,
  log: Log,
): boolean {
  if (offload === "off") return false;
  const reason = problemOf(() => library.startOffload(proxy))?.message;
  if (reason !== undefined) {
    log(
      "warn",
      `Offload: off: ${reason}. It needs CAP_BPF, CAP_NET_ADMIN and Linux 5.17; ` +
        "connections are relayed as with --offload off",
      { event: "offload", offload: "off", reason },
    );
    return false;
  }
  const short = problemOf(() => library.checkOutlives(proxy))?.message;
  log(
    "info",
    "Offload: established TCP connections are handed over to the kernel; they " +
      (short === undefined ? "outlive mmproxy" : `end with mmproxy: ${short}`),
    { event: "offload", offload: "on", ...(short !== undefined && { reason: short }) },
  );
  adopt(proxy, library, log);
  return true;
}

/** Takes over what earlier programs have left. */
function adopt(proxy: number, library: Pick<Library, "adoptOffload">, log: Log): void {
  let record = new Uint8Array(ADOPTION.size);
  // Without a place where it could have been kept, nothing was: that is logged already.
  if (problemOf(() => record = library.adoptOffload(proxy)) !== undefined) return;
  const view = new DataView(record.buffer);
  const [adopted, ended, unreadable] = [ADOPTION.adopted, ADOPTION.ended, ADOPTION.unreadable]
    .map((at) => view.getUint32(at, LITTLE_ENDIAN)) as [number, number, number];
  if (adopted + ended > 0) {
    log(
      "info",
      `Offload: adopted ${count(adopted, "connection")} of an earlier mmproxy` +
        (ended > 0 ? `; ended ${ended} that it was still handing over` : ""),
      { event: "offload", offload: "adopted", value: adopted, ended },
    );
  }
  if (unreadable > 0) {
    log(
      "warn",
      `Offload: ended what ${count(unreadable, "program")} of another version had left`,
      { event: "offload", offload: "unreadable", value: unreadable },
    );
  }
}

/**
 * The end, after that of the workers.
 *
 * @returns how many connections go on in the kernel
 */
export function endOffload(
  proxy: number,
  library: Pick<Library, "endOffload">,
  log: Log,
): number {
  const left = library.endOffload(proxy);
  if (left > 0) {
    log(
      "info",
      `Offload: the kernel goes on with ${count(left, "connection")}; the next start with ` +
        "--offload auto adopts them",
      { event: "offload", offload: "left", value: left },
    );
  }
  return left;
}
