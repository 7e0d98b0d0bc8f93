/** mmproxy: PROXY protocol in, the client's own address out. */
import { fileURLToPath } from "node:url";
import project from "./deno.json" with { type: "json" };
import { parseArguments } from "./src/cli/arguments.ts";
import { readConfiguration } from "./src/cli/setup.ts";
import { UsageError } from "./src/cli/usage_error.ts";
import { ConfigError } from "./src/config/mistakes.ts";
import { ControlError, runControl } from "./src/control/command.ts";
import { runDoctor } from "./src/doctor/command.ts";
import { HelpError, page, topicList } from "./src/help/pages.ts";
import { withoutNames } from "./src/proxy/names.ts";
import { keepDebuggerShut } from "./src/proxy/usr1.ts";
import { lostLines, openLog } from "./src/log/log.ts";
import { LogOutput } from "./src/log/output.ts";
import { LibraryError, libraryPlaces, loadLibrary } from "./src/native/library.ts";
import { KernelRouting } from "./src/routing/kernel.ts";
import { RoutingError } from "./src/routing/plan.ts";
import { runRoutes } from "./src/routing/command.ts";
import { runService } from "./src/proxy/run.ts";
import { StartError } from "./src/proxy/start_error.ts";

/** How long an end waits for the log's reader. */
const FLUSH_MS = 1_000;

/** The log's, once it is open. */
let output: LogOutput | undefined;

/** Runs a command line; the process's exit code. */
async function main(args: readonly string[]): Promise<number> {
  try {
    const request = parseArguments(args, project.version);
    if (request.kind === "print") {
      console.log(request.text.trimEnd());
      return 0;
    }
    const library = loadLibrary(libraryPlaces(new URL("./", import.meta.url)));
    await keepDebuggerShut(library);
    if (request.kind === "check") {
      // Only now: who has no file need not load what reads one.
      const { loadConfig, summary } = await import("./src/config/check.ts");
      const { path } = request;
      console.log(`${path}: ${summary(loadConfig(path, (path) => library.readFile(path)))}`);
      return 0;
    }
    if (request.kind === "help") {
      const read = (path: string) =>
        new TextDecoder().decode(library.readFile(fileURLToPath(new URL(path, import.meta.url))));
      const { topic } = request;
      console.log((topic === undefined ? topicList(read) : page(topic, read)).trimEnd());
      return 0;
    }
    if (request.kind === "control") {
      return await runControl(request, library, (text) => console.log(text));
    }
    const config = await readConfiguration(request.setup, library);
    switch (request.kind) {
      case "run": {
        const { logLevel, logFormat } = config;
        const lines = output = new LogOutput(library, (count) => lostLines(count, logFormat));
        const log = openLog(logLevel, logFormat, (line) => lines.write(line));
        const { setup } = request;
        const reread = () => readConfiguration(setup, library);
        await runService(config, library, log, lines, setup.kind === "file" ? reread : undefined);
        return 0;
      }
      case "routes":
        return runRoutes(
          request,
          await withoutNames(config, library),
          new KernelRouting(library),
          (line) => console.log(line),
        );
      case "doctor":
        return await runDoctor(
          await withoutNames(config, library),
          request.json,
          library,
          (text) => console.log(text),
        );
    }
  } catch (error) {
    if (error instanceof UsageError || error instanceof ConfigError) return fail(error.message, 2);
    const known = [LibraryError, StartError, RoutingError, ControlError, HelpError];
    if (known.some((kind) => error instanceof kind)) return fail((error as Error).message, 1);
    const text = error instanceof Error ? error.stack ?? error.message : String(error);
    return fail(`internal error, please report it: ${text}`, 1);
  }
}

function fail(message: string, code: number): number {
  // Of a configuration every mistake has a line.
  const lines = message.split("\n").map((line) => `mmproxy: ${line}\n`).join("");
  if (output) output.write(lines);
  else Deno.stderr.writeSync(new TextEncoder().encode(lines));
  return code;
}

if (import.meta.main) {
  const code = await main(Deno.args);
  output?.flush(FLUSH_MS);
  Deno.exit(code);
}
