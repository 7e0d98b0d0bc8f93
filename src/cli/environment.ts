/** Options from the environment: `MMPROXY_LISTEN_ADDR` is `--listen-addr`. */
import type { Command } from "@commander-js/extra-typings";
import { UsageError } from "./usage_error.ts";

/** The value of a variable; undefined if it is not set, is empty, or may not be read. */
export type Environment = (variable: string) => string | undefined;

/** An environment without variables. */
export const NO_ENVIRONMENT: Environment = () => undefined;

/** The process's environment, as far as Deno allows it to be read, without a prompt for permission. */
export const PROCESS_ENVIRONMENT: Environment = (variable) => {
  const { state } = Deno.permissions.querySync({ name: "env", variable });
  // An empty variable is how Compose and systemd unset one.
  return state === "granted" ? Deno.env.get(variable) || undefined : undefined;
};

/** The variable of an option, by its flags: that of its long name. */
export function variableOf(flags: string): string {
  const [, name = ""] = /--([a-z0-9-]+)/.exec(flags) ?? [];
  return `MMPROXY_${name.toUpperCase().replaceAll("-", "_")}`;
}

/**
 * A switch's variable as true or false.
 *
 * @throws {UsageError}
 */
export function switchOf(variable: string, text: string): boolean {
  switch (text.toLowerCase()) {
    case "1":
    case "true":
    case "yes":
      return true;
    case "0":
    case "false":
    case "no":
      return false;
  }
  throw new UsageError(`Option ${variable}: ${JSON.stringify(text)} is not true or false`);
}

/** What a command that asks a running program, or checks a file, has from the environment. */
export function inherit(
  command: Pick<Command, "setOptionValueWithSource" | "hook">,
  environment: Environment,
): void {
  for (const name of ["control", "config"]) {
    const value = environment(variableOf(`--${name}`));
    if (value !== undefined) command.setOptionValueWithSource(name, value, "env");
  }
  // Both say where the running program is: what is typed goes before what is not.
  command.hook("preAction", (command) => {
    const isTyped = command.getOptionValueSource("config") === "cli";
    if (isTyped && command.getOptionValueSource("control") === "env") {
      command.setOptionValue("control", undefined);
    }
  });
}

/** The values in a variable of an option that may be given more than once. */
export function listOf(text: string): string[] {
  return text.split(/[\s,]+/).filter((part) => part !== "");
}
