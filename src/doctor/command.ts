/** `doctor`: checks whether the program would work with this configuration, and fixes what it can. */
import { UsageError } from "../cli/usage_error.ts";
import type { ProxyConfig } from "../config/model.ts";
import type { Paint } from "../log/paint.ts";
import type { Library } from "../native/library.ts";
import { routesUp } from "../routing/command.ts";
import { KernelRouting } from "../routing/kernel.ts";
import { type Entry, examine } from "./checks.ts";
import { gather } from "./facts.ts";
import type { Setting } from "./finding.ts";
import { isWell, reportJson, reportText } from "./report.ts";

/** How it is requested. */
export interface DoctorOptions {
  /** Print one JSON document instead of lines. */
  readonly json: boolean;
  /** Set what can be set. */
  readonly fix: boolean;
  /** Do so without asking. */
  readonly yes: boolean;
}

/** What it talks to. */
export interface Terminal {
  print(text: string): void;
  readonly paint: Paint;
  /** Whether somebody can be asked. */
  readonly isInteractive: boolean;
  confirm(question: string): boolean;
}

/**
 * Checks, and prints what was found. Changes nothing, but with `fix`.
 *
 * @returns the exit code: 0 only when it would work
 * @throws {UsageError} if it has to ask and nobody is there
 * @throws {RoutingError} when something cannot be set
 */
export async function runDoctor(
  config: ProxyConfig,
  { json, fix, yes }: DoctorOptions,
  library: Library,
  terminal: Terminal,
): Promise<number> {
  if (fix && !yes && (json || !terminal.isInteractive)) {
    throw new UsageError(
      "Option --fix: doctor asks for confirmation, and there is no terminal; add --yes to set " +
        "everything without confirmation",
    );
  }
  const look = async () => examine(await gather(config, library));
  const report = (entries: readonly Entry[]) =>
    terminal.print(json ? reportJson(entries) : reportText(entries, terminal.paint));
  let entries = await look();
  const settings = fix ? settingsOf(entries) : [];
  if (settings.length > 0) {
    if (!json) report(entries);
    const question = `Set ${settings.map(describe).join(", ")}?`;
    if (!yes && !terminal.confirm(question)) return 1;
    const print = json ? () => {} : terminal.print;
    for (const setting of settings) apply(setting, config, library, print);
    entries = await look();
  }
  report(entries);
  if (fix && settings.length === 0 && !json && !isWell(entries)) {
    terminal.print("doctor cannot fix the failed checks itself: see above");
  }
  return isWell(entries) ? 0 : 1;
}

/** What the failed checks want set, each once. */
function settingsOf(entries: readonly Entry[]): Setting[] {
  const wanted = entries.filter(({ state }) => state === "failed")
    .flatMap(({ sets }) => sets ? [sets] : []);
  return [...new Map(wanted.map((setting) => [describe(setting), setting])).values()];
}

function describe(setting: Setting): string {
  return setting.kind === "routes"
    ? "rules and routes"
    : `${setting.name.replaceAll("/", ".")} = ${setting.value}`;
}

function apply(
  setting: Setting,
  config: ProxyConfig,
  library: Library,
  print: (text: string) => void,
): void {
  const routing = new KernelRouting(library);
  if (setting.kind === "routes") {
    routesUp(config, routing, print);
    return;
  }
  routing.setSysctl(setting.name, setting.value);
  print(`Set: sysctl ${describe(setting)}`);
}
