/** mmproxy: PROXY protocol in, the client's own address out. */
import config from "./deno.json" with { type: "json" };
import { parseArguments, UsageError } from "./src/cli.ts";
import { runDoctor } from "./src/doctor/command.ts";
import { openLog } from "./src/log/log.ts";
import { LibraryError, libraryPlaces, loadLibrary } from "./src/native/library.ts";
import { KernelRouting } from "./src/routing/kernel.ts";
import { RoutingError } from "./src/routing/plan.ts";
import { runRoutes } from "./src/routing/command.ts";
import { runService } from "./src/service.ts";
import { StartError } from "./src/start_error.ts";

/** Runs a command line; the process's exit code. */
async function main(args: readonly string[]): Promise<number> {
  try {
    const request = parseArguments(args, config.version);
    if (request.kind === "print") {
      console.log(request.text.trimEnd());
      return 0;
    }
    const { options } = request;
    const library = loadLibrary(libraryPlaces(new URL("./", import.meta.url)));
    switch (request.kind) {
      case "run":
        await runService(options, library, openLog(options.logLevel, options.logFormat));
        return 0;
      case "routes":
        return runRoutes(request, new KernelRouting(library), (line) => console.log(line));
      case "doctor":
        return await runDoctor(request, library, (text) => console.log(text));
    }
  } catch (error) {
    if (error instanceof UsageError) return fail(error, 2);
    const known = [LibraryError, StartError, RoutingError];
    if (known.some((kind) => error instanceof kind)) return fail(error as Error, 1);
    throw error;
  }
}

function fail(error: Error, code: number): number {
  console.error(`mmproxy: ${error.message}`);
  return code;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
