/** mmproxy: PROXY protocol in, the client's own address out. */
import { fileURLToPath } from "node:url";
import project from "./deno.json" with { type: "json" };
import { parseArguments } from "./src/cli/arguments.ts";
import { PROCESS_ENVIRONMENT } from "./src/cli/environment.ts";
import { failureOf, formatAskedFor } from "./src/cli/failure.ts";
import { readConfiguration } from "./src/cli/setup.ts";
import { ConfigError } from "./src/config/mistakes.ts";
import { setInterfaces } from "./src/config/scope.ts";
import { runControl } from "./src/control/command.ts";
import { runDoctor } from "./src/doctor/command.ts";
import { page, topicList } from "./src/help/pages.ts";
import { withoutNames } from "./src/proxy/names.ts";
import { keepDebuggerShut } from "./src/proxy/usr1.ts";
import { failureLines, lostLines, openLog } from "./src/log/log.ts";
import { painter } from "./src/log/paint.ts";
import { LogOutput } from "./src/log/output.ts";
import { type Library, LibraryError, libraryPlaces, loadLibrary } from "./src/native/library.ts";
import { KernelRouting } from "./src/routing/kernel.ts";
import { runRoutes } from "./src/routing/command.ts";
import { runService } from "./src/proxy/run.ts";

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
    const request = parseArguments(args, project.version, PROCESS_ENVIRONMENT);
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
      case "routes":
        return runRoutes(
          request,
          await withoutNames(config, library),
          new KernelRouting(library),
          (line) => console.log(line),
          await painter(config.color, Deno.stdout),
        );
      case "doctor":
        return await runDoctor(await withoutNames(config, library), request, library, {
          print: (text) => console.log(text),
          paint: await painter(config.color, Deno.stdout),
          isInteractive: Deno.stdin.isTerminal() && Deno.stdout.isTerminal(),
          confirm,
        });
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
    native = loadLibrary(libraryPlaces(new URL("./", import.meta.url)));
    native.raiseCapabilities();
  }
  return native;
}

if (import.meta.main) {
  const code = await main(Deno.args);
  output?.flush(FLUSH_MS);
  Deno.exit(code);
}
