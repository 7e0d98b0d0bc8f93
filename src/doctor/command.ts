/** `doctor`: says whether the program would work with these flags, and what mends it. */
import type { DoctorRequest } from "../cli/arguments.ts";
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
  { options, json }: DoctorRequest,
  library: Library,
  print: (text: string) => void,
): Promise<number> {
  const facts = await gather(options, library);
  const entries = CHECKS.flatMap(({ name, run }) =>
    run(facts).map((finding): Entry => ({ name, ...finding }))
  );
  print(json ? reportJson(entries) : reportText(entries));
  return isWell(entries) ? 0 : 1;
}
