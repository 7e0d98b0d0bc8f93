/** Parsed flags as a configuration: one complete listener, or the settings that override a file. */
import { type ListenerConfig, MODEL_DEFAULTS, type ProxyConfig } from "../config/model.ts";
import { transportsOf } from "../config/options.ts";
import { distinctPorts, overlaps } from "../config/ranges.ts";
import { NONE, type Upstream } from "../config/upstreams.ts";
import type { Library } from "../native/library.ts";
import { type Key, namesOf, OPTIONS, type Row, ROWS } from "./options.ts";
import { UsageError } from "./usage_error.ts";

/** Where the configuration comes from. */
export type Setup =
  | { readonly kind: "flags"; readonly config: ProxyConfig }
  | { readonly kind: "file"; readonly path: string; readonly overrides: Partial<ProxyConfig> };

/** What commander found for an option. */
export interface Typed {
  /** Whether it was typed, or the environment has it; otherwise the value is its default. */
  readonly isTyped: boolean;
  /** `true` for a switch; undefined if there is no default. */
  readonly value: string | readonly string[] | true | undefined;
  /** The names of the flag that was typed, of an option or its alias; or the variable. */
  readonly names: string;
}

export type TypedOptions = Readonly<Record<Key, Typed>>;

/**
 * The configuration of a command line.
 *
 * @param file the value of `--config`
 * @throws {UsageError} about the first option that is wrong
 */
export function readSetup(typed: TypedOptions, file: string | undefined): Setup {
  return file === undefined
    ? { kind: "flags", config: flagsConfig(typed) }
    : { kind: "file", path: file, overrides: overridesOf(typed) };
}

/**
 * The configuration that results from a setup.
 *
 * @param library reads the file and those that it names
 * @throws {ConfigError} with every mistake of the file
 */
export async function readConfiguration(
  setup: Setup,
  library: Pick<Library, "readFile">,
): Promise<ProxyConfig> {
  if (setup.kind === "flags") return setup.config;
  // Only now: who has no file need not load what reads one.
  const { loadConfig } = await import("../config/check.ts");
  const config = loadConfig(setup.path, (path) => library.readFile(path));
  return { ...config, ...setup.overrides, file: setup.path };
}

/** Flags together with a file; listeners are configured in the file only. */
function overridesOf(typed: TypedOptions): Partial<ProxyConfig> {
  const given = ROWS.filter(([key]) => typed[key].isTyped);
  const [ofListener] = given.filter(([, { of }]) => of === "listener");
  if (ofListener) {
    throw new UsageError(
      `Option ${typed[ofListener[0]].names}: with --config, set it in the file for each listener`,
    );
  }
  return valuesOf(given, typed);
}

function flagsConfig(typed: TypedOptions): ProxyConfig {
  const wanted = ROWS.filter(([key]) => isWanted(key, typed));
  const of = (what: Row["of"]) => valuesOf(wanted.filter(([, row]) => row.of === what), typed);
  const given = of("listener") as unknown as Omit<
    ListenerConfig,
    "name" | "allowedDestinations" | "trust" | "optionalWait"
  >;
  const listener: ListenerConfig = {
    allowedDestinations: [],
    trust: [],
    optionalWait: MODEL_DEFAULTS.optionalWait,
    ...given,
    name: given.listen[0]?.text ?? "",
  };
  checkListen(listener);
  checkDestinations(listener);
  checkRange("ipv4", listener);
  checkRange("ipv6", listener);
  return {
    ...of("proxy") as unknown as Omit<ProxyConfig, "listeners">,
    resolveInterval: MODEL_DEFAULTS.resolveInterval,
    listeners: [listener],
  };
}

function valuesOf(rows: typeof ROWS, typed: TypedOptions): Partial<ProxyConfig> {
  const values = rows.map(([key, row]) => [key, valueOf(row, typed[key])]);
  return Object.fromEntries(values.filter(([, value]) => value !== undefined));
}

function valueOf({ parse, many }: Row, { value, names }: Typed): unknown {
  if (!parse) return value === true;
  if (value === undefined || value === true) return undefined;
  const texts = typeof value === "string" ? [value] : value;
  return many ? texts.map((text) => parse(text, names)) : parse(texts.at(-1) ?? "", names);
}

/**
 * Where one upstream is typed, the other family has none: its default could be a server that nobody
 * meant to publish.
 */
function isWanted(key: Key, typed: TypedOptions): boolean {
  if (key !== "ipv4" && key !== "ipv6") return true;
  const isTyped = String(typed[key].value).toLowerCase() !== NONE && typed[key].isTyped;
  // There, they are for headers without a client, and nobody has to name one.
  if (String(typed.upstream.value).toLowerCase() === "destination") return isTyped;
  const neither = !typed.ipv4.isTyped && !typed.ipv6.isTyped;
  const isNamed = (name: "ipv4" | "ipv6") =>
    (typed[name].isTyped || neither) && String(typed[name].value).toLowerCase() !== NONE;
  if (!isNamed("ipv4") && !isNamed("ipv6")) {
    throw new UsageError(
      `Options ${namesOf(OPTIONS.ipv4)} and ${
        namesOf(OPTIONS.ipv6)
      }: no upstream is left; set one of them`,
    );
  }
  return isNamed(key);
}

function checkListen({ listen, protocol }: ListenerConfig): void {
  const transports = transportsOf(protocol);
  const [found] = overlaps(listen.map((range) => ({ range, transports, owner: range.text })));
  if (!found) return;
  throw new UsageError(
    `Option ${namesOf(OPTIONS.listen)}: ${JSON.stringify(found.claim.owner)} overlaps ${
      JSON.stringify(found.earlier.owner)
    }`,
  );
}

/** A header may select only destinations that the operator allows, and only with the policy `destination`. */
function checkDestinations({ upstream, allowedDestinations }: ListenerConfig): void {
  const [policy, destinations] = [OPTIONS.upstream, OPTIONS.allowedDestinations].map(namesOf);
  if (upstream === "destination" && allowedDestinations.length === 0) {
    throw new UsageError(
      `Option ${policy}: destination needs ${destinations}, which limits the destinations`,
    );
  }
  if (upstream === "family" && allowedDestinations.length > 0) {
    throw new UsageError(`Option ${destinations}: has no effect without ${policy} destination`);
  }
}

/** A range of upstream ports is matched one to one with those that are listened on. */
function checkRange(key: "ipv4" | "ipv6", listener: ListenerConfig): void {
  const upstream: Upstream | undefined = listener[key];
  if (!upstream || upstream.ports === "same") return;
  const many = upstream.ports.last - upstream.ports.first + 1;
  const listened = distinctPorts(listener.listen).length;
  if (many === 1 || many === listened) return;
  throw new UsageError(
    `Option ${namesOf(OPTIONS[key])}: ${JSON.stringify(upstream.text)} has ${many} ports and ${
      namesOf(OPTIONS.listen)
    } has ${listened}: give the same number, or a single port for all`,
  );
}
