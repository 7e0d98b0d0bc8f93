/** Suggests the flag or command that was probably meant. */
import type { Command } from "@commander-js/extra-typings";
import { nearest } from "../config/nearest.ts";

/** A question to add to what is said about a word that is not known; empty if nothing is near. */
export function suggestion(word: string, known: readonly string[]): string {
  // `--listen` is the beginning of `--listen-addr` before it is most of `--listeners`.
  const meant = known.find((name) => name.startsWith(`${word}-`)) ??
    known.find((name) => name.startsWith(word)) ?? nearest(word, known);
  return meant === undefined ? "" : ` (did you mean ${meant}?)`;
}

/** The long flags of the command that these words name, or of the program. */
export function flagsOf(program: Command, args: readonly string[]): string[] {
  const command = program.commands.find((command) => args.includes(command.name())) ?? program;
  return command.options.flatMap(({ long, hidden }) => long && !hidden ? [long] : []);
}
