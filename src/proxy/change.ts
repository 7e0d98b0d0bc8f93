/** The effect of a reload: which listeners are new, changed, removed, or unchanged. */
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import { overlaps } from "../config/ranges.ts";

/** A listener with whom it lets in. */
export interface Intended {
  /** Upstreams have addresses. */
  readonly config: ListenerConfig;
  /** `TrustRecord`s of those who may connect; without them all may send headers. */
  readonly peers?: Uint8Array<ArrayBuffer>;
}

/** One that is open. */
export interface Running extends Intended {
  /** Its number in the native core. */
  readonly id: number;
  /** Which of the run's configurations was the first to have it so; they count from 1. */
  readonly since: number;
}

/** One that is to be. */
export interface Entry extends Intended {
  /** The number of the one that it continues; a new one has none. */
  readonly id?: number;
}

export interface Change {
  /** All that are to be, in the configuration's order. */
  readonly entries: readonly Entry[];
  readonly added: readonly Entry[];
  readonly changed: readonly Entry[];
  readonly removed: readonly Running[];
  /** The number of unchanged listeners. */
  readonly unchanged: number;
}

/**
 * Which listener continues which: the one of the same name, or, renamed, one that it shares an address
 * with. Its counters and limits continue.
 */
export function planChange(running: readonly Running[], wanted: readonly Intended[]): Change {
  const left = new Map(running.map((known) => [known.config.name, known]));
  const named = wanted.map((intended): Entry => {
    const known = left.get(intended.config.name);
    left.delete(intended.config.name);
    return known ? { ...intended, id: known.id } : intended;
  });
  const entries = named.map((entry): Entry => {
    if (entry.id !== undefined) return entry;
    const known = [...left.values()].find(({ config }) => sharesAddress(config, entry.config));
    if (!known) return entry;
    left.delete(known.config.name);
    return { ...entry, id: known.id };
  });
  const byId = new Map(running.map((known) => [known.id, known]));
  const continued = entries.filter(({ id }) => id !== undefined);
  const changed = continued.filter((entry) => !isSame(byId.get(entry.id ?? 0), entry));
  return {
    entries,
    added: entries.filter(({ id }) => id === undefined),
    changed,
    removed: [...left.values()],
    unchanged: continued.length - changed.length,
  };
}

function sharesAddress(one: ListenerConfig, other: ListenerConfig): boolean {
  const claims = [one, other].flatMap((owner) =>
    owner.listen.map((range) => ({ range, transports: ["tcp"] as const, owner }))
  );
  return overlaps(claims).some(({ claim, earlier }) => claim.owner !== earlier.owner);
}

function isSame(one: Intended | undefined, other: Intended): boolean {
  return one !== undefined && JSON.stringify(one.config) === JSON.stringify(other.config) &&
    isSameBytes(one.peers, other.peers);
}

function isSameBytes(one?: Uint8Array, other?: Uint8Array): boolean {
  return one?.length === other?.length &&
    (one ?? []).every((byte: number, index: number) => byte === other?.[index]);
}

/** What a running program keeps, by the names of its keys in the file. */
const FIXED = {
  workers: "workers",
  metricsAddr: "metrics-addr",
  logLevel: "log-level",
  logFormat: "log-format",
  color: "color",
  autoRoutes: "auto-routes",
  table: "table",
  sandbox: "sandbox",
  offload: "offload",
  control: "control",
  watch: "watch",
} as const satisfies Partial<Record<keyof ProxyConfig, string>>;

/**
 * A configuration as far as a running program can follow it.
 *
 * @returns it, and the keys whose change takes a restart
 */
export function followable(
  before: ProxyConfig,
  after: ProxyConfig,
): { readonly config: ProxyConfig; readonly kept: readonly string[] } {
  const keys = Object.keys(FIXED) as (keyof typeof FIXED)[];
  const kept = keys.filter((key) => JSON.stringify(before[key]) !== JSON.stringify(after[key]));
  const without = Object.entries(after).filter(([key]) => !Object.hasOwn(FIXED, key));
  const fixed = Object.entries(before).filter(([key]) => Object.hasOwn(FIXED, key));
  return {
    config: Object.fromEntries([...without, ...fixed]) as unknown as ProxyConfig,
    kept: kept.map((key) => FIXED[key]),
  };
}
