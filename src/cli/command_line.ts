/** Options as flags again: command lines for the operator to paste. */
import type { Options } from "../config/options.ts";
import { typeOptions } from "./options.ts";

/**
 * A command of this program that checks or mends the set-up of these options.
 *
 * @param command `doctor`, `routes up`
 * @returns one line for a shell, without the flags that are at their defaults
 */
export function commandLine(command: "doctor" | "routes up", options: Options): string {
  const words = typeOptions(options, command === "doctor" ? "doctor" : "routes");
  return ["mmproxy", command, ...words.map(quote)].join(" ");
}

/** A word for a shell. */
export function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
