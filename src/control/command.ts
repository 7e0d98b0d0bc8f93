/** The commands for a running program, from the command line to the output. */
import type { ControlRequest, Socket } from "../cli/control.ts";
import { type Library, NativeError } from "../native/library.ts";
import { ControlError } from "./error.ts";
import type { Answers, Refused, Request } from "./protocol.ts";
import { healthOf } from "../metrics/health.ts";
import { closedLines, connectionLines, statusLines } from "./text.ts";

/** Longer than a reload that resolves names. */
const TIMEOUT_MS = 70_000;

type Core = Pick<Library, "askControl" | "readFile">;

/**
 * Asks, and prints the answer.
 *
 * @returns the exit code: 1 where a reload went wrong, or a worker does not run
 * @throws {ControlError}
 */
export async function runControl(
  { request, socket, json }: ControlRequest,
  library: Core,
  print: (text: string) => void,
): Promise<number> {
  const path = await pathOf(socket, library);
  if (request.command === "top") {
    const { NoTerminalError, runTop } = await import("./top.ts");
    try {
      return await runTop(() => ask(path, request, library));
    } catch (error) {
      if (!(error instanceof NoTerminalError)) throw error;
      throw new ControlError(error.message, { cause: error });
    }
  }
  if (request.command === "status") {
    const status = await ask(path, request, library);
    print(json ? JSON.stringify(status, undefined, 2) : statusLines(status).join("\n"));
    const { workers: { configured, serving }, stopping } = status;
    return healthOf({ workers: configured, serving, stopping }).good ? 0 : 1;
  }
  if (json) {
    print(JSON.stringify(await ask(path, request, library), undefined, 2));
    return 0;
  }
  switch (request.command) {
    case "connections":
      print(connectionLines(await ask(path, request, library)).join("\n"));
      return 0;
    case "close":
      print(closedLines(await ask(path, request, library)).join("\n"));
      return 0;
    case "take-over":
      // No command line requests it.
      return 1;
    case "upgrade": {
      const { good, lines } = await ask(path, request, library);
      print(lines.join("\n"));
      return good ? 0 : 1;
    }
    case "reload": {
      const { good, lines } = await ask(path, request, library);
      print(lines.join("\n") || (good ? "Nothing changed" : "mmproxy is stopping"));
      return good ? 0 : 1;
    }
  }
}

/** @throws {ControlError} */
async function ask<R extends Request>(
  path: string,
  request: R,
  library: Pick<Library, "askControl">,
): Promise<Answers[R["command"]]> {
  const answer = await answerTo(path, request, library);
  if ("error" in answer) throw new ControlError(`Cannot ${request.command}: ${answer.error}`);
  return answer;
}

async function answerTo<R extends Request>(
  path: string,
  request: R,
  library: Pick<Library, "askControl">,
): Promise<Answers[R["command"]] | Refused> {
  try {
    return JSON.parse(await library.askControl(path, JSON.stringify(request), TIMEOUT_MS));
  } catch (error) {
    if (error instanceof NativeError) throw new ControlError(error.message, { cause: error });
    if (error instanceof SyntaxError) {
      throw new ControlError(`What answers at ${path} is not mmproxy`, { cause: error });
    }
    throw error;
  }
}

/** @throws {ControlError | ConfigError} */
async function pathOf(socket: Socket, library: Core): Promise<string> {
  if ("path" in socket) return socket.path;
  // Only now: who names the path need not load what reads a file.
  const { parse } = await import("smol-toml");
  let control: unknown;
  try {
    // Whatever else is wrong with the file is the running program's to say: that is what a reload is for.
    control = parse(new TextDecoder().decode(library.readFile(socket.config))).control;
  } catch {
    const { loadConfig } = await import("../config/check.ts");
    control = loadConfig(socket.config, (path) => library.readFile(path)).control;
  }
  if (typeof control === "string") return control;
  throw new ControlError(
    `${socket.config} sets no control socket: add control = "/run/mmproxy/control" at the top, and restart mmproxy`,
  );
}
