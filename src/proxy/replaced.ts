/** Programs that this one has replaced, itself or through another, while they drain. */
import type { Draining } from "../control/protocol.ts";
import type { Presence } from "../routing/presence.ts";

/** A program, as it describes itself to its successor. */
export interface Replaced {
  readonly process: number;
  /** Open connections when it was replaced. */
  readonly connections: number;
  /** When that was, in milliseconds since 1970. */
  readonly since: number;
  /** The name that it holds as long as it runs (routing/presence.ts), if it could be had. */
  readonly sign: string | undefined;
}

/** Those of a list in another program's words that can be used. */
export function readReplaced(list: unknown): Replaced[] {
  if (!Array.isArray(list)) return [];
  return list.flatMap(({ process, connections, since, sign }: Partial<Replaced>) =>
    typeof sign === "string"
      ? [{ process: Number(process), connections: Number(connections), since: Number(since), sign }]
      : []
  );
}

/** Those that still run. */
export function stillRunning(
  replaced: readonly Replaced[],
  presence: Pick<Presence, "isHeld">,
): Replaced[] {
  return replaced.filter(({ sign }) => sign !== undefined && presence.isHeld(sign));
}

/** What the status says of them. */
export function drainingOf(running: readonly Replaced[], now = Date.now()): Draining[] {
  return running.map(({ process, connections, since }) => ({
    pid: process,
    connections,
    seconds: Math.max(0, now - since) / 1000,
  }));
}
