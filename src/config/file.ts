/** The configuration file: its text in; the checked model, or every mistake at once, out. */
import { parse, TomlError } from "smol-toml";
import * as v from "valibot";
import { checkListeners, nameOf } from "./cross_checks.ts";
import { ConfigError, Mistakes } from "./mistakes.ts";
import type { ListenerConfig, ProxyConfig } from "./model.ts";
import { unknownKey } from "./nearest.ts";
import { type Path, Positions } from "./positions.ts";
import { LISTENER, PROXY } from "./schema.ts";
import { isTable, readTable, type Table } from "./tables.ts";
import { NONE } from "./upstreams.ts";

export type ProxyTable = Table<typeof PROXY>;
export type ListenerTable = Table<typeof LISTENER>;

const TOP_KEYS = [...Object.keys(PROXY), "defaults", "listener"];
const PROXY_DEFAULTS = v.parse(v.strictObject(PROXY), {});
const LISTENER_DEFAULTS = v.parse(v.strictObject(LISTENER), {});

/**
 * Reads the file's text.
 *
 * @param text the content, TOML
 * @param name the file's name, for errors
 * @throws {ConfigError} with every mistake; wrong syntax hides what comes after it
 */
export function readConfig(text: string, name: string): ProxyConfig {
  const { defaults, listener, ...top } = parseToml(text, name);
  const mistakes = new Mistakes(name, new Positions(text));
  const proxy = readTable(PROXY, top, [], mistakes, unknownAtTop)
    .rename("listeners", "workers", mistakes);
  const common = readDefaults(defaults, mistakes);
  const listeners = readListeners(listener, mistakes).map((own) => withDefaults(own, common));
  checkListeners(listeners, proxy, mistakes);
  mistakes.throwIfAny(top["log-format"] === "json" ? "json" : "text");
  return proxyOf(proxy, listeners.map(listenerOf));
}

function parseToml(text: string, name: string) {
  try {
    // An integer that is not a number of JavaScript's is a value out of its range, not a wrong document.
    return parse(text, { integersAsBigInt: "asNeeded" });
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const [problem = ""] = error.message.replace(/^Invalid TOML document: /, "").split("\n");
    throw new ConfigError([{ file: name, line: error.line, problem: `not TOML: ${problem}` }]);
  }
}

function readDefaults(value: unknown, mistakes: Mistakes): ListenerTable {
  const path = ["defaults"];
  if (value !== undefined && !isTable(value)) {
    mistakes.add(path, "is a table: write [defaults] in a line of its own, and its keys below");
  }
  return readListener(isTable(value) ? value : {}, path, mistakes);
}

function readListeners(value: unknown, mistakes: Mistakes): ListenerTable[] {
  const path = ["listener"];
  if (value === undefined) {
    mistakes.addMissing(
      [],
      "no listener: write [[listener]], and its listen and ipv4 or ipv6 below",
    );
    return [];
  }
  if (!Array.isArray(value) || value.length === 0 || !value.every(isTable)) {
    mistakes.add(path, "is a list of tables: write [[listener]], in two brackets, above each");
    return [];
  }
  return value.map((table, index) => readListener(table, [...path, index], mistakes));
}

function readListener(table: object, path: Path, mistakes: Mistakes): ListenerTable {
  const own = readTable(LISTENER, table, path, mistakes, unknownInListener)
    .rename("listen-addr", "listen", mistakes);
  if (own.has("trust") && own.has("allowed-subnets")) {
    mistakes.add(
      own.place("allowed-subnets"),
      'trust says who may connect: name these subnets there, with header = "require"',
    );
  }
  return own;
}

/** Who may connect is one decision, in whichever of its two forms: a listener's own replaces the other. */
function withDefaults(own: ListenerTable, common: ListenerTable): ListenerTable {
  const decides = own.has("trust") || own.has("allowed-subnets");
  return own.over(common, decides ? ["trust", "allowed-subnets"] : []);
}

function unknownAtTop(key: string): string {
  if (Object.hasOwn(LISTENER, key)) {
    return "is a key of a listener: write it below [[listener]], or below [defaults] for all of them";
  }
  return unknownKey(key, TOP_KEYS);
}

function unknownInListener(key: string): string {
  if (Object.hasOwn(PROXY, key)) {
    return "holds for the proxy and all listeners: write it at the top of the file, above every table";
  }
  return unknownKey(key, Object.keys(LISTENER));
}

function proxyOf({ values }: ProxyTable, listeners: readonly ListenerConfig[]): ProxyConfig {
  const all = { ...PROXY_DEFAULTS, ...values };
  return {
    workers: all.workers,
    logLevel: all["log-level"],
    logFormat: all["log-format"],
    color: all.color,
    autoRoutes: all["auto-routes"],
    table: all.table,
    sandbox: all.sandbox,
    offload: all.offload,
    drainTimeout: all["drain-timeout"],
    shutdownDelay: all["shutdown-delay"],
    upgradeDrain: all["upgrade-drain"],
    resolveInterval: all["resolve-interval"],
    watch: all.watch,
    ...given({
      metricsAddr: all["metrics-addr"],
      control: all.control,
      takeOver: all["take-over"],
    }),
    listeners,
  };
}

function listenerOf(table: ListenerTable): ListenerConfig {
  const all = { ...LISTENER_DEFAULTS, ...table.values };
  return {
    name: nameOf(table),
    listen: all.listen ?? [],
    protocol: all.protocol,
    udpHeader: all["udp-header"],
    upstream: all.upstream,
    allowedDestinations: all["allowed-destinations"] ?? [],
    trust: all.trust ?? [],
    mark: all.mark,
    headerTimeout: all["header-timeout"],
    connectTimeout: all["connect-timeout"],
    closeAfter: all["close-after"],
    keepalive: all.keepalive,
    idleTimeout: all["idle-timeout"],
    optionalWait: all["optional-wait"],
    transparent: all.transparent,
    ...given({
      ipv4: all.ipv4 === NONE ? undefined : all.ipv4,
      ipv6: all.ipv6 === NONE ? undefined : all.ipv6,
      allowedSubnets: all["allowed-subnets"],
      maxConnections: all["max-connections"],
      maxFlows: all["max-flows"],
      maxConnectionsPerClient: all["max-connections-per-client"],
    }),
  };
}

/** The properties that have a value. */
function given<T extends object>(properties: T): { [Key in keyof T]?: NonNullable<T[Key]> } {
  const entries = Object.entries(properties).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [Key in keyof T]?: NonNullable<T[Key]> };
}
