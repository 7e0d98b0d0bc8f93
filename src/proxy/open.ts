/** Opens the configured proxy, its workers and listeners in the native core. */
import { parseAddress } from "../config/address.ts";
import { limits } from "../config/limits.ts";
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import { listenPorts } from "../config/ports.ts";
import {
  encodeDestinations,
  encodeListeners,
  encodeProxy,
  encodeTrust,
} from "../config/records.ts";
import { requireHeader } from "../config/trust.ts";
import { workerCount } from "../config/workers.ts";
import type { Log } from "../log/log.ts";
import { Status } from "../native/layout.ts";
import { type Library, NativeError } from "../native/library.ts";
import type { Entry, Intended } from "./change.ts";
import { whose } from "./listening.ts";
import { orStartErrorSync, StartError } from "./start_error.ts";
import { isSubnetsProblem, readSubnets } from "./subnet_file.ts";

/** What is open: the handles of the proxy and its workers. */
export interface Opened {
  readonly proxy: number;
  readonly workers: readonly number[];
  /** How many files the process may have open. */
  readonly fileLimit: number;
}

/**
 * Opens the proxy and its workers; nothing listens yet.
 *
 * @param predecessor whose sockets it is to have (`takeOver`)
 * @throws {StartError} if the predecessor has more workers
 */
export function openProxy(
  config: ProxyConfig,
  library: Pick<Library, "openProxy" | "openWorker" | "raiseFileLimit">,
  predecessor?: number,
): Opened {
  const count = workerCount(config.workers);
  const fileLimit = library.raiseFileLimit();
  const proxy = orStartErrorSync(() => library.openProxy(encodeProxy(config, count), predecessor));
  const workers = Array.from({ length: count }, () => library.openWorker(proxy));
  return { proxy, workers, fileLimit };
}

/**
 * Listeners with whom they let in; the files that say so are read.
 *
 * @param config its upstreams have addresses
 * @throws {StartError} about the first listener that cannot be served
 */
export function intendedOf(config: ProxyConfig, library: Pick<Library, "readFile">): Intended[] {
  return config.listeners.map((listener) => {
    const peers = allowedPeers(config, listener, library);
    return { config: listener, ...(peers && { peers }) };
  });
}

/** Where listeners are opened. */
export interface Place {
  readonly config: ProxyConfig;
  readonly proxy: number;
  /** The number of workers. */
  readonly workers: number;
  /** How many files the process may have open. */
  readonly fileLimit: number;
  /** Whether the program runs already: then the sandbox holds. */
  readonly isRunning: boolean;
}

/**
 * Makes these all the listeners of the proxy, with the descriptors shared out again, or changes nothing.
 *
 * @returns their numbers, in order
 * @throws {StartError} with what the operator can do about it
 */
export function configure(
  { config, proxy, workers, fileLimit, isRunning }: Place,
  entries: readonly Entry[],
  library: Pick<Library, "configure">,
): number[] {
  const listeners = entries.map((entry) => entry.config);
  const records = encodeListeners(entries.map(({ id, config: terms, peers }) => ({
    ...(id !== undefined && { id }),
    terms,
    ports: listenPorts(terms, { listeners }),
    ...(peers && { rules: peers }),
    destinations: encodeDestinations(terms.allowedDestinations),
  })));
  try {
    const budgets = limits({ ...config, workers, listeners }, fileLimit);
    return library.configure(proxy, records, budgets, config.drainTimeout * 1000);
  } catch (error) {
    if (!(error instanceof NativeError)) throw error;
    throw new StartError(explained(error, config, isRunning), { cause: error });
  }
}

/** Warns if nobody is named who may send headers. */
export function warnOfEveryPeer(
  config: ProxyConfig,
  { config: listener, peers }: Intended,
  log: Log,
) {
  if (peers) return;
  const option = config.file === undefined ? "--allowed-subnets" : "allowed-subnets";
  log(
    "warn",
    `${
      whose(config, listener)
    }Every peer may send PROXY headers: list your load balancers in ${option}`,
    { event: "all_allowed", listener: listener.name },
  );
}

/** The `TrustRecord`s of whom a listener lets in; nothing if that is every peer. */
function allowedPeers(
  config: ProxyConfig,
  listener: ListenerConfig,
  library: Pick<Library, "readFile">,
): Uint8Array<ArrayBuffer> | undefined {
  const { allowedSubnets, trust } = listener;
  if (trust.length > 0) return encodeTrust(trust);
  switch (allowedSubnets?.kind) {
    case "inline":
      return encodeTrust(allowedSubnets.subnets.map(requireHeader));
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
    throw new StartError(`${option}: ${error.message}`, { cause: error, lasting: true });
  }
}

/** A refusal of the native core with what the operator can do about it. */
function explained(error: NativeError, config: ProxyConfig, isRunning: boolean): string {
  const { listeners } = config;
  // The core names the address that it is about, if it is about one.
  const named = /\s(\S+:\d+)\b/.exec(error.message)?.[1];
  const address = parseAddress(named ?? "");
  const about = listeners.find(({ listen }) =>
    listen.some((range) =>
      address && range.port <= address.port && address.port <= range.lastPort &&
      range.bytes.join() === address.bytes.join()
    )
  );
  const listener = about ?? listeners[0];
  if (!listener) return error.message;
  const start = about ? whose(config, about) : "";
  // Without ranges there is one address alone that it can be.
  const text = named ?? listener.listen[0]?.text ?? "";
  if (isRunning && error.status === Status.permission) return start + error.message + RESTART;
  return start + error.message + advice(error.status, text, config, listener);
}

/** At its start it may have had more. */
const RESTART =
  "; the sandbox has dropped the capabilities that the program did not need at its start: restart it " +
  "(docs/sandbox.md)";

function advice(
  status: number,
  text: string,
  { file }: ProxyConfig,
  { name }: ListenerConfig,
): string {
  const port = Number(/\d+$/.exec(text)?.[0]);
  const option = file === undefined ? "--listen-addr" : `listen of listener ${name}`;
  switch (status) {
    case Status.permission:
      return port < 1024
        ? "; run as root, or with CAP_NET_RAW (CAP_NET_ADMIN for --mark) and CAP_NET_BIND_SERVICE"
        : "; run as root, or with CAP_NET_RAW (CAP_NET_ADMIN for --mark)";
    case Status.address_in_use:
      return `; another program uses it (ss -lntup 'sport = :${port}'): stop it, or choose another port with ${option}`;
    case Status.loop:
      return file === undefined
        ? `; choose another port with ${option}, or set the upstream to the server itself with -4 or -6`
        : `; choose another port with ${option}, or set the upstream to the server itself`;
    case Status.address_not_available:
      return `; ${text} is not an address of this host (ip address): choose one with ${option}`;
    default:
      return "";
  }
}
