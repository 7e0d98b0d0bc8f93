/** A configuration as flags again: command lines for the operator to paste. */
import type { ProxyConfig } from "../config/model.ts";
import { typeOptions } from "./options.ts";

/**
 * A command of this program that checks or fixes the set-up of this configuration.
 *
 * @param command `doctor`, `routes up`
 * @param changed what is to be different
 * @returns one line for a shell, without the flags that are at their defaults
 */
export function commandLine(
  command: "doctor" | "routes up",
  config: ProxyConfig,
  changed: Partial<Pick<ProxyConfig, "table">> = {},
): string {
  const heeder = command === "doctor" ? "doctor" : "routes";
  const words = config.file === undefined
    ? typeOptions({ ...config, ...changed }, heeder)
    : ["--config", config.file, ...changes(changed)];
  return ["mmproxy", command, ...words.map(quote)].join(" ");
}

function changes({ table }: Partial<Pick<ProxyConfig, "table">>): string[] {
  return table === undefined ? [] : ["--table", String(table)];
}

/** A word for a shell. */
export function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
