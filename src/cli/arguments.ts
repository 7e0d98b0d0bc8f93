/** The command line: words in, checked options out. */
import {
  Argument,
  Command,
  CommanderError,
  Option,
  type OutputConfiguration,
} from "@commander-js/extra-typings";
import { checkCommand, type CheckRequest } from "./check.ts";
import { controlCommands, type ControlRequest } from "./control.ts";
import { helpCommand, type HelpRequest } from "./help.ts";
import { type Heeder, type Key, namesOf, type Row, ROWS } from "./options.ts";
import { readSetup, type Setup, type Typed, type TypedOptions } from "./setup.ts";
import { UsageError } from "./usage_error.ts";

const ROUTES_ACTIONS = ["up", "down", "show"] as const;
export type RoutesAction = (typeof ROUTES_ACTIONS)[number];

/** What the command line asks for. What looks at a run takes its flags, as `setup`. */
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
  /** Print one JSON document in place of lines. */
  readonly json: boolean;
}

/**
 * Reads a command line.
 *
 * @param args the words behind the program's name
 * @param version what `--version` prints
 * @throws {UsageError} naming the flag, its value and what was expected
 */
export function parseArguments(args: readonly string[], version: string): Request {
  let printed = "";
  // Set by whichever command was asked for: without one, commander throws.
  let request!: Request;
  const program = command(version, (asked) => request = asked, {
    writeOut: (text) => printed += text,
    writeErr: () => {},
    // Left to itself, it asks the environment about colours, which needs --allow-env.
    getOutHasColors: () => false,
  });
  try {
    program.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { kind: "print", text: printed };
    const problem = error.message.replace(/^error: |\.$/g, "").replaceAll("\n", " ");
    throw new UsageError(`${capitalise(problem)}; see --help`);
  }
  return request;
}

/** Every command with its options, to describe and not to run: for the man page and completions. */
export function describeCommands() {
  return command("", () => {}, {});
}

/** The whole command line; each command tells `asked` what it was asked for. */
function command(
  version: string,
  asked: (request: Request) => void,
  output: OutputConfiguration,
) {
  const program = withOptions(new Command("mmproxy"))
    .description(
      "Takes PROXY protocol headers off TCP connections and UDP datagrams, and relays them to a " +
        "service from the client's own address.",
    )
    .usage(
      "[options]\n       mmproxy routes up|down|show [options]\n       mmproxy doctor [options]\n" +
        "       mmproxy check --config <path>\n" +
        "       mmproxy status|connections|close|reload|top --control <path>\n" +
        "       mmproxy help [topic]",
    )
    .helpOption("-h, --help", "print this help")
    .helpCommand(false)
    .version(`mmproxy ${version}`, "--version", "print the version")
    .addHelpText("after", EPILOGUE)
    // Flags behind a subcommand's name are the subcommand's.
    .enablePositionalOptions()
    .allowExcessArguments(false)
    .exitOverride()
    .configureOutput(output);
  program.action(() => asked({ kind: "run", setup: setupOf(program) }));
  program.addCommand(routesCommand(asked).copyInheritedSettings(program));
  program.addCommand(doctorCommand(asked).copyInheritedSettings(program));
  program.addCommand(checkCommand(asked).copyInheritedSettings(program));
  for (const command of controlCommands(asked)) {
    program.addCommand(command.copyInheritedSettings(program));
  }
  program.addCommand(helpCommand(asked).copyInheritedSettings(program));
  return program;
}

function routesCommand(asked: (request: Request) => void) {
  const routes = withOptions(new Command("routes"), "routes");
  return routes
    .description(
      "Sets (up), removes (down) or checks (show) the routing that brings the service's replies to " +
        "clients back to this program. Takes the flags that the program itself is started with.",
    )
    .addArgument(new Argument("<action>", "what to do").choices(ROUTES_ACTIONS))
    .option("--dry-run", "print the commands that do the same, and do nothing")
    .action((action, flags) =>
      asked({
        kind: "routes",
        action,
        setup: setupOf(routes),
        dryRun: flags.dryRun === true,
      })
    );
}

function doctorCommand(asked: (request: Request) => void) {
  const doctor = withOptions(new Command("doctor"), "doctor");
  return doctor
    .description(
      "Checks whether the program would work, and prints the commands that mend what is wrong. Takes " +
        "the flags that the program itself is started with, and changes nothing.",
    )
    .option("--json", "print one JSON document")
    .action((flags) =>
      asked({ kind: "doctor", setup: setupOf(doctor), json: flags.json === true })
    );
}

/** Gives a command the options of a run; its help names those that it heeds. */
function withOptions(command: Command, heeder?: Heeder): Command {
  for (const [, row] of ROWS) {
    const isHidden = heeder !== undefined && !row.heeders.includes(heeder);
    for (const option of optionsOf(row)) command.addOption(option.hideHelp(isHidden));
  }
  return command.addOption(
    new Option(
      "--config <path>",
      "a TOML file with any number of listeners, in place of the flags for one; docs/config.md",
    ),
  );
}

/** Commander's options of a row: itself, and its alias. */
function optionsOf(row: Row): Option[] {
  const option = new Option(row.flags, row.help);
  if (row.default !== undefined) option.default(row.default);
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
function setupOf(command: Parsed): Setup {
  const rows = ROWS.map(([key, row]): [Key, Typed] => [key, typedOf(command, row)]);
  const { config } = command.opts() as { config?: string };
  return readSetup(Object.fromEntries(rows) as TypedOptions, config);
}

function typedOf(command: Parsed, row: Row): Typed {
  const [own, alias] = [row, row.alias].map((given) => given && found(command, given));
  if (!own) throw new Error(`no option ${row.flags}`);
  if (!alias?.isTyped) return own;
  if (own.isTyped) {
    throw new UsageError(`Options ${own.names} and ${alias.names}: they are one, name it once`);
  }
  return alias;
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

const EPILOGUE = `
Example:
  mmproxy -l 0.0.0.0:8443 -4 127.0.0.1:443 -a /etc/mmproxy/subnets --auto-routes

Signals: SIGINT or SIGTERM stops accepting after --shutdown-delay and lets connections finish for up to
--drain-timeout; a second one ends at once. SIGHUP reads the subnet file again. SIGUSR1 does nothing.
Exit codes: 0 stopped, 1 cannot run, 2 wrong command line.`;

function capitalise(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
