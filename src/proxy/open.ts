/** Opens what the configuration says in the native core: the proxy, its workers and listeners. */
import { limits } from "../config/limits.ts";
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import { listenPorts } from "../config/ports.ts";
import { encodeListener, encodePorts, encodeProxy } from "../config/records.ts";
import { encodeSubnets } from "../config/subnets.ts";
import { workerCount } from "../config/workers.ts";
import type { Log } from "../log/log.ts";
import { Status } from "../native/layout.ts";
import { type Library, NativeError } from "../native/library.ts";
import { Listeners } from "./listeners.ts";
import { isSubnetsProblem, readSubnets } from "./reload.ts";
import { StartError } from "./start_error.ts";

/** What is open: the handles of the proxy and its workers, and the listeners by their numbers. */
export interface Opened {
  readonly proxy: number;
  readonly workers: readonly number[];
  readonly listeners: Listeners;
}

type Core = Pick<
  Library,
  "openListener" | "openProxy" | "openWorker" | "raiseFileLimit" | "readFile" | "setSubnets"
>;

/**
 * Opens all of it.
 *
 * @throws {StartError} about the first listener that cannot be opened
 */
export function openAll(config: ProxyConfig, library: Core, log: Log): Opened {
  for (const listener of config.listeners) refuseUnserved(config, listener);
  // What a file says wrongly is told before anything is opened.
  const allowed = config.listeners.map((listener) => allowedPeers(config, listener, library));
  const count = workerCount(config.workers);
  const budgets = limits({ ...config, workers: count }, library.raiseFileLimit());
  const proxy = library.openProxy(encodeProxy(config, count, budgets));
  const workers = Array.from({ length: count }, () => library.openWorker(proxy));
  const listeners = new Listeners();
  config.listeners.forEach((listener, index) => {
    const peers = allowed[index];
    const id = explained(config, listener, () =>
      library.openListener(
        proxy,
        encodeListener(listener, peers !== undefined),
        encodePorts(listenPorts(listener, config)),
      ));
    if (peers) library.setSubnets(proxy, id, peers);
    else warnOfEveryPeer(config, listener, log);
    listeners.set(id, listener);
  });
  return { proxy, workers, listeners };
}

/** In front of what is said of a listener, where there are several: `mail: `. */
export function whose({ listeners }: ProxyConfig, { name }: ListenerConfig): string {
  return listeners.length > 1 ? `${name}: ` : "";
}

/**
 * @throws {StartError} for what the native core does not do: a listener that did less than its
 * configuration says could let in whom it should not
 */
function refuseUnserved(config: ProxyConfig, listener: ListenerConfig): void {
  const { trust, upstream, transparent, ipv4, ipv6 } = listener;
  const { maxConnections, maxFlows, maxConnectionsPerClient } = listener;
  const rule = trust.find(({ header }) => header !== "require");
  const name = [ipv4, ipv6].find((upstream) => upstream?.kind === "name");
  const what = rule
    ? `trust with header = "${rule.header}"`
    : upstream === "destination"
    ? 'upstream = "destination"'
    : transparent
    ? "transparent"
    : name
    ? `a host name as upstream (${name.text})`
    : maxConnections ?? maxFlows ?? maxConnectionsPerClient
    ? "a limit of a listener (max-…)"
    : undefined;
  if (what !== undefined) {
    throw new StartError(`${whose(config, listener)}${what} is not served yet: leave it out`);
  }
}

/** The `SubnetRecord`s of whom a listener lets in; nothing where that is every peer. */
function allowedPeers(
  config: ProxyConfig,
  listener: ListenerConfig,
  library: Pick<Library, "readFile">,
): Uint8Array<ArrayBuffer> | undefined {
  const { allowedSubnets, trust } = listener;
  if (trust.length > 0) return encodeSubnets(trust.map(({ from }) => from));
  switch (allowedSubnets?.kind) {
    case "inline":
      return encodeSubnets(allowedSubnets.subnets);
    case "file":
      return firstSubnets(config, listener, allowedSubnets.path, library);
    case undefined:
      return undefined;
  }
}

function firstSubnets(
  config: ProxyConfig,
  listener: ListenerConfig,
  path: string,
  library: Pick<Library, "readFile">,
): Uint8Array<ArrayBuffer> {
  try {
    return readSubnets(path, library);
  } catch (error) {
    if (!isSubnetsProblem(error)) throw error;
    const option = config.file === undefined
      ? "Option -a, --allowed-subnets"
      : `${config.file}, listener ${listener.name}, allowed-subnets`;
    throw new StartError(`${option}: ${error.message}`, { cause: error });
  }
}

function warnOfEveryPeer(config: ProxyConfig, listener: ListenerConfig, log: Log): void {
  const option = config.file === undefined ? "--allowed-subnets" : "allowed-subnets";
  log(
    "warn",
    `${
      whose(config, listener)
    }Every peer may send headers: name your load balancers with ${option}`,
    { event: "all_allowed", listener: listener.name },
  );
}

/** Adds to a refusal of the native core what the operator can do about it. */
function explained<T>(config: ProxyConfig, listener: ListenerConfig, call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (!(error instanceof NativeError)) throw error;
    throw new StartError(
      whose(config, listener) + error.message + advice(error, config, listener),
      { cause: error },
    );
  }
}

function advice(
  { status, message }: NativeError,
  { file }: ProxyConfig,
  { listen, name }: ListenerConfig,
): string {
  // The core names the address; without ranges there is one alone that it can be.
  const [, text = listen[0]?.text ?? ""] = /\s(\S+:\d+)\b/.exec(message) ?? [];
  const port = Number(/\d+$/.exec(text)?.[0]);
  const option = file === undefined ? "--listen-addr" : `listen of listener ${name}`;
  switch (status) {
    case Status.permission:
      return port < 1024
        ? "; run as root, or with CAP_NET_RAW (CAP_NET_ADMIN for --mark) and CAP_NET_BIND_SERVICE"
        : "; run as root, or with CAP_NET_RAW (CAP_NET_ADMIN for --mark)";
    case Status.address_in_use:
      return `; another program has it (ss -lntup 'sport = :${port}'): stop that, or choose another with ${option}`;
    case Status.loop:
      return file === undefined
        ? `; choose another port with ${option}, or name the server behind it with -4 or -6`
        : `; choose another port with ${option}, or name the server behind it`;
    case Status.address_not_available:
      return `; ${text} is not an address of this host (ip address): choose one with ${option}`;
    default:
      return "";
  }
}
