/** The command line: words in, checked options out. */
import {
  Argument,
  Command,
  CommanderError,
  Option,
  type OutputConfiguration,
} from "@commander-js/extra-typings";
import { type Environment, inherit, NO_ENVIRONMENT } from "./environment.ts";
import { checkCommand, type CheckRequest } from "./check.ts";
import { controlCommands, type ControlRequest } from "./control.ts";
import { helpCommand, type HelpRequest } from "./help.ts";
import { GROUPS, type Heeder, namesOf, type Row, ROWS } from "./options.ts";
import type { Setup, Typed } from "./setup.ts";
import { flagsOf, suggestion } from "./suggestion.ts";
import { setupFrom } from "./typed.ts";
import { UsageError } from "./usage_error.ts";

const ROUTES_ACTIONS = ["up", "down", "show"] as const;
export type RoutesAction = (typeof ROUTES_ACTIONS)[number];

/** What the command line requests. What looks at a run takes its flags, as `setup`. */
export type Request =
  | { readonly kind: "run"; readonly setup: Setup }
  | RoutesRequest
  | DoctorRequest
  | CheckRequest
  | ControlRequest
  | HelpRequest
  | { readonly kind: "print"; readonly text: string };

/** `routes up|down|show`. */
export interface RoutesRequest {
  readonly kind: "routes";
  readonly action: RoutesAction;
  readonly setup: Setup;
  /** Print what would be done, as commands, and do nothing. */
  readonly dryRun: boolean;
}

/** `doctor`. */
export interface DoctorRequest {
  readonly kind: "doctor";
  readonly setup: Setup;
  /** Print one JSON document instead of lines. */
  readonly json: boolean;
  /** Set what can be set. */
  readonly fix: boolean;
  /** Do so without a question. */
  readonly yes: boolean;
}

/**
 * Reads a command line.
 *
 * @param args the words behind the program's name
 * @param version what `--version` prints
 * @param environment gives the options that are not typed
 * @throws {UsageError} naming the flag, its value and what was expected
 */
export function parseArguments(
  args: readonly string[],
  version: string,
  environment: Environment = NO_ENVIRONMENT,
): Request {
  let printed = "";
  // Set by whichever command was requested: without one, commander throws.
  let request!: Request;
  const program = command(version, (asked) => request = asked, environment, {
    writeOut: (text) => printed += text,
    writeErr: () => {},
    // Left to itself, it asks the environment about colours, which needs --allow-env.
    getOutHasColors: () => false,
    getOutHelpWidth: () => HELP_WIDTH,
  });
  try {
    program.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { kind: "print", text: printed };
    throw new UsageError(`${problemOf(error, program, args)}; see --help`);
  }
  return request;
}

/** Every command with its options, to describe and not to run: for the man page and completions. */
export function describeCommands() {
  return command("", () => {}, NO_ENVIRONMENT, {});
}

/** What commander refuses, in one line, and what was probably meant. */
function problemOf(error: CommanderError, program: Command, args: readonly string[]): string {
  const problem = capitalise(error.message.replace(/^error: |\.$/g, "").replaceAll("\n", " "));
  switch (error.code) {
    case "commander.unknownOption": {
      const [, word = ""] = /'([^']*)'/.exec(problem) ?? [];
      return problem + suggestion(word.replace(/=.*$/, ""), flagsOf(program, args));
    }
    case "commander.excessArguments": {
      const word = program.args[0];
      // A command's own arguments are its own to count.
      if (word === undefined || program.commands.some((command) => command.name() === word)) {
        return problem;
      }
      const names = program.commands.map((command) => command.name());
      const short = args.find((arg) => flagsOf(program, args).includes(`-${arg}`));
      if (short !== undefined) return `Option ${short} needs two dashes: -${short}`;
      return `Unknown command '${word}'${suggestion(word, names)}`;
    }
  }
  return problem;
}

/** The complete command line; each command passes its request to `asked`. */
function command(
  version: string,
  asked: (request: Request) => void,
  environment: Environment,
  output: OutputConfiguration,
) {
  const program = withOptions(new Command("mmproxy"))
    .description(
      "Removes the PROXY protocol header from TCP connections and UDP datagrams, and forwards them to " +
        "an upstream from the client's own address.",
    )
    .usage(
      "[options]\n       mmproxy <command> [options]\n       mmproxy help [topic]",
    )
    .helpOption("-h, --help", "print this help")
    .helpCommand(false)
    .version(`mmproxy ${version}`, "--version", "print the version")
    .addHelpText("after", EPILOGUE)
    // Flags behind a subcommand's name are the subcommand's.
    .enablePositionalOptions()
    .allowExcessArguments(false)
    .showSuggestionAfterError(false)
    .exitOverride()
    .configureOutput(output);
  program.action(() => asked({ kind: "run", setup: setupOf(program, environment) }));
  program.addCommand(routesCommand(asked, environment).copyInheritedSettings(program));
  program.addCommand(doctorCommand(asked, environment).copyInheritedSettings(program));
  for (const command of [checkCommand(asked), ...controlCommands(asked)]) {
    inherit(command, environment);
    program.addCommand(command.copyInheritedSettings(program));
  }
  program.addCommand(helpCommand(asked).copyInheritedSettings(program));
  return program;
}

function routesCommand(asked: (request: Request) => void, environment: Environment) {
  const routes = withOptions(new Command("routes"), "routes");
  return routes
    .description(
      "Sets (up), removes (down) or checks (show) the routing that brings the upstream's replies to " +
        "clients back to this program. Takes the flags of a run.",
    )
    .addArgument(new Argument("<action>", "what to do").choices(ROUTES_ACTIONS))
    .option("--dry-run", "print the equivalent commands and change nothing")
    .action((action, flags) =>
      asked({
        kind: "routes",
        action,
        setup: setupOf(routes, environment),
        dryRun: flags.dryRun === true,
      })
    );
}

function doctorCommand(asked: (request: Request) => void, environment: Environment) {
  const doctor = withOptions(new Command("doctor"), "doctor");
  return doctor
    .description(
      "Checks whether a run with these flags would work, and prints the commands that fix problems. " +
        "Changes nothing without --fix.",
    )
    .option("--json", "print one JSON document")
    .option("--fix", "set missing routes and wrong kernel parameters, after confirmation")
    .option("--yes", "with --fix: do not ask for confirmation")
    .action(({ json, fix, yes }) => {
      if (yes && !fix) throw new UsageError("Option --yes: only with --fix");
      const isSet = (flag: unknown) => flag === true;
      const setup = setupOf(doctor, environment);
      asked({ kind: "doctor", setup, json: isSet(json), fix: isSet(fix), yes: isSet(yes) });
    });
}

/** Gives a command the options of a run; its help names those that it uses. */
function withOptions(command: Command, heeder?: Heeder): Command {
  for (const [heading, row] of inGroups()) {
    const isHidden = heeder !== undefined && !row.heeders.includes(heeder);
    for (const option of optionsOf(row)) {
      command.addOption(option.hideHelp(isHidden).helpGroup(heading));
    }
  }
  return command.addOption(
    new Option(
      "--config <path>",
      "TOML file with any number of listeners, instead of the flags for a single one (docs/config.md)",
    ).helpGroup(PROCESS),
  );
}

/** The rows below their headings; those that have none come last, below the process's. */
function inGroups(): [heading: string, row: Row][] {
  const rows = new Map(ROWS);
  const grouped = Object.entries(GROUPS).flatMap(([heading, keys]) =>
    keys.map((key) => [heading, key] as const)
  );
  const known = new Set(grouped.map(([, key]) => key));
  const others = ROWS.filter(([key]) => !known.has(key)).map(([key]) => [PROCESS, key] as const);
  return [...grouped, ...others].flatMap(([heading, key]) => {
    const row = rows.get(key);
    return row ? [[heading, row]] : [];
  });
}

/** Commander's options of a row: itself, and its alias. */
function optionsOf(row: Row): Option[] {
  const option = new Option(row.flags, row.help);
  // The second is for the help, which would put the first into quotes.
  if (row.default !== undefined) option.default(row.default, row.default);
  if (row.many) {
    // What was there before the first is the default.
    option.argParser((text, before: unknown) => Array.isArray(before) ? [...before, text] : [text]);
  }
  return row.alias ? [option, new Option(row.alias.flags, row.alias.help)] : [option];
}

interface Parsed {
  opts(): object;
  getOptionValueSource(key: string): unknown;
}

/** @throws {UsageError} */
function setupOf(command: Parsed, environment: Environment): Setup {
  const { config } = command.opts() as { config?: string };
  return setupFrom((given) => found(command, given), config, environment);
}

function found(command: Parsed, given: Pick<Row, "flags">): Typed {
  const key = new Option(given.flags).attributeName();
  const value = (command.opts() as Record<string, Typed["value"]>)[key];
  return {
    isTyped: command.getOptionValueSource(key) === "cli",
    value,
    names: namesOf(given),
  };
}

/** Fits a terminal of 80 columns, the narrowest that is common. */
const HELP_WIDTH = 79;
const PROCESS = "Process:";
const EPILOGUE = `
Example:
  mmproxy -l 0.0.0.0:8443 -4 127.0.0.1:443 -a subnets.txt --auto-routes

Every flag is also an environment variable, for example MMPROXY_LISTEN_ADDR for
--listen-addr. Flags override variables, and variables override --config.

Signals: SIGINT or SIGTERM stops accepting after --shutdown-delay and lets
open connections finish for up to --drain-timeout; a second one ends the
program at once. SIGHUP reloads the configuration and subnet files. SIGUSR2
upgrades, which needs --control. SIGUSR1 has no effect.
Exit codes: 0 clean stop; 1 cannot run now; 2 invalid command line or file, or
missing permission: starting it again does not help.`;

function capitalise(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
