/** mmproxy: PROXY protocol in, the client's own address out. */
import project from "./deno.json" with { type: "json" };
import type { Request } from "./src/cli/arguments.ts";
import { PROCESS_ENVIRONMENT } from "./src/cli/environment.ts";
import { failureOf, formatAskedFor } from "./src/cli/failure.ts";
import { readPlain } from "./src/cli/plain.ts";
import { readConfiguration } from "./src/cli/setup.ts";
import { ConfigError } from "./src/config/mistakes.ts";
import { setInterfaces } from "./src/config/scope.ts";
import { withoutNames } from "./src/proxy/names.ts";
import { keepDebuggerShut } from "./src/proxy/usr1.ts";
import { failureLines, lostLines, openLog } from "./src/log/log.ts";
import { painter } from "./src/log/paint.ts";
import { LogOutput } from "./src/log/output.ts";
import {
  type Library,
  LibraryError,
  libraryPlaces,
  loadLibrary,
  pathOf,
} from "./src/native/library.ts";
import { KernelRouting } from "./src/routing/kernel.ts";
import { runService } from "./src/proxy/run.ts";

/** The program's folder. A release has this module in `lib/` as well, without types. */
const ROOT = new URL(import.meta.url.endsWith("/lib/main.js") ? "../" : "./", import.meta.url);
/** How long an end waits for the log's reader. */
const FLUSH_MS = 1_000;

/** The log's, once it is open. */
let output: LogOutput | undefined;
/** Once it is loaded. */
let native: Library | undefined;

/** Runs a command line; the process's exit code. */
async function main(args: readonly string[]): Promise<number> {
  let format = formatAskedFor(args, PROCESS_ENVIRONMENT);
  let isRun = false;
  try {
    const request = await requestOf(args);
    if (request.kind === "print") {
      console.log(request.text.trimEnd());
      return 0;
    }
    const library = load();
    await keepDebuggerShut(library);
    if (request.kind === "check") {
      // Only now: who has no file need not load what reads one.
      const { loadConfig, summary } = await import("./src/config/check.ts");
      const { path } = request;
      console.log(`${path}: ${summary(loadConfig(path, (path) => library.readFile(path)))}`);
      return 0;
    }
    if (request.kind === "help") {
      const { page, topicList } = await import("./src/help/pages.ts");
      const read = (path: string) =>
        new TextDecoder().decode(library.readFile(pathOf(new URL(path, ROOT))));
      const { topic } = request;
      console.log((topic === undefined ? topicList(read) : page(topic, read)).trimEnd());
      return 0;
    }
    if (request.kind === "control") {
      const { runControl } = await import("./src/control/command.ts");
      return await runControl(request, library, (text) => console.log(text));
    }
    const config = await readConfiguration(request.setup, library);
    switch (request.kind) {
      case "run": {
        isRun = true;
        format = config.logFormat;
        const paint = await painter(config.color, Deno.stderr);
        const form = { format, journal: library.stderrIsJournal(), paint };
        const lines = output = new LogOutput(library, (count) => lostLines(count, form));
        const log = openLog(config.logLevel, form, (line) => lines.write(line));
        const { setup } = request;
        const reread = () => readConfiguration(setup, library);
        await runService(config, library, log, lines, setup.kind === "file" ? reread : undefined);
        return 0;
      }
      case "routes": {
        const { runRoutes } = await import("./src/routing/command.ts");
        return runRoutes(
          request,
          await withoutNames(config, library),
          new KernelRouting(library),
          (line) => console.log(line),
          await painter(config.color, Deno.stdout),
        );
      }
      case "doctor": {
        const { runDoctor } = await import("./src/doctor/command.ts");
        return await runDoctor(await withoutNames(config, library), request, library, {
          print: (text) => console.log(text),
          paint: await painter(config.color, Deno.stdout),
          isInteractive: Deno.stdin.isTerminal() && Deno.stdout.isTerminal(),
          confirm,
        });
      }
    }
  } catch (error) {
    const { message, code } = failureOf(error, isRun);
    if (error instanceof ConfigError) format = error.logFormat ?? format;
    const lines = failureLines(message, code, { format, journal: isJournal() });
    if (output) output.write(lines);
    else Deno.stderr.writeSync(new TextEncoder().encode(lines));
    return code;
  }
}

/**
 * What a command line requests. Only a run has to start fast: what reads the others, and what they do, is
 * loaded when it is used.
 */
async function requestOf(args: readonly string[]): Promise<Request> {
  const setup = readPlain(args, PROCESS_ENVIRONMENT);
  if (setup) return { kind: "run", setup };
  const { parseArguments } = await import("./src/cli/arguments.ts");
  return parseArguments(args, project.version, PROCESS_ENVIRONMENT);
}

/** Whether errors go to the journal; also needed before the library is loaded, or if it is missing. */
function isJournal(): boolean {
  try {
    return load().stderrIsJournal();
  } catch (error) {
    if (error instanceof LibraryError) return false;
    throw error;
  }
}

/** For scopes that are names. */
setInterfaces(() => new TextDecoder().decode(load().readFile("/proc/self/net/if_inet6")));

function load(): Library {
  if (native === undefined) {
    native = loadLibrary(libraryPlaces(ROOT));
    native.raiseCapabilities();
  }
  return native;
}

if (import.meta.main) {
  const code = await main(Deno.args);
  output?.flush(FLUSH_MS);
  Deno.exit(code);
}
