/** The command line as data, for the man page and the completions. */
import { describeCommands } from "../../src/cli/arguments.ts";
import { ROWS } from "../../src/cli/options.ts";

/** One command; the first is the program itself. */
export interface CommandInfo {
  /** Without the program's name; empty for the program itself. */
  readonly name: string;
  readonly description: string;
  readonly arguments: readonly ArgumentInfo[];
  /** In the order of the help; those that a command takes and does not use come last. */
  readonly options: readonly OptionInfo[];
}

export interface ArgumentInfo {
  readonly name: string;
  readonly required: boolean;
  readonly choices: readonly string[];
}

export interface OptionInfo {
  /** `-m, --mark <n>`. */
  readonly flags: string;
  /** `-m`. */
  readonly short: string | undefined;
  /** `--mark`. */
  readonly long: string;
  /** `<n>`; undefined for a switch. */
  readonly placeholder: string | undefined;
  readonly help: string;
  readonly default: string | undefined;
  /** Words that the option takes, where it takes no others. */
  readonly choices: readonly string[];
  /** Whether the value is a file's path. */
  readonly isPath: boolean;
  /** Whether it may be given more than once. */
  readonly many: boolean;
  /** Taken, so that the flags of a run will do, and not heeded. */
  readonly hidden: boolean;
}

type Described = ReturnType<typeof describeCommands>["commands"][number];

/** The program and its commands. */
export function commands(): CommandInfo[] {
  const program = describeCommands();
  return [
    info(program as unknown as Described, ""),
    ...program.commands.map((command) => info(command, command.name())),
  ];
}

function info(command: Described, name: string): CommandInfo {
  const help = command.createHelp();
  const visible = new Set(help.visibleOptions(command).map(({ flags }) => flags));
  const options = [
    ...help.visibleOptions(command),
    ...command.options.filter(({ flags }) => !visible.has(flags)),
  ];
  return {
    name,
    description: command.description(),
    arguments: command.registeredArguments.map((argument) => ({
      name: argument.name(),
      required: argument.required,
      choices: argument.argChoices ?? [],
    })),
    options: options.map((option): OptionInfo => {
      const row = ROWS.map(([, row]) => row)
        .find(({ flags, alias }) => [flags, alias?.flags].includes(option.flags));
      const placeholder = /<[^>]*>$/.exec(option.flags)?.[0];
      return {
        flags: option.flags,
        short: option.short,
        long: option.long ?? option.flags,
        placeholder,
        help: option.description,
        default: option.defaultValue === undefined ? undefined : String(option.defaultValue),
        choices: row?.parse?.choices ?? [],
        isPath: placeholder === "<path>",
        many: row?.many === true,
        hidden: !visible.has(option.flags),
      };
    }),
  };
}
