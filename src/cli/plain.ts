/**
 * The command line of a run in its plain form: flags that exist, each followed by its value. Commander and
 * the commands, which take longer to load and to build than the rest of the program, read all others.
 */
import type { Environment } from "./environment.ts";
import { namesOf, ROWS } from "./options.ts";
import type { Setup } from "./setup.ts";
import { setupFrom } from "./typed.ts";

/** One flag. */
interface Flag {
  /** The option, by the flags that define it. */
  readonly option: string;
  readonly takesValue: boolean;
}

const CONFIG = "--config <path>";

/**
 * The setup of a plain command line; undefined for any other, also a wrong one.
 *
 * @throws {UsageError} about the first value that is wrong
 */
export function readPlain(args: readonly string[], environment: Environment): Setup | undefined {
  const flags = flagsByName();
  const texts = new Map<string, string[]>();
  for (let at = 0; at < args.length; at++) {
    const word = args[at] ?? "";
    const equals = word.startsWith("--") ? word.indexOf("=") : -1;
    const flag = flags.get(equals < 0 ? word : word.slice(0, equals));
    if (flag === undefined) return undefined;
    const before = texts.get(flag.option) ?? [];
    texts.set(flag.option, before);
    if (!flag.takesValue) {
      if (equals >= 0) return undefined;
      continue;
    }
    const value = equals < 0 ? args[++at] : word.slice(equals + 1);
    // After a flag, commander decides what is a value and what is another flag.
    if (value === undefined || value === "" || value.startsWith("-")) return undefined;
    before.push(value);
  }
  const many = new Set(ROWS.flatMap(([, row]) => row.many ? [row.flags] : []));
  const defaults = new Map(ROWS.map(([, row]) => [row.flags, row.default]));
  return setupFrom(
    ({ flags }) => {
      const names = namesOf({ flags });
      const typed = texts.get(flags);
      if (!typed) return { isTyped: false, value: defaults.get(flags), names };
      return { isTyped: true, value: many.has(flags) ? typed : typed.at(-1) ?? true, names };
    },
    texts.get(CONFIG)?.at(-1),
    environment,
  );
}

/** Each flag by its names: `-m` and `--mark`. */
function flagsByName(): Map<string, Flag> {
  const all = ROWS.flatMap(([, row]) => [row.flags, ...row.alias ? [row.alias.flags] : []]);
  return new Map(
    [...all, CONFIG].flatMap((option) =>
      namesOf({ flags: option }).split(", ").map((name) => [
        name,
        { option, takesValue: option.includes("<") },
      ])
    ),
  );
}
