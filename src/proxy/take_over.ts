/** A hand-over in the new program: what it takes from the program that it replaces. */
import project from "../../deno.json" with { type: "json" };
import type { ProxyConfig } from "../config/model.ts";
import type { Request } from "../control/protocol.ts";
import type { Log } from "../log/log.ts";
import type { Library } from "../native/library.ts";
import { PARAMETERS, type Step } from "../routing/plan.ts";
import { orStartError, orStartErrorSync } from "./start_error.ts";
import { readReplaced, type Replaced } from "./replaced.ts";
import { count } from "../config/count.ts";

/** The program that is replaced. */
export interface Predecessor {
  /** Of the native core. */
  readonly handle: number;
  readonly process: number;
  /** The routing that `--auto-routes` has set there: whoever takes over removes it. */
  readonly routes: readonly Step[];
  /** It, and those that it has replaced itself. */
  readonly replaced: readonly Replaced[];
}

/** What a program tells its successor of itself. */
export function wordsFor(routes: readonly Step[], replaced: readonly Replaced[]): string {
  return JSON.stringify({ process: Deno.pid, routes, replaced });
}

/**
 * Asks the program that `--take-over` names for its sockets.
 *
 * @returns nothing if there is no such program, or none answers
 * @throws {StartError} when it refuses
 */
export function takeOver(
  { takeOver: path }: Pick<ProxyConfig, "takeOver">,
  library: Pick<Library, "predecessorWords" | "takeOver">,
  log: Log,
): Predecessor | undefined {
  if (path === undefined) return undefined;
  const request = { command: "take-over", version: project.version } satisfies Request;
  const found = orStartErrorSync(() => {
    const handle = library.takeOver(path, JSON.stringify(request));
    return handle === undefined ? undefined : { handle, words: library.predecessorWords(handle) };
  });
  if (found) return { handle: found.handle, ...readWords(found.words) };
  log("info", `No program answers on ${path}: nothing to take over`, {
    event: "no_predecessor",
    path,
  });
  return undefined;
}

/** Another version may say less, or more; and a program that was taken over itself, anything. */
function readWords(text: string): Omit<Predecessor, "handle"> {
  const words = JSON.parse(text) as Partial<Omit<Predecessor, "handle">>;
  const routes = (Array.isArray(words.routes) ? words.routes : []).filter((step: Step) =>
    step.kind === "rule" || step.kind === "route" ||
    step.kind === "sysctl" && PARAMETERS.includes(step.name)
  );
  const replaced = readReplaced(words.replaced);
  return { process: Number(words.process ?? 0), routes, replaced };
}

/**
 * Takes the sockets and flows over: from here on this program serves.
 *
 * @throws {StartError} when the predecessor continues; then this program must end
 */
export async function finishTakeOver(
  proxy: number,
  { process }: Predecessor,
  library: Pick<Library, "finishTakeOver">,
  log: Log,
): Promise<void> {
  const flows = await orStartError(() => library.finishTakeOver(proxy));
  log("info", `Took over from process ${process}, with ${count(flows, "UDP flow")}`, {
    event: "taken_over",
    predecessor: process,
    flows,
  });
}
