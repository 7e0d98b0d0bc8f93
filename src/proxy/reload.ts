/** The configuration in force, and its replacement by a reload. */
import { ConfigError } from "../config/mistakes.ts";
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import type { Log } from "../log/log.ts";
import { Status, TRUST } from "../native/layout.ts";
import { type Library, NativeError } from "../native/library.ts";
import type { AutoRoutes } from "../routing/auto.ts";
import { RoutingError } from "../routing/plan.ts";
import { type Change, followable, type Intended, planChange, type Running } from "./change.ts";
import type { Listeners } from "./listeners.ts";
import { logListening } from "./listening.ts";
import { hasNames, Names } from "./names.ts";
import { configure, intendedOf, warnOfEveryPeer } from "./open.ts";
import { Past } from "./past.ts";
import { StartError } from "./start_error.ts";

/** A UDP port that is closed is free after its last replies have had their second. */
const UNTIL_FREE_MS = 1_500;

/** How often it is asked whether connections still have a listener as it was, where a route depends on it. */
const RELEASE_MS = 1_000;

/** What a reload came to. */
export interface Reloaded {
  readonly good: boolean;
  /** What the log says of it, one line each. */
  readonly lines: readonly string[];
}

/** What a run gives it. */
export interface Parts {
  readonly proxy: number;
  readonly workers: number;
  /** How many files the process may have open. */
  readonly fileLimit: number;
  readonly library: Pick<Library, "configure" | "isListenerInUse" | "readFile" | "resolve">;
  readonly listeners: Listeners;
  readonly log: Log;
  /** Reads the file again; without one there is none. Throws a `ConfigError`. */
  readonly reread?: () => Promise<ProxyConfig>;
}

/** The listeners of a run: opened at its start, and made others by a reload. One thing at a time. */
export class Configuration {
  /** Set once they are: a reload follows them. */
  routes: AutoRoutes | undefined;
  /** Warns of routing that is missing; a reload that adds or changes listeners asks it, where `routes` sets none. */
  warnOfMissingRoutes: ((config: ProxyConfig, log: Log) => void) | undefined;
  readonly #parts: Parts;
  readonly #names: Names;
  /** As it was written: names are names. */
  #config: ProxyConfig;
  #running: readonly Running[] = [];
  /** How many times the core was configured. */
  #version = 0;
  readonly #past: Past;
  /** The end of the reload in progress. */
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;
  /** When a port was last closed. */
  #freedAt = -Infinity;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #releasing: ReturnType<typeof setTimeout> | undefined;
  /** Why the last lookup could not be used, so that it is logged once. */
  #refused: string | undefined;

  private constructor(config: ProxyConfig, parts: Parts) {
    this.#config = config;
    this.#parts = parts;
    this.#names = new Names(parts.library, parts.log);
    this.#past = new Past(parts.proxy, parts.library);
  }

  /**
   * Opens all listeners.
   *
   * @throws {StartError} when one cannot be opened; then none is
   */
  static async open(config: ProxyConfig, parts: Parts): Promise<Configuration> {
    const opened = new Configuration(config, parts);
    const { added } = await opened.#apply(config);
    added.forEach((entry) => warnOfEveryPeer(config, entry, parts.log));
    opened.#schedule();
    return opened;
  }

  /** What is in force. */
  get config(): ProxyConfig {
    return this.#config;
  }

  /** The same with addresses instead of names. */
  get resolved(): ProxyConfig {
    return { ...this.#config, listeners: this.#running.map(({ config }) => config) };
  }

  /** The files that it was read from. */
  get files(): string[] {
    const { file, listeners } = this.#config;
    return [...new Set([...file === undefined ? [] : [file], ...subnetFiles(listeners)])];
  }

  /** No more reloads: the program ends. */
  close(): void {
    this.#closed = true;
    cancel(this.#timer);
    cancel(this.#releasing);
  }

  /** Does something with the listeners as they are: no reload changes them meanwhile. */
  alone<T>(work: () => Promise<T>): Promise<T> {
    return this.#inTurn(work);
  }

  /**
   * Reads everything again and follows it, or changes nothing. The log has the outcome.
   *
   * @param onlyChanges nothing is logged if nothing has changed
   */
  async reload(onlyChanges = false): Promise<Reloaded> {
    const lines: string[] = [];
    const log: Log = (level, message, details) => {
      lines.push(message);
      this.#parts.log(level, message, details);
    };
    const good = await this.#inTurn(() => this.#reload(log, onlyChanges));
    return { good, lines };
  }

  async #reload(log: Log, onlyChanges: boolean): Promise<boolean> {
    if (this.#closed) return false;
    const { reread } = this.#parts;
    if (!reread && this.files.length === 0 && !hasNames(this.#config)) {
      log("warn", "Nothing to reload: mmproxy runs without --config and --allowed-subnets", {
        event: "nothing_to_reload",
      });
      return true;
    }
    try {
      const { config, kept } = followable(this.#config, await reread?.() ?? this.#config);
      const change = await this.#apply(config);
      this.#refused = undefined;
      if (kept.length > 0) logKept(kept, log);
      if (onlyChanges && isSame(change)) return true;
      if (reread) this.#logChange(change, log);
      else this.#logSubnets(log);
      if (change.added.length + change.changed.length > 0) {
        this.warnOfMissingRoutes?.(this.resolved, log);
      }
      return true;
    } catch (error) {
      const path = this.#config.file ?? subnetFiles(this.#config.listeners)[0];
      logFailure(error, path, log);
      return false;
    }
  }

  #logChange({ added, changed, removed, unchanged }: Change, log: Log): void {
    const path = this.#config.file;
    const parts = [
      ...[added, changed, removed].map((entries, index) =>
        [entries.map(({ config }) => config.name), ["added", "changed", "removed"][index]] as const
      ).filter(([names]) => names.length > 0)
        .map(([names, what]) => `${listeners(names.length)} ${what} (${names.join(", ")})`),
      ...(unchanged > 0 ? [`${unchanged} as before`] : []),
    ];
    log("info", `Reloaded ${path}: ${parts.join(", ")}`, {
      event: "reloaded",
      path,
      added: added.map(({ config }) => config.name),
      changed: changed.map(({ config }) => config.name),
      removed: removed.map(({ config }) => config.name),
      unchanged,
    });
    const written = new Map(this.#config.listeners.map((listener) => [listener.name, listener]));
    for (const entry of [...added, ...changed]) {
      const listener = written.get(entry.config.name) ?? entry.config;
      logListening(this.#config, listener, this.#parts.workers, log);
      warnOfEveryPeer(this.#config, entry, log);
    }
  }

  #logSubnets(log: Log): void {
    for (const path of subnetFiles(this.#config.listeners)) {
      const user = this.#running.find(({ config: { allowedSubnets } }) =>
        allowedSubnets?.kind === "file" && allowedSubnets.path === path
      );
      const count = (user?.peers?.length ?? 0) / TRUST.size;
      const subnets = count === 1 ? "1 allowed subnet" : `${count} allowed subnets`;
      log("info", `Reloaded ${path}: ${subnets}`, {
        event: "subnets_reloaded",
        value: count,
        path,
      });
    }
  }

  /** Looks the names up again; whatever comes of it, what is open stays open. */
  async #resolveAgain(): Promise<void> {
    if (this.#closed) return;
    try {
      await this.#apply(
        this.#config,
        ({ listeners }) => listeners.map((config, index) => ({ ...this.#running[index], config })),
      );
      this.#refused = undefined;
    } catch (error) {
      if (!isExpected(error)) throw error;
      if (error.message === this.#refused) return;
      this.#refused = error.message;
      logFailure(error, "what the names of upstreams lead to", this.#parts.log);
    }
  }

  #schedule(): void {
    cancel(this.#timer);
    const { resolveInterval } = this.#config;
    if (this.#closed || resolveInterval === 0 || !hasNames(this.#config)) return;
    this.#timer = setTimeout(async () => {
      await this.#inTurn(() => this.#resolveAgain());
      this.#schedule();
    }, resolveInterval * 1000);
  }

  /**
   * @param intended whom each listener lets in; by default the files that say so are read
   * @throws {StartError | RoutingError} when it cannot be followed; then all is as it was
   */
  async #apply(
    config: ProxyConfig,
    intended: (resolved: ProxyConfig) => Intended[] = (resolved) =>
      intendedOf(resolved, this.#parts.library),
  ): Promise<Change> {
    const { log, listeners } = this.#parts;
    const lookup = await this.#names.look(config.listeners);
    const resolved = { ...config, listeners: lookup.listeners };
    const change = planChange(this.#running, intended(resolved));
    const ids = isSame(change)
      ? change.entries.map(({ id }) => id ?? 0)
      : await this.#configure(resolved, change);
    this.#running = this.#follow(change, ids);
    this.#running.forEach(({ id, config }) => listeners.set(id, config));
    change.removed.forEach(({ id }) => listeners.close(id));
    this.#config = config;
    lookup.adopt();
    this.#releaseRoutes();
    if (change.removed.length + change.changed.length > 0) this.#freedAt = performance.now();
    for (const { config: { name } } of change.removed) {
      const { drainTimeout } = config;
      log("info", `${name}: closed; its connections have ${drainTimeout} s to finish`, {
        event: "listener_closed",
        listener: name,
      });
    }
    this.#schedule();
    return change;
  }

  /** What runs after a change that the core has carried out; what is over is noted. */
  #follow(change: Change, ids: readonly number[]): Running[] {
    const { entries, changed, removed } = change;
    const isChanged = new Set(changed.map(({ id }) => id));
    const before = new Map(this.#running.map((known) => [known.id, known]));
    if (!isSame(change)) {
      const gone = [...before.values()].filter(({ id }) => isChanged.has(id));
      this.#past.add([...gone, ...removed], this.#version);
      this.#version++;
    }
    return entries.map((entry, index) => {
      const id = ids[index] ?? 0;
      const since = isChanged.has(id) ? undefined : before.get(id)?.since;
      return { ...entry, id, since: since ?? this.#version };
    });
  }

  /** Removes routes that neither a listener nor a connection needs any more; asks again while one does. */
  #releaseRoutes(): void {
    cancel(this.#releasing);
    const { routes } = this;
    const now = this.resolved;
    if (this.#closed || !routes?.exceeds(now)) return;
    const past = this.#past.inUse();
    routes.keepFor({ ...now, listeners: [...now.listeners, ...past] });
    if (past.length > 0) this.#releasing = setTimeout(() => this.#releaseRoutes(), RELEASE_MS);
  }

  async #configure(config: ProxyConfig, { entries }: Change): Promise<number[]> {
    const { proxy, workers, fileLimit, library } = this.#parts;
    const takeBack = this.routes?.follow(config);
    const isRunning = this.#version > 0;
    const place = { config, proxy, workers, fileLimit, isRunning };
    const call = () => configure(place, entries, library);
    try {
      try {
        return call();
      } catch (error) {
        if (!isTaken(error) || performance.now() > this.#freedAt + UNTIL_FREE_MS) throw error;
        // By a port of our own, perhaps, that the last reload closed.
        await new Promise((wake) => setTimeout(wake, UNTIL_FREE_MS));
        return call();
      }
    } catch (error) {
      takeBack?.();
      throw error;
    }
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => {});
    return turn;
  }
}

function subnetFiles(listeners: readonly ListenerConfig[]): string[] {
  const paths = listeners.flatMap(({ allowedSubnets }) =>
    allowedSubnets?.kind === "file" ? [allowedSubnets.path] : []
  );
  return [...new Set(paths)];
}

/** Deno loads its timers when the first is set or cleared, which takes 15 ms: a start needs none. */
function cancel(timer: ReturnType<typeof setTimeout> | undefined): void {
  if (timer !== undefined) clearTimeout(timer);
}

function isSame({ added, changed, removed }: Change): boolean {
  return added.length + changed.length + removed.length === 0;
}

function isTaken(error: unknown): boolean {
  return error instanceof StartError && error.cause instanceof NativeError &&
    error.cause.status === Status.address_in_use;
}

function isExpected(error: unknown): error is Error {
  return [ConfigError, StartError, RoutingError].some((kind) => error instanceof kind);
}

function logKept(kept: readonly string[], log: Log): void {
  const them = kept.length === 1 ? "it" : "them";
  log("warn", `Restart mmproxy to change ${kept.join(", ")}: a reload does not apply ${them}`, {
    event: "restart_needed",
    keys: kept,
  });
}

/** @param what the file, or what else could not be followed */
function logFailure(error: unknown, what: string | undefined, log: Log): void {
  if (!isExpected(error)) throw error;
  const path = what ?? "the configuration";
  const lines = error.message.split("\n");
  const [only = ""] = lines;
  const stays = "the old configuration stays in force";
  if (lines.length === 1 && !(error instanceof ConfigError)) {
    return log("error", `Cannot reload ${path}: ${only}; ${stays}`, {
      event: "reload_failed",
      error: only,
      path,
    });
  }
  for (const line of lines) log("error", line, { event: "mistake", path });
  const mistakes = lines.length === 1 ? "1 mistake" : `${lines.length} mistakes`;
  log("error", `Cannot reload ${path}: ${mistakes}; ${stays}`, {
    event: "reload_failed",
    value: lines.length,
    path,
  });
}

function listeners(count: number): string {
  return count === 1 ? "1 listener" : `${count} listeners`;
}
