/** Host names of upstreams: resolved before a listener opens, and again periodically. */
import { formatAddress, isMapped } from "../config/address.ts";
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import { LITTLE_ENDIAN } from "../config/options.ts";
import type { NameUpstream, Upstream } from "../config/upstreams.ts";
import type { Log } from "../log/log.ts";
import { ENDPOINT } from "../native/layout.ts";
import type { Library } from "../native/library.ts";
import { StartError } from "./start_error.ts";

type Address = {
  readonly family: 4 | 6;
  readonly bytes: readonly number[];
  readonly scope: number;
};

/** A name and the family that is requested. */
interface Wanted {
  readonly host: string;
  readonly family: 4 | 6;
  /** `ipv4 of listener mail`. */
  readonly writtenIn: string;
}

/** What a look at all names came to. Nothing changes before `adopt`. */
export interface Lookup {
  /** The listeners with addresses instead of the names. */
  readonly listeners: readonly ListenerConfig[];
  /** Says what has changed, and keeps it for the next time. */
  adopt(): void;
}

/** The names of one run, each with the address that is in use. */
export class Names {
  readonly #library: Pick<Library, "resolve">;
  readonly #log: Log;
  #known = new Map<string, Address>();
  /** Those whose last lookup failed: it is logged once. */
  #failing = new Set<string>();

  constructor(library: Pick<Library, "resolve">, log: Log) {
    this.#library = library;
    this.#log = log;
  }

  /**
   * Looks all names up at once. One that fails keeps its last address. So does one whose answer still has
   * it: a name with several addresses often has them in another order each time.
   *
   * @throws {StartError} with a line for each name that fails and has no address yet
   */
  async look(listeners: readonly ListenerConfig[]): Promise<Lookup> {
    const wanted = new Map(listeners.flatMap(namesOf).map((name) => [keyOf(name), name]));
    const known = new Map<string, Address>();
    const failures: string[] = [];
    const changes: (() => void)[] = [];
    await Promise.all([...wanted].map(async ([key, name]) => {
      const before = this.#known.get(key);
      const found = await this.#ask(name);
      if (typeof found !== "string") {
        const kept = before && found.find((address) => textOf(address) === textOf(before));
        const [first] = found;
        const now = kept ?? first;
        if (!now) return;
        known.set(key, now);
        changes.push(() => this.#tellFound(key, name, before, now));
      } else if (before) {
        known.set(key, before);
        // Whatever comes of the rest.
        this.#tellFailed(key, name, before, found);
      } else {
        failures.push(`Cannot resolve ${name.host} (${name.writtenIn}): ${found}`);
      }
    }));
    if (failures.length > 0) throw new StartError(failures.toSorted().join("\n"));
    return {
      listeners: listeners.map((listener) => withAddresses(listener, known)),
      adopt: () => {
        this.#known = known;
        this.#failing = this.#failing.intersection(new Set(known.keys()));
        changes.forEach((change) => change());
      },
    };
  }

  /** The addresses, one or more, or why there are none. */
  async #ask({ host, family }: Wanted): Promise<Address[] | string> {
    const records = await this.#library.resolve(host, family);
    if (typeof records === "string") return records;
    const found = readAddresses(records);
    const servers = found.filter(isServer);
    const [wrong] = found;
    if (servers.length > 0 || !wrong) return servers;
    return `${textOf(wrong)} is not the address of a server`;
  }

  #tellFound(key: string, { host, writtenIn }: Wanted, before: Address | undefined, now: Address) {
    const isBack = this.#failing.delete(key);
    const address = textOf(now);
    const was = before && textOf(before);
    if (was === address && !isBack) return;
    const back = isBack ? " again" : "";
    const changed = was === undefined || was === address ? "" : `, was ${was}`;
    this.#log("info", `Resolved ${host}${back} to ${address}${changed} (${writtenIn})`, {
      event: "name_resolved",
      name: host,
      address,
    });
  }

  #tellFailed(key: string, { host, writtenIn }: Wanted, before: Address, error: string) {
    if (this.#failing.has(key)) return;
    this.#failing.add(key);
    const address = textOf(before);
    this.#log(
      "warn",
      `Cannot resolve ${host} (${writtenIn}): ${error}; ${address} stays in use until the lookup succeeds`,
      { event: "name_unresolved", name: host, address, error },
    );
  }
}

/**
 * A configuration with addresses instead of names, for commands that look once.
 *
 * @throws {StartError} with a line for each name that has none
 */
export async function withoutNames(
  config: ProxyConfig,
  library: Pick<Library, "resolve">,
): Promise<ProxyConfig> {
  if (!hasNames(config)) return config;
  const { listeners } = await new Names(library, () => {}).look(config.listeners);
  return { ...config, listeners };
}

/** Whether an upstream of any listener is a name. */
export function hasNames({ listeners }: Pick<ProxyConfig, "listeners">): boolean {
  return listeners.some((listener) => namesOf(listener).length > 0);
}

function namesOf(listener: ListenerConfig): Wanted[] {
  return ([4, 6] as const).flatMap((family) => {
    const upstream = listener[`ipv${family}`];
    if (upstream?.kind !== "name") return [];
    return [{
      host: upstream.host,
      family,
      writtenIn: `ipv${family} of listener ${listener.name}`,
    }];
  });
}

function keyOf({ host, family }: Pick<Wanted, "host" | "family">): string {
  return `${family} ${host}`;
}

function withAddresses(listener: ListenerConfig, known: ReadonlyMap<string, Address>) {
  const { ipv4, ipv6 } = listener;
  return {
    ...listener,
    ...(ipv4 &&
      { ipv4: withAddress(ipv4, known.get(keyOf({ ...(ipv4 as NameUpstream), family: 4 }))) }),
    ...(ipv6 &&
      { ipv6: withAddress(ipv6, known.get(keyOf({ ...(ipv6 as NameUpstream), family: 6 }))) }),
  };
}

function withAddress(upstream: Upstream, address: Address | undefined): Upstream {
  if (upstream.kind === "address" || !address) return upstream;
  const { ports, text } = upstream;
  return { kind: "address", address, ports, text };
}

function readAddresses(records: Uint8Array<ArrayBuffer>): Address[] {
  const view = new DataView(records.buffer, records.byteOffset, records.byteLength);
  const found: Address[] = [];
  for (let at = 0; at < records.length; at += ENDPOINT.size) {
    const family = view.getUint8(at + ENDPOINT.family) === 4 ? 4 : 6;
    const start = at + ENDPOINT.address;
    const bytes = [...records.subarray(start, start + (family === 4 ? 4 : 16))];
    found.push({ family, bytes, scope: view.getUint32(at + ENDPOINT.scope, LITTLE_ENDIAN) });
  }
  return found;
}

/** What blocks a name answers with an address of zeroes. */
function isServer({ family, bytes }: Address): boolean {
  return bytes.some((byte) => byte !== 0) && !(family === 6 && isMapped(bytes));
}

function textOf({ family, bytes, scope }: Address): string {
  return formatAddress(family, Uint8Array.from(bytes), undefined, scope);
}
