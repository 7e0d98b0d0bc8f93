/**
 * The table of options: each flag is defined here only. Commander's options, their parsers, the help of each command,
 * and command lines to paste are derived from it.
 */
import { parseAddress } from "../config/address.ts";
import { addressHint } from "../config/address_hint.ts";
import { BOUNDS, type Bounds, KERNEL_TABLES, MOST_SOCKET_PATH } from "../config/bounds.ts";
import { type Destination, parseDestination } from "../config/destinations.ts";
import {
  type AllowedSubnets,
  type ListenerConfig,
  MODEL_DEFAULTS,
  type ProxyConfig,
  type UpstreamPolicy,
} from "../config/model.ts";
import {
  type Address,
  type ColorMode,
  DEFAULTS,
  hasDefaultServices,
  type LevelName,
  type LogFormat,
  type OffloadMode,
  type ProtocolName,
  type SandboxMode,
  type UdpHeaderName,
} from "../config/options.ts";
import { Problem } from "../config/problem.ts";
import { parsePortRange, type PortRange } from "../config/ranges.ts";
import { NONE, parseUpstream, type Upstream } from "../config/upstreams.ts";
import { UsageError } from "./usage_error.ts";

/** A command that uses only some options. A run uses all of them. */
export type Heeder = "routes" | "doctor";

/** Reads what was typed. Throws a `UsageError` that names the flag, the value and what was expected. */
interface Parse<T> {
  (text: string, names: string): T;
  /** The words that it takes, where it takes no others. */
  readonly choices?: readonly string[];
}

/** One option. */
export interface Row<T = unknown> {
  /** The owner of the option: with `--config`, the file configures the listeners. */
  readonly of: "proxy" | "listener";
  /** For commander: `-m, --mark <n>`; without a placeholder it is a switch. */
  readonly flags: string;
  readonly help: string;
  /** The commands that use it, apart from a run; the others accept it, so that they take the same flags. */
  readonly heeders: readonly Heeder[];
  /** As it is typed. Without one the option may be absent. */
  readonly default?: string;
  /** A flag that means the same. */
  readonly alias?: Pick<Row, "flags" | "help">;
  /** Whether it may be typed more than once; `parse` then takes each. */
  readonly many?: true;
  /** A switch needs none. */
  readonly parse?: Parse<T>;
  /** How the value is typed again, once for each; nothing if it goes without saying. */
  readonly texts?: (listener: ListenerConfig) => readonly string[];
}

type ProxyKey =
  | "workers"
  | "drainTimeout"
  | "shutdownDelay"
  | "upgradeDrain"
  | "logLevel"
  | "logFormat"
  | "color"
  | "autoRoutes"
  | "watch"
  | "table"
  | "sandbox"
  | "offload"
  | "metricsAddr"
  | "control"
  | "takeOver";
type ListenerKey =
  | "ipv4"
  | "ipv6"
  | "allowedSubnets"
  | "closeAfter"
  | "listen"
  | "transparent"
  | "upstream"
  | "allowedDestinations"
  | "protocol"
  | "mark"
  | "headerTimeout"
  | "connectTimeout"
  | "keepalive"
  | "idleTimeout"
  | "udpHeader";
export type Key = ProxyKey | ListenerKey;

/** What `parse` gives: of a list one entry. */
type One<T> = NonNullable<T> extends readonly (infer E)[] ? E : NonNullable<T>;

type Table =
  & { readonly [K in ProxyKey]: Row<One<ProxyConfig[K]>> & { readonly of: "proxy" } }
  & { readonly [K in ListenerKey]: Row<One<ListenerConfig[K]>> & { readonly of: "listener" } };

const ROUTES: readonly Heeder[] = ["routes", "doctor"];
const DOCTOR: readonly Heeder[] = ["doctor"];
const RUN: readonly Heeder[] = [];

/** In the order of the help. */
export const OPTIONS: Table = {
  ipv4: {
    of: "listener",
    flags: "-4, --ipv4 <addr>",
    help: "upstream for IPv4 clients; none: refuse them, as with -6 alone",
    heeders: ROUTES,
    default: DEFAULTS.ipv4,
    parse: upstream(4),
    texts: upstreamTexts("ipv4"),
  },
  ipv6: {
    of: "listener",
    flags: "-6, --ipv6 <addr>",
    help: "upstream for IPv6 clients; none: refuse them, as with -4 alone",
    heeders: ROUTES,
    default: DEFAULTS.ipv6,
    parse: upstream(6),
    texts: upstreamTexts("ipv6"),
  },
  allowedSubnets: {
    of: "listener",
    flags: "-a, --allowed-subnets <path>",
    help: "file with the subnets of the load balancers that may send headers (default: all may)",
    heeders: DOCTOR,
    parse: (path): AllowedSubnets => ({ kind: "file", path }),
    texts: ({ allowedSubnets }) => allowedSubnets?.kind === "file" ? [allowedSubnets.path] : [],
  },
  closeAfter: {
    of: "listener",
    flags: "-c, --close-after <n>",
    help: "seconds after which an idle UDP flow expires",
    heeders: RUN,
    default: DEFAULTS.closeAfter,
    parse: number(BOUNDS.closeAfter, "seconds"),
  },
  listen: {
    of: "listener",
    flags: "-l, --listen-addr <addr>",
    help: "where to listen; may be given more than once, and with a range of ports (30000-30999)",
    heeders: ROUTES,
    default: DEFAULTS.listenAddr,
    many: true,
    parse: portRange,
    texts: ({ listen }) => {
      const texts = listen.map(({ text }) => text);
      return texts.join() === DEFAULTS.listenAddr ? [] : texts;
    },
  },
  transparent: {
    of: "listener",
    flags: "--transparent",
    help: "accept what TPROXY redirects, whatever its destination; see docs/recipes/transparent.md",
    heeders: ROUTES,
  },
  upstream: {
    of: "listener",
    flags: "--upstream <policy>",
    help: "family: -4 or -6, by the client's family; destination: the header's destination, " +
      "within --allowed-destinations",
    heeders: ROUTES,
    default: MODEL_DEFAULTS.upstream,
    parse: choice<UpstreamPolicy>("family", "destination"),
  },
  allowedDestinations: {
    of: "listener",
    flags: "--allowed-destinations <dest>",
    help:
      "destinations that headers may select, for example 10.0.0.5:22 or 127.0.0.0/8:1024-65535; may be " +
      "given more than once",
    heeders: ROUTES,
    many: true,
    parse: destination,
    texts: ({ allowedDestinations }) => allowedDestinations.map(({ text }) => text),
  },
  workers: {
    of: "proxy",
    flags: "--workers <n>",
    help: "threads, each with its own sockets for every listener; auto: one for each processor",
    alias: { flags: "--listeners <n>", help: "same as --workers, under its name in mmproxy-rs" },
    heeders: DOCTOR,
    default: DEFAULTS.listeners,
    parse: workers,
  },
  protocol: {
    of: "listener",
    flags: "-p, --protocol <p>",
    help: "tcp, udp or both",
    heeders: ROUTES,
    default: DEFAULTS.protocol,
    parse: choice<ProtocolName>("tcp", "udp", "both"),
  },
  mark: {
    of: "listener",
    flags: "-m, --mark <n>",
    help: "firewall mark (SO_MARK) on packets to the upstream",
    heeders: ROUTES,
    default: DEFAULTS.mark,
    parse: number(BOUNDS.mark),
  },
  headerTimeout: {
    of: "listener",
    flags: "--header-timeout <s>",
    help: "seconds to wait for a complete TCP header, minimum 3",
    heeders: RUN,
    default: DEFAULTS.headerTimeout,
    parse: number(BOUNDS.headerTimeout, "seconds"),
  },
  connectTimeout: {
    of: "listener",
    flags: "--connect-timeout <s>",
    help: "seconds to wait for the upstream to accept",
    heeders: DOCTOR,
    default: DEFAULTS.connectTimeout,
    parse: number(BOUNDS.connectTimeout, "seconds"),
  },
  keepalive: {
    of: "listener",
    flags: "--keepalive <s>",
    help: "seconds of silence after which TCP keepalive probes are sent, on both sides; 0: the " +
      "system's setting",
    heeders: RUN,
    default: DEFAULTS.keepalive,
    parse: number(BOUNDS.keepalive, "seconds"),
  },
  idleTimeout: {
    of: "listener",
    flags: "--idle-timeout <s>",
    help: "seconds without a byte after which a TCP connection is closed; 0: never",
    heeders: RUN,
    default: DEFAULTS.idleTimeout,
    parse: number(BOUNDS.idleTimeout, "seconds"),
  },
  drainTimeout: {
    of: "proxy",
    flags: "--drain-timeout <s>",
    help: "seconds that open connections have to finish after SIGTERM or SIGINT",
    heeders: RUN,
    default: DEFAULTS.drainTimeout,
    parse: number(BOUNDS.drainTimeout, "seconds"),
  },
  shutdownDelay: {
    of: "proxy",
    flags: "--shutdown-delay <s>",
    help: "seconds to keep accepting connections before that, while /readyz returns 503",
    heeders: RUN,
    default: DEFAULTS.shutdownDelay,
    parse: number(BOUNDS.shutdownDelay, "seconds"),
  },
  upgradeDrain: {
    of: "proxy",
    flags: "--upgrade-drain <s>",
    help: "seconds that connections may continue after an upgrade",
    heeders: RUN,
    default: DEFAULTS.upgradeDrain,
    parse: number(BOUNDS.upgradeDrain, "seconds"),
  },
  udpHeader: {
    of: "listener",
    flags: "--udp-header <where>",
    help: "datagram: every datagram has a header; session: a peer's first one; spp: Cloudflare's " +
      "Simple Proxy Protocol",
    heeders: RUN,
    default: DEFAULTS.udpHeader,
    parse: choice<UdpHeaderName>("datagram", "session", "spp"),
  },
  logLevel: {
    of: "proxy",
    flags: "--log-level <level>",
    help: "error, warn, info, access or debug",
    heeders: RUN,
    default: DEFAULTS.logLevel,
    parse: choice<LevelName>("error", "warn", "info", "access", "debug"),
  },
  logFormat: {
    of: "proxy",
    flags: "--log-format <format>",
    help: "text or json",
    heeders: RUN,
    default: DEFAULTS.logFormat,
    parse: choice<LogFormat>("text", "json"),
  },
  color: {
    of: "proxy",
    flags: "--color <when>",
    help: "colours in text output: auto (on a terminal, unless NO_COLOR is set), always or never",
    heeders: ROUTES,
    default: DEFAULTS.color,
    parse: choice<ColorMode>("auto", "always", "never"),
    texts: () => [],
  },
  autoRoutes: {
    of: "proxy",
    flags: "--auto-routes",
    help: "set the routes for replies at the start, remove them at the end",
    heeders: DOCTOR,
  },
  watch: {
    of: "proxy",
    flags: "--watch",
    help: "reload when the configuration file, or a subnet file, changes",
    heeders: RUN,
  },
  table: {
    of: "proxy",
    flags: "--table <n>",
    help: "routing table for these routes",
    heeders: ROUTES,
    default: DEFAULTS.table,
    parse: table,
  },
  sandbox: {
    of: "proxy",
    flags: "--sandbox <mode>",
    help:
      "privileges dropped before the first connection. auto: as many as the system allows; on: all, " +
      "or do not start; off: none",
    heeders: DOCTOR,
    default: DEFAULTS.sandbox,
    parse: choice<SandboxMode>("auto", "on", "off"),
  },
  offload: {
    of: "proxy",
    flags: "--offload <mode>",
    help:
      "hand established TCP connections over to the kernel (BPF). auto: where the host allows it; " +
      "off: relay them",
    heeders: DOCTOR,
    default: DEFAULTS.offload,
    parse: choice<OffloadMode>("auto", "off"),
  },
  metricsAddr: {
    of: "proxy",
    flags: "--metrics-addr <addr>",
    help: "address of the status page, /metrics, /healthz and /readyz over HTTP",
    heeders: DOCTOR,
    parse: address,
  },
  control: {
    of: "proxy",
    flags: "--control <path>",
    help:
      "unix socket on which the running program answers status, connections, close, reload, upgrade " +
      "and top",
    heeders: RUN,
    parse: socketPath,
  },
  takeOver: {
    of: "proxy",
    flags: "--take-over <path>",
    help:
      "take over the listening sockets and UDP flows of the program on this control socket, if there " +
      "is one; an upgrade starts the new program with this flag",
    heeders: RUN,
    parse: socketPath,
  },
};

/** The headings of the help. */
export const GROUPS: Readonly<Record<string, readonly Key[]>> = {
  "Traffic:": [
    ...(["listen", "transparent", "protocol", "ipv4", "ipv6", "upstream"] as const),
    ...(["allowedDestinations", "allowedSubnets", "udpHeader"] as const),
  ],
  "Routing of replies:": ["autoRoutes", "table", "mark"],
  "Time limits:": [
    ...(["headerTimeout", "connectTimeout", "keepalive", "idleTimeout", "closeAfter"] as const),
    ...(["drainTimeout", "shutdownDelay", "upgradeDrain"] as const),
  ],
  "Log, metrics and control:": ["logLevel", "logFormat", "color", "metricsAddr", "control"],
  "Process:": ["workers", "sandbox", "offload", "watch", "takeOver"],
};

/** The rows with their keys, in the order of the help. */
export const ROWS = Object.entries(OPTIONS) as [Key, Row][];

/** The names of an option: `-m, --mark`. */
export function namesOf({ flags }: Pick<Row, "flags">): string {
  return flags.replace(/ <.*$/, "");
}

/** The options that a command uses, as words of a command line, without those at their defaults. */
export function typeOptions(config: ProxyConfig, heeder: Heeder): string[] {
  const [listener] = config.listeners;
  const values: Partial<Record<Key, unknown>> = { ...listener, ...config };
  const heeded = ROWS.filter(([, row]) => row.heeders.includes(heeder));
  return heeded.flatMap(([key, row]) => {
    const name = row.flags.split(/,? /)[0] ?? "";
    if (!row.parse) return values[key] === true ? [name] : [];
    const texts = row.texts && listener ? row.texts(listener) : plainText(values[key], row.default);
    return texts.flatMap((text) => [name, text]);
  });
}

function plainText(value: unknown, unless: string | undefined): string[] {
  if (value === undefined) return [];
  const text = typeof value === "object" ? (value as Address).text : String(value);
  return text === unless ? [] : [text];
}

/** Given alone, it refuses the other family's clients, even if it has the default value. */
function upstreamTexts(key: "ipv4" | "ipv6") {
  return (listener: ListenerConfig) => {
    const text = hasDefaultServices(listener) ? undefined : listener[key]?.text;
    return text === undefined ? [] : [text];
  };
}

function upstream(family: 4 | 6): Parse<Upstream> {
  return (text, names) => {
    const parsed = parseUpstream(text, family);
    if (parsed instanceof Problem) return refuse(names, text, parsed);
    // The caller checks for it first.
    if (parsed === NONE) throw new UsageError(`Option ${names}: none has no address`);
    return parsed;
  };
}

function portRange(text: string, names: string): PortRange {
  return parsePortRange(text) ??
    wrong(
      names,
      text,
      `an IP address and a port or a range of ports, for example ${DEFAULTS.listenAddr}` +
        addressHint(text, "listen"),
    );
}

function destination(text: string, names: string): Destination {
  const parsed = parseDestination(text);
  return parsed instanceof Problem ? refuse(names, text, parsed) : parsed;
}

function address(text: string, names: string): Address {
  return parseAddress(text) ??
    wrong(
      names,
      text,
      `an IP address and port, for example 127.0.0.1:9100${addressHint(text, "metrics")}`,
    );
}

/** Reads the path of a unix socket. */
export function socketPath(text: string, names: string): string {
  const { length } = new TextEncoder().encode(text);
  if (length >= 1 && length <= MOST_SOCKET_PATH) return text;
  return wrong(names, text, `a path of 1 to ${MOST_SOCKET_PATH} bytes`);
}

function workers(text: string, names: string): number | "auto" {
  return text.toLowerCase() === "auto" ? "auto" : number(BOUNDS.workers, "workers")(text, names);
}

function number([least, most]: Bounds, unit = ""): Parse<number> {
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
  const parsed = number(BOUNDS.table)(text, names);
  if (!KERNEL_TABLES.includes(parsed)) return parsed;
  return wrong(names, text, "a table of its own: 252 to 255 are the kernel's");
}

function choice<T extends string>(...choices: readonly T[]): Parse<T> {
  const parse = (text: string, names: string) =>
    choices.find((choice) => choice === text.toLowerCase()) ??
      wrong(names, text, choices.join(", ").replace(/, ([^,]*)$/, " or $1"));
  return Object.assign(parse, { choices });
}

function refuse(names: string, value: string, { text }: Problem): never {
  const expected = /^expected (.*)$/s.exec(text)?.[1];
  if (expected !== undefined) return wrong(names, value, expected);
  throw new UsageError(`Option ${names}: ${JSON.stringify(value)}: ${text}`);
}

function wrong(names: string, value: string, expected: string): never {
  throw new UsageError(`Option ${names}: ${JSON.stringify(value)} is not ${expected}`);
}
