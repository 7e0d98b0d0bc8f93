/** What was typed, and what the environment has, as a setup. */
import { type Environment, listOf, switchOf, variableOf } from "./environment.ts";
import { type Key, type Row, ROWS } from "./options.ts";
import { readSetup, type Setup, type Typed, type TypedOptions } from "./setup.ts";
import { UsageError } from "./usage_error.ts";

/** What a command line has for an option. */
export type Find = (given: Pick<Row, "flags">) => Typed;

/**
 * The setup of a command line and the environment.
 *
 * @param config the value of `--config` on the command line
 * @throws {UsageError} about the first option that is wrong
 */
export function setupFrom(
  find: Find,
  config: string | undefined,
  environment: Environment,
): Setup {
  const rows = ROWS.map(([key, row]): [Key, Typed] => [key, typedOf(find, row, environment)]);
  return readSetup(
    Object.fromEntries(rows) as TypedOptions,
    config ?? environment(variableOf("--config")),
  );
}

/** What is typed goes before what the environment has. */
function typedOf(find: Find, row: Row, environment: Environment): Typed {
  const typed = chosen(row, find);
  return typed.isTyped
    ? typed
    : chosen(row, (given) => inherited(row, given, environment) ?? typed);
}

/** An option's value by its own name or by its alias. */
function chosen(row: Row, find: Find): Typed {
  const own = find(row);
  const alias = row.alias && find(row.alias);
  if (!alias?.isTyped) return own;
  if (own.isTyped) {
    throw new UsageError(
      `Options ${own.names} and ${alias.names}: they are the same option; give only one of them`,
    );
  }
  return alias;
}

/** What the environment has for an option. A switch that is off there is as one that is not typed. */
function inherited(
  row: Row,
  given: Pick<Row, "flags">,
  environment: Environment,
): Typed | undefined {
  const names = variableOf(given.flags);
  const text = environment(names);
  if (text === undefined) return undefined;
  if (!row.parse) return switchOf(names, text) ? { isTyped: true, value: true, names } : undefined;
  return { isTyped: true, value: row.many ? listOf(text) : text, names };
}
