/**
 * The configuration in force as keys and values, with the names of the configuration file. Every field of the model is
 * listed here, so that a new one is shown only after somebody has decided that it is not secret.
 */
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";

/** A key and its value as text. */
export type Entry = readonly [key: string, value: string];

export interface InForce {
  readonly proxy: readonly Entry[];
  readonly listeners: readonly { readonly name: string; readonly entries: readonly Entry[] }[];
  /** Listeners that are left out. */
  readonly omitted: number;
}

/** How a value is shown; nothing if it is not set. */
type Show<Config, Key extends keyof Config> = (
  value: NonNullable<Config[Key]>,
) => string | undefined;
type Shown<Config> = {
  readonly [Key in keyof Required<Config>]: readonly [key: string, show: Show<Config, Key>];
};

/** Entries of a list that are shown. */
const MOST_ENTRIES = 20;

const text = (value: string | number | boolean) => String(value);
const seconds = (value: number) => `${value} s`;
const address = (value: { readonly text: string }) => value.text;
const list = (values: readonly { readonly text: string }[]) => listed(values.map(address));
/** Shown elsewhere. */
const hidden = () => undefined;

const PROXY: Shown<ProxyConfig> = {
  file: ["file", text],
  workers: ["workers", text],
  metricsAddr: ["metrics-addr", address],
  logLevel: ["log-level", text],
  logFormat: ["log-format", text],
  color: ["color", text],
  autoRoutes: ["auto-routes", text],
  table: ["table", text],
  sandbox: ["sandbox", text],
  offload: ["offload", text],
  drainTimeout: ["drain-timeout", seconds],
  shutdownDelay: ["shutdown-delay", seconds],
  control: ["control", text],
  upgradeDrain: ["upgrade-drain", seconds],
  takeOver: ["take-over", text],
  watch: ["watch", text],
  resolveInterval: ["resolve-interval", seconds],
  listeners: ["listeners", hidden],
};

const LISTENER: Shown<ListenerConfig> = {
  name: ["name", hidden],
  listen: ["listen", list],
  protocol: ["protocol", text],
  udpHeader: ["udp-header", text],
  upstream: ["upstream", text],
  ipv4: ["ipv4", address],
  ipv6: ["ipv6", address],
  allowedDestinations: ["allowed-destinations", list],
  trust: ["trust", (rules) => listed(rules.map(({ from, header }) => `${from.text} ${header}`))],
  allowedSubnets: [
    "allowed-subnets",
    (subnets) => subnets.kind === "file" ? subnets.path : list(subnets.subnets),
  ],
  mark: ["mark", text],
  headerTimeout: ["header-timeout", seconds],
  connectTimeout: ["connect-timeout", seconds],
  closeAfter: ["close-after", seconds],
  keepalive: ["keepalive", seconds],
  idleTimeout: ["idle-timeout", seconds],
  optionalWait: ["optional-wait", seconds],
  transparent: ["transparent", text],
  maxConnections: ["max-connections", text],
  maxFlows: ["max-flows", text],
  maxConnectionsPerClient: ["max-connections-per-client", text],
};

/**
 * The configuration in force.
 *
 * @param most listeners that are shown
 */
export function inForce(config: ProxyConfig, most: number): InForce {
  return {
    proxy: entries(config, PROXY),
    listeners: config.listeners.slice(0, most).map((listener) => ({
      name: listener.name,
      entries: entries(listener, LISTENER),
    })),
    omitted: Math.max(0, config.listeners.length - most),
  };
}

function entries<Config>(config: Config, shown: Shown<Config>): Entry[] {
  return (Object.keys(shown) as (keyof Config)[]).flatMap((field): Entry[] => {
    const [key, show] = shown[field];
    const value = config[field];
    const said = value === undefined || value === null ? undefined : show(value);
    return said === undefined ? [] : [[key, said]];
  });
}

function listed(values: readonly string[]): string | undefined {
  if (values.length === 0) return undefined;
  const more = values.length - MOST_ENTRIES;
  return values.slice(0, MOST_ENTRIES).join(", ") + (more > 0 ? `, and ${more} more` : "");
}
