/** `doctor`: says whether the program would work with this configuration, and what mends it. */
import type { ProxyConfig } from "../config/model.ts";
import type { Library } from "../native/library.ts";
import { CHECKS } from "./checks.ts";
import { gather } from "./facts.ts";
import { type Entry, isWell, reportJson, reportText } from "./report.ts";

/**
 * Checks, and prints what was found. Changes nothing.
 *
 * @returns the exit code: 0 only when it would work
 */
export async function runDoctor(
  config: ProxyConfig,
  json: boolean,
  library: Library,
  print: (text: string) => void,
): Promise<number> {
  const facts = await gather(config, library);
  const entries = CHECKS.flatMap(({ name, run }) =>
    run(facts).map((finding): Entry => ({ name, ...finding }))
  );
  print(json ? reportJson(entries) : reportText(entries));
  return isWell(entries) ? 0 : 1;
}
