/** The command line: words in, checked options out. */
import {
  Argument,
  Command,
  CommanderError,
  Option,
  type OutputConfiguration,
} from "@commander-js/extra-typings";
import { isMapped, parseAddress } from "../config/address.ts";
import {
  type Address,
  DEFAULTS,
  type LevelName,
  type LogFormat,
  type Options,
  type ProtocolName,
  type SandboxMode,
  type UdpHeaderName,
} from "../config/options.ts";
import { checkCommand, type CheckRequest } from "./check.ts";

/** A command line that cannot be followed; the message is one line for the operator. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

const ROUTES_ACTIONS = ["up", "down", "show"] as const;
export type RoutesAction = (typeof ROUTES_ACTIONS)[number];

/** What the command line asks for. All but `check` take the flags of the service, as `options`. */
export type Request =
  | { readonly kind: "run"; readonly options: Options }
  | RoutesRequest
  | DoctorRequest
  | CheckRequest
  | { readonly kind: "print"; readonly text: string };

/** `routes up|down|show`. */
export interface RoutesRequest {
  readonly kind: "routes";
  readonly action: RoutesAction;
  readonly options: Options;
  /** Print what would be done, as commands, and do nothing. */
  readonly dryRun: boolean;
}

/** `doctor`. */
export interface DoctorRequest {
  readonly kind: "doctor";
  readonly options: Options;
  /** Print one JSON document in place of lines. */
  readonly json: boolean;
}

const MOST_SECONDS = 4_000_000;
/** The kernel's (tcp(7), TCP_KEEPIDLE). */
const MOST_KEEPALIVE = 32_767;
/** A timer of JavaScript ends at 24 days. */
const LONGEST_DELAY_S = 86_400;
/** Tables that the kernel itself uses (rt_tables, linux/rtnetlink.h): compat, default, main, local. */
const KERNEL_TABLES = [252, 253, 254, 255];

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

type Flags = ReturnType<ReturnType<typeof withServiceFlags>["opts"]>;

/** The options of a command that takes the service's flags. */
function readOptions(flags: Flags, given: (name: keyof Flags) => boolean): Options {
  return {
    ...upstreams(flags, given),
    ...(flags.allowedSubnets === undefined ? {} : { allowedSubnets: flags.allowedSubnets }),
    closeAfter: number("-c, --close-after", flags.closeAfter, 1, MOST_SECONDS, "seconds"),
    listenAddr: address("-l, --listen-addr", flags.listenAddr),
    listeners: number("--listeners", flags.listeners, 1, 1024, "listeners"),
    protocol: choice<ProtocolName>("-p, --protocol", flags.protocol, ["tcp", "udp", "both"]),
    mark: number("-m, --mark", flags.mark, 0, 0xffff_ffff),
    headerTimeout: number("--header-timeout", flags.headerTimeout, 3, MOST_SECONDS, "seconds"),
    connectTimeout: number("--connect-timeout", flags.connectTimeout, 1, MOST_SECONDS, "seconds"),
    keepalive: number("--keepalive", flags.keepalive, 0, MOST_KEEPALIVE, "seconds"),
    idleTimeout: number("--idle-timeout", flags.idleTimeout, 0, MOST_SECONDS, "seconds"),
    drainTimeout: number("--drain-timeout", flags.drainTimeout, 0, MOST_SECONDS, "seconds"),
    shutdownDelay: number("--shutdown-delay", flags.shutdownDelay, 0, LONGEST_DELAY_S, "seconds"),
    udpHeader: choice<UdpHeaderName>("--udp-header", flags.udpHeader, [
      "datagram",
      "session",
      "spp",
    ]),
    logLevel: choice<LevelName>("--log-level", flags.logLevel, [
      "error",
      "warn",
      "info",
      "access",
      "debug",
    ]),
    logFormat: choice<LogFormat>("--log-format", flags.logFormat, ["text", "json"]),
    autoRoutes: flags.autoRoutes === true,
    table: table("--table", flags.table),
    sandbox: choice<SandboxMode>("--sandbox", flags.sandbox, ["auto", "on", "off"]),
    ...(flags.metricsAddr === undefined
      ? {}
      : { metricsAddr: address("--metrics-addr", flags.metricsAddr) }),
  };
}

/**
 * The upstreams. Where one flag is given, the other family has none: its default could be a server that
 * nobody meant to publish.
 */
function upstreams(
  flags: Pick<Flags, "ipv4" | "ipv6">,
  given: (name: keyof Flags) => boolean,
): Pick<Options, "ipv4" | "ipv6"> {
  const neither = !given("ipv4") && !given("ipv6");
  const isNamed = (name: "ipv4" | "ipv6") =>
    (neither || given(name)) && flags[name].toLowerCase() !== NONE;
  if (!isNamed("ipv4") && !isNamed("ipv6")) {
    throw new UsageError(
      "Options -4, --ipv4 and -6, --ipv6: none is left to forward to; name one of them",
    );
  }
  return {
    ...(isNamed("ipv4") ? { ipv4: upstream("-4, --ipv4", flags.ipv4, 4) } : {}),
    ...(isNamed("ipv6") ? { ipv6: upstream("-6, --ipv6", flags.ipv6, 6) } : {}),
  };
}

/** Says outright that a family has no upstream. */
const NONE = "none";

function upstream(flag: string, value: string, family: 4 | 6): Address {
  const parsed = address(flag, value, family);
  // connect(2) to it does not reach a server: with a client's address it reaches that client's.
  if (parsed.bytes.every((byte) => byte === 0)) {
    return wrong(flag, value, `the address of a server, as ${DEFAULTS[`ipv${family}`]}`);
  }
  return parsed;
}

/** The whole command line; each command tells `asked` what it was asked for. */
function command(
  version: string,
  asked: (request: Request) => void,
  output: OutputConfiguration,
) {
  const program = withServiceFlags(new Command("mmproxy"))
    .description(
      "Takes PROXY protocol headers off TCP connections and UDP datagrams, and relays them to a " +
        "service from the client's own address.",
    )
    .usage(
      "[options]\n       mmproxy routes up|down|show [options]\n       mmproxy doctor [options]\n" +
        "       mmproxy check --config <path>",
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
  program.action((flags) => asked({ kind: "run", options: optionsOf(program, flags) }));
  program.addCommand(routesCommand(asked).copyInheritedSettings(program));
  program.addCommand(doctorCommand(asked).copyInheritedSettings(program));
  program.addCommand(checkCommand(asked).copyInheritedSettings(program));
  return program;
}

/** Those of the service's flags that `routes` heeds; the others are taken, so that the same line will do. */
const ROUTES_FLAGS = new Set(["ipv4", "ipv6", "listenAddr", "mark", "protocol", "table"]);

function routesCommand(asked: (request: Request) => void) {
  const routes = withServiceFlags(new Command("routes"));
  for (const option of routes.options) option.hideHelp(!ROUTES_FLAGS.has(option.attributeName()));
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
        options: optionsOf(routes, flags),
        dryRun: flags.dryRun === true,
      })
    );
}

/** Flags of the service on which nothing depends that the doctor checks; it takes them all the same. */
const NOT_THE_DOCTORS = new Set([
  "closeAfter",
  "headerTimeout",
  "keepalive",
  "idleTimeout",
  "drainTimeout",
  "shutdownDelay",
  "udpHeader",
  "logLevel",
  "logFormat",
]);

function doctorCommand(asked: (request: Request) => void) {
  const doctor = withServiceFlags(new Command("doctor"));
  for (const option of doctor.options) option.hideHelp(NOT_THE_DOCTORS.has(option.attributeName()));
  return doctor
    .description(
      "Checks whether the program would work, and prints the commands that mend what is wrong. Takes " +
        "the flags that the program itself is started with, and changes nothing.",
    )
    .option("--json", "print one JSON document")
    .action((flags) =>
      asked({ kind: "doctor", options: optionsOf(doctor, flags), json: flags.json === true })
    );
}

function optionsOf(command: { getOptionValueSource(key: string): unknown }, flags: Flags): Options {
  return readOptions(flags, (name) => command.getOptionValueSource(name) === "cli");
}

/** Gives a command the flags of the service. */
function withServiceFlags(command: Command) {
  return command
    .addOption(flag(
      "-4, --ipv4 <addr>",
      "where IPv4 traffic is forwarded; none refuses IPv4 clients, as -6 alone does",
      DEFAULTS.ipv4,
    ))
    .addOption(flag(
      "-6, --ipv6 <addr>",
      "where IPv6 traffic is forwarded; none refuses IPv6 clients, as -4 alone does",
      DEFAULTS.ipv6,
    ))
    .addOption(
      new Option(
        "-a, --allowed-subnets <path>",
        "file with the subnets of the proxies that may send headers (default: all may)",
      ),
    )
    .addOption(
      flag(
        "-c, --close-after <n>",
        "seconds after which an idle UDP flow ends",
        DEFAULTS.closeAfter,
      ),
    )
    .addOption(flag("-l, --listen-addr <addr>", "where to listen", DEFAULTS.listenAddr))
    .addOption(
      flag("--listeners <n>", "listener workers, each with its own socket", DEFAULTS.listeners),
    )
    .addOption(flag("-p, --protocol <p>", "tcp, udp or both", DEFAULTS.protocol))
    .addOption(flag("-m, --mark <n>", "mark on the outbound packets", DEFAULTS.mark))
    .addOption(
      flag(
        "--header-timeout <s>",
        "seconds for a whole TCP header, 3 at least",
        DEFAULTS.headerTimeout,
      ),
    )
    .addOption(
      flag("--connect-timeout <s>", "seconds for the service to accept", DEFAULTS.connectTimeout),
    )
    .addOption(
      flag(
        "--keepalive <s>",
        "seconds of silence after which a TCP connection's host is asked whether it is there, on both " +
          "sides; 0: as the system says",
        DEFAULTS.keepalive,
      ),
    )
    .addOption(
      flag(
        "--idle-timeout <s>",
        "seconds without a byte after which a TCP connection ends; 0: never",
        DEFAULTS.idleTimeout,
      ),
    )
    .addOption(
      flag(
        "--drain-timeout <s>",
        "seconds that connections may go on after SIGTERM or SIGINT",
        DEFAULTS.drainTimeout,
      ),
    )
    .addOption(
      flag(
        "--shutdown-delay <s>",
        "seconds that new connections are still taken before that, while /readyz says no",
        DEFAULTS.shutdownDelay,
      ),
    )
    .addOption(
      flag(
        "--udp-header <where>",
        "datagram: every datagram has a header; session: a peer's first one; spp: Cloudflare's " +
          "Simple Proxy Protocol",
        DEFAULTS.udpHeader,
      ),
    )
    .addOption(flag("--log-level <level>", "error, warn, info, access or debug", DEFAULTS.logLevel))
    .addOption(flag("--log-format <format>", "text or json", DEFAULTS.logFormat))
    .option(
      "--auto-routes",
      "set the routes that replies need at the start, remove them at the end",
    )
    .addOption(flag("--table <n>", "the routing table of those routes", DEFAULTS.table))
    .addOption(
      flag(
        "--sandbox <mode>",
        "what the program gives up before it serves. auto: as much as the system allows; on: all of " +
          "it, or do not start; off: nothing",
        DEFAULTS.sandbox,
      ),
    )
    .addOption(
      new Option(
        "--metrics-addr <addr>",
        "where /metrics, /healthz and /readyz are served over HTTP; needs --allow-net=<addr>",
      ),
    );
}

const EPILOGUE = `
Example:
  mmproxy -l 0.0.0.0:8443 -4 127.0.0.1:443 -a /etc/mmproxy/subnets --auto-routes

Signals: SIGINT or SIGTERM stops accepting after --shutdown-delay and lets connections finish for up to
--drain-timeout; a second one ends at once. SIGHUP reads the subnet file again. SIGUSR1 does nothing.
Exit codes: 0 stopped, 1 cannot run, 2 wrong command line.`;

function flag<const Flags extends string>(flags: Flags, description: string, value: string) {
  return new Option(flags, description).default(value);
}

function address(flag: string, value: string, family?: 4 | 6): Address {
  const form = { 4: "an IPv4 address and port", 6: "an IPv6 address and port" };
  const example = family === 6 ? DEFAULTS.ipv6 : DEFAULTS.ipv4;
  const expected = family ? form[family] : "an IP address and port";
  const parsed = parseAddress(value);
  if (!parsed || (family && parsed.family !== family)) {
    return wrong(flag, value, `${expected}, as ${example}`);
  }
  if (family === 6 && isMapped(parsed.bytes)) {
    return wrong(flag, value, `${expected}: this one is IPv4, which is for -4`);
  }
  return parsed;
}

function number(flag: string, value: string, least: number, most: number, unit = ""): number {
  const plain = /^(\d{1,10}|0[xX][0-9a-fA-F]{1,8})$/.test(value);
  const parsed = Number(value);
  if (!plain || parsed < least || parsed > most) {
    return wrong(flag, value, `a whole number from ${least} to ${most}${unit && ` (${unit})`}`);
  }
  return parsed;
}

function table(flag: string, value: string): number {
  const parsed = number(flag, value, 1, 0xffff_ffff);
  if (!KERNEL_TABLES.includes(parsed)) return parsed;
  return wrong(flag, value, "a table of its own: 252 to 255 are the kernel's");
}

function choice<T extends string>(flag: string, value: string, choices: readonly T[]): T {
  const chosen = choices.find((choice) => choice === value.toLowerCase());
  return chosen ?? wrong(flag, value, choices.join(", ").replace(/, ([^,]*)$/, " or $1"));
}

function wrong(flag: string, value: string, expected: string): never {
  throw new UsageError(`Option ${flag}: ${JSON.stringify(value)} is not ${expected}`);
}

function capitalise(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
