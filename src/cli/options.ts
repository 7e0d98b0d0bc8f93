/**
 * The table of options: a flag stands here and nowhere else. From it come commander's options, how each
 * is parsed, the help of each command, and command lines to paste.
 */
import { isMapped, parseAddress } from "../config/address.ts";
import {
  type Address,
  DEFAULTS,
  hasDefaultServices,
  type LevelName,
  type LogFormat,
  type Options,
  type ProtocolName,
  type SandboxMode,
  type UdpHeaderName,
} from "../config/options.ts";
import { UsageError } from "./usage_error.ts";

/** A command that heeds only some options. A run heeds all of them. */
export type Heeder = "routes" | "doctor";

/** Reads what was typed. Throws a `UsageError` that names the flag, the value and what was expected. */
type Parse<T> = (text: string, names: string) => T;

/** One option. */
export interface Row<T = unknown> {
  /** For commander: `-m, --mark <n>`; without a placeholder it is a switch. */
  readonly flags: string;
  readonly help: string;
  /** The commands that heed it beside a run; the others take it, so that the same line will do. */
  readonly heeders: readonly Heeder[];
  /** As it is typed. Without one the option may be absent. */
  readonly default?: string;
  /** A switch needs none. */
  readonly parse?: Parse<T>;
  /** How the value is typed again; none where it goes without saying. */
  readonly text?: (options: Options) => string | undefined;
}

type Key = keyof Options;
/** The options whose presence alone says everything. */
type SwitchKey = { [K in Key]-?: Options[K] extends boolean ? K : never }[Key];
type ValueKey = Exclude<Key, SwitchKey>;

type Table =
  & { readonly [K in ValueKey]-?: Row<NonNullable<Options[K]>> & { readonly parse: unknown } }
  & { readonly [K in SwitchKey]: Row<never> & { readonly parse?: never } };

const MOST_SECONDS = 4_000_000;
/** The kernel's (tcp(7), TCP_KEEPIDLE). */
const MOST_KEEPALIVE = 32_767;
/** A timer of JavaScript ends at 24 days. */
const LONGEST_DELAY_S = 86_400;
/** Tables that the kernel itself uses (rt_tables, linux/rtnetlink.h): compat, default, main, local. */
const KERNEL_TABLES = [252, 253, 254, 255];
/** Says outright that a family has no upstream. */
export const NONE = "none";

const ROUTES: readonly Heeder[] = ["routes", "doctor"];
const DOCTOR: readonly Heeder[] = ["doctor"];
const RUN: readonly Heeder[] = [];

/** In the order of the help. */
export const OPTIONS: Table = {
  ipv4: {
    flags: "-4, --ipv4 <addr>",
    help: "where IPv4 traffic is forwarded; none refuses IPv4 clients, as -6 alone does",
    heeders: ROUTES,
    default: DEFAULTS.ipv4,
    parse: upstream(4),
    text: upstreamText("ipv4"),
  },
  ipv6: {
    flags: "-6, --ipv6 <addr>",
    help: "where IPv6 traffic is forwarded; none refuses IPv6 clients, as -4 alone does",
    heeders: ROUTES,
    default: DEFAULTS.ipv6,
    parse: upstream(6),
    text: upstreamText("ipv6"),
  },
  allowedSubnets: {
    flags: "-a, --allowed-subnets <path>",
    help: "file with the subnets of the proxies that may send headers (default: all may)",
    heeders: DOCTOR,
    parse: (text) => text,
  },
  closeAfter: {
    flags: "-c, --close-after <n>",
    help: "seconds after which an idle UDP flow ends",
    heeders: RUN,
    default: DEFAULTS.closeAfter,
    parse: number(1, MOST_SECONDS, "seconds"),
  },
  listenAddr: {
    flags: "-l, --listen-addr <addr>",
    help: "where to listen",
    heeders: ROUTES,
    default: DEFAULTS.listenAddr,
    parse: address(),
  },
  listeners: {
    flags: "--listeners <n>",
    help: "listener workers, each with its own socket",
    heeders: DOCTOR,
    default: DEFAULTS.listeners,
    parse: number(1, 1024, "listeners"),
  },
  protocol: {
    flags: "-p, --protocol <p>",
    help: "tcp, udp or both",
    heeders: ROUTES,
    default: DEFAULTS.protocol,
    parse: choice<ProtocolName>("tcp", "udp", "both"),
  },
  mark: {
    flags: "-m, --mark <n>",
    help: "mark on the outbound packets",
    heeders: ROUTES,
    default: DEFAULTS.mark,
    parse: number(0, 0xffff_ffff),
  },
  headerTimeout: {
    flags: "--header-timeout <s>",
    help: "seconds for a whole TCP header, 3 at least",
    heeders: RUN,
    default: DEFAULTS.headerTimeout,
    parse: number(3, MOST_SECONDS, "seconds"),
  },
  connectTimeout: {
    flags: "--connect-timeout <s>",
    help: "seconds for the service to accept",
    heeders: DOCTOR,
    default: DEFAULTS.connectTimeout,
    parse: number(1, MOST_SECONDS, "seconds"),
  },
  keepalive: {
    flags: "--keepalive <s>",
    help:
      "seconds of silence after which a TCP connection's host is asked whether it is there, on both " +
      "sides; 0: as the system says",
    heeders: RUN,
    default: DEFAULTS.keepalive,
    parse: number(0, MOST_KEEPALIVE, "seconds"),
  },
  idleTimeout: {
    flags: "--idle-timeout <s>",
    help: "seconds without a byte after which a TCP connection ends; 0: never",
    heeders: RUN,
    default: DEFAULTS.idleTimeout,
    parse: number(0, MOST_SECONDS, "seconds"),
  },
  drainTimeout: {
    flags: "--drain-timeout <s>",
    help: "seconds that connections may go on after SIGTERM or SIGINT",
    heeders: RUN,
    default: DEFAULTS.drainTimeout,
    parse: number(0, MOST_SECONDS, "seconds"),
  },
  shutdownDelay: {
    flags: "--shutdown-delay <s>",
    help: "seconds that new connections are still taken before that, while /readyz says no",
    heeders: RUN,
    default: DEFAULTS.shutdownDelay,
    parse: number(0, LONGEST_DELAY_S, "seconds"),
  },
  udpHeader: {
    flags: "--udp-header <where>",
    help: "datagram: every datagram has a header; session: a peer's first one; spp: Cloudflare's " +
      "Simple Proxy Protocol",
    heeders: RUN,
    default: DEFAULTS.udpHeader,
    parse: choice<UdpHeaderName>("datagram", "session", "spp"),
  },
  logLevel: {
    flags: "--log-level <level>",
    help: "error, warn, info, access or debug",
    heeders: RUN,
    default: DEFAULTS.logLevel,
    parse: choice<LevelName>("error", "warn", "info", "access", "debug"),
  },
  logFormat: {
    flags: "--log-format <format>",
    help: "text or json",
    heeders: RUN,
    default: DEFAULTS.logFormat,
    parse: choice<LogFormat>("text", "json"),
  },
  autoRoutes: {
    flags: "--auto-routes",
    help: "set the routes that replies need at the start, remove them at the end",
    heeders: DOCTOR,
  },
  table: {
    flags: "--table <n>",
    help: "the routing table of those routes",
    heeders: ROUTES,
    default: DEFAULTS.table,
    parse: table,
  },
  sandbox: {
    flags: "--sandbox <mode>",
    help:
      "what the program gives up before it serves. auto: as much as the system allows; on: all of " +
      "it, or do not start; off: nothing",
    heeders: DOCTOR,
    default: DEFAULTS.sandbox,
    parse: choice<SandboxMode>("auto", "on", "off"),
  },
  metricsAddr: {
    flags: "--metrics-addr <addr>",
    help: "where /metrics, /healthz and /readyz are served over HTTP; needs --allow-net=<addr>",
    heeders: DOCTOR,
    parse: address(),
  },
};

/** The rows with their keys, in the order of the help. */
export const ROWS = Object.entries(OPTIONS) as [Key, Row][];

/** The names of an option: `-m, --mark`. */
export function namesOf({ flags }: Pick<Row, "flags">): string {
  return flags.replace(/ <.*$/, "");
}

/** What commander found for each key. */
export type Typed = Readonly<Partial<Record<Key, unknown>>>;

/**
 * The options that were typed, or are the defaults of those that were not.
 *
 * @param isTyped whether a key's value is not its default
 * @throws {UsageError} about the first that is wrong
 */
export function parseOptions(typed: Typed, isTyped: (key: Key) => boolean): Options {
  const wanted = ROWS.filter(([key]) => isWanted(key, typed, isTyped));
  const read = wanted.map(([key, row]) => [key, valueOf(row, typed[key])]);
  return Object.fromEntries(read.filter(([, value]) => value !== undefined)) as unknown as Options;
}

function valueOf(row: Row, typed: unknown): unknown {
  if (!row.parse) return typed === true;
  return typed === undefined ? undefined : row.parse(String(typed), namesOf(row));
}

/**
 * Where one upstream is typed, the other family has none: its default could be a server that nobody
 * meant to publish.
 */
function isWanted(key: Key, typed: Typed, isTyped: (key: Key) => boolean): boolean {
  if (key !== "ipv4" && key !== "ipv6") return true;
  const isNamed = (name: "ipv4" | "ipv6") =>
    (isTyped(name) || !isTyped("ipv4") && !isTyped("ipv6")) &&
    String(typed[name]).toLowerCase() !== NONE;
  if (!isNamed("ipv4") && !isNamed("ipv6")) {
    throw new UsageError(
      `Options ${namesOf(OPTIONS.ipv4)} and ${
        namesOf(OPTIONS.ipv6)
      }: none is left to forward to; name one of them`,
    );
  }
  return isNamed(key);
}

/** Words that give the options again that a command heeds, without those at their defaults. */
export function typeOptions(options: Options, heeder: Heeder): string[] {
  return ROWS.filter(([, { heeders }]) => heeders.includes(heeder)).flatMap(([key, row]) => {
    const name = row.flags.split(/,? /)[0] ?? "";
    if (!row.parse) return options[key] === true ? [name] : [];
    const text = row.text ? row.text(options) : plainText(options[key], row.default);
    return text === undefined ? [] : [name, text];
  });
}

function plainText(value: Options[Key], unless: string | undefined): string | undefined {
  if (value === undefined) return undefined;
  const text = typeof value === "object" ? value.text : String(value);
  return text === unless ? undefined : text;
}

/** One alone says that the other's clients are refused, even where it is the default. */
function upstreamText(key: "ipv4" | "ipv6") {
  return (options: Options) => hasDefaultServices(options) ? undefined : options[key]?.text;
}

function upstream(family: 4 | 6): Parse<Address> {
  const parse = address(family);
  return (text, names) => {
    const parsed = parse(text, names);
    // connect(2) to it does not reach a server: with a client's address it reaches that client's.
    if (parsed.bytes.every((byte) => byte === 0)) {
      return wrong(names, text, `the address of a server, as ${DEFAULTS[`ipv${family}`]}`);
    }
    return parsed;
  };
}

function address(family?: 4 | 6): Parse<Address> {
  const form = { 4: "an IPv4 address and port", 6: "an IPv6 address and port" };
  const example = family === 6 ? DEFAULTS.ipv6 : DEFAULTS.ipv4;
  const expected = family ? form[family] : "an IP address and port";
  return (text, names) => {
    const parsed = parseAddress(text);
    if (!parsed || (family && parsed.family !== family)) {
      return wrong(names, text, `${expected}, as ${example}`);
    }
    if (family === 6 && isMapped(parsed.bytes)) {
      return wrong(names, text, `${expected}: this one is IPv4, which is for -4`);
    }
    return parsed;
  };
}

function number(least: number, most: number, unit = ""): Parse<number> {
  return (text, names) => {
    const plain = /^(\d{1,10}|0[xX][0-9a-fA-F]{1,8})$/.test(text);
    const parsed = Number(text);
    if (!plain || parsed < least || parsed > most) {
      return wrong(names, text, `a whole number from ${least} to ${most}${unit && ` (${unit})`}`);
    }
    return parsed;
  };
}

function table(text: string, names: string): number {
  const parsed = number(1, 0xffff_ffff)(text, names);
  if (!KERNEL_TABLES.includes(parsed)) return parsed;
  return wrong(names, text, "a table of its own: 252 to 255 are the kernel's");
}

function choice<T extends string>(...choices: readonly T[]): Parse<T> {
  return (text, names) =>
    choices.find((choice) => choice === text.toLowerCase()) ??
      wrong(names, text, choices.join(", ").replace(/, ([^,]*)$/, " or $1"));
}

function wrong(names: string, value: string, expected: string): never {
  throw new UsageError(`Option ${names}: ${JSON.stringify(value)} is not ${expected}`);
}
