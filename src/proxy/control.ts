/** The running program's side of the control socket: opens it, and reports the program's state. */
import project from "../../deno.json" with { type: "json" };
import type { ProxyConfig } from "../config/model.ts";
import { ControlSocket } from "../control/server.ts";
import type { Library } from "../native/library.ts";
import { orStartErrorSync } from "./start_error.ts";

/**
 * Opens the control socket, if there is to be one; it is served later. That of a predecessor is taken.
 *
 * @throws {StartError} if another program has it, or its place is not available
 */
export function openControl(
  { control }: Pick<ProxyConfig, "control">,
  library: Library,
  predecessor?: number,
): ControlSocket | undefined {
  if (control === undefined) return undefined;
  return orStartErrorSync(() => ControlSocket.open(control, library, predecessor));
}

/** What the status says of the program itself. */
export function aboutProgram({ file }: Pick<ProxyConfig, "file">) {
  return {
    version: project.version,
    pid: Deno.pid,
    ...(file !== undefined && { config: file }),
    uptime: performance.now() / 1000,
  };
}
