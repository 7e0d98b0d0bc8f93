/** The status page: its files, and the JSON that it requests. Read only, and bounded in size and rate. */
import type { Status } from "../control/protocol.ts";
import { statusOf, type StatusSource } from "../control/status.ts";
import type { ProxyConfig } from "../config/model.ts";
import type { Answer, Question } from "../metrics/http.ts";
import type { Health } from "../metrics/server.ts";
import { BUCKETS_MS, Level } from "../native/layout.ts";
import { ASSETS } from "./assets.ts";
import { History, type Latency, latencyOf, type Sample } from "./history.ts";
import { isAddressed } from "./host.ts";
import { type InForce, inForce } from "./in_force.ts";
import { type Note, Recent } from "./recent.ts";

/** Listeners that are listed; the totals have all. */
const MOST_LISTENERS = 100;
/** Listeners whose upstreams are tried: each costs its service a connection. */
const MOST_TRIED = 20;
/** An answer is made again no sooner than this, however many ask. */
const FRESH_MS = 500;
const JSON_TYPE = "application/json; charset=utf-8";

/**
 * Nothing from elsewhere, nothing inline, no frame, no form; what a text holds cannot become markup
 * (Content Security Policy Level 3, Trusted Types).
 */
const HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

/** What `/status.json` says. */
export interface StatusAnswer {
  /** Milliseconds since 1970. */
  readonly time: number;
  /** What `mmproxy status` says, of up to 100 listeners. */
  readonly status: Status;
  readonly omittedListeners: number;
  readonly latency: Latency;
  readonly notes: readonly Note[];
  /** Whether the log level lets refusals be noted. */
  readonly notesRefusals: boolean;
}

/** What `/history.json` says. */
export interface HistoryAnswer {
  /** Upper bounds of the latencies' buckets, in milliseconds. */
  readonly boundsMs: readonly number[];
  /** The oldest first. */
  readonly samples: readonly Sample[];
}

/** What `/health.json` says: of the workers, and of each listener's upstreams. */
export interface HealthAnswer {
  readonly workers: Health;
  readonly listeners: readonly (Health & { readonly name: string })[];
}

/** What is shown. */
export interface Shown extends StatusSource {
  /** In force now. */
  readonly config: () => ProxyConfig;
  readonly health: () => Health;
  readonly readiness: (listener: string) => Promise<Health | undefined>;
}

/** The page of a running program. */
export class StatusSite {
  readonly #shown: Shown;
  readonly #now: () => number;
  readonly #history: History;
  readonly #recent = new Recent();
  readonly #made = new Map<string, { readonly at: number; readonly body: Promise<string> }>();

  /** @param now milliseconds, only ever growing */
  constructor(shown: Shown, now: () => number = () => performance.now()) {
    this.#shown = shown;
    this.#now = now;
    this.#history = new History(() => shown.stats(0));
  }

  /** Notes a line of the native core's events, where it is a refusal or a failure. */
  get note(): Recent["take"] {
    return this.#recent.take;
  }

  close(): void {
    this.#history.close();
  }

  /** The answer to a request; nothing if the path is not the page's. */
  async answer({ path, host }: Question): Promise<Answer | undefined> {
    const asset = ASSETS.get(path);
    const make = this.#sources.get(path);
    if (!asset && !make) return undefined;
    if (!isAddressed(host)) {
      return {
        status: 421,
        body:
          "Open the status page by IP address or as localhost: other names are refused, since a " +
          "web site could point its own here (DNS rebinding)\n",
        headers: HEADERS,
      };
    }
    if (asset) {
      const [type, body] = asset;
      return { status: 200, body, type, headers: HEADERS };
    }
    return make &&
      { status: 200, body: await this.#fresh(path, make), type: JSON_TYPE, headers: HEADERS };
  }

  readonly #sources: ReadonlyMap<string, () => unknown> = new Map<string, () => unknown>([
    ["/status.json", (): StatusAnswer => this.#status()],
    ["/history.json", (): HistoryAnswer => ({
      boundsMs: BUCKETS_MS,
      samples: this.#history.samples,
    })],
    ["/health.json", (): Promise<HealthAnswer> => this.#health()],
    ["/config.json", (): InForce => inForce(this.#shown.config(), MOST_LISTENERS)],
  ]);

  #status(): StatusAnswer {
    const { listeners, stats, config } = this.#shown;
    return {
      time: Date.now(),
      status: statusOf(this.#shown, MOST_LISTENERS),
      omittedListeners: Math.max(0, listeners.open.length - MOST_LISTENERS),
      latency: latencyOf(stats(0)),
      notes: this.#recent.notes,
      notesRefusals: Level[config().logLevel] >= Level.warn,
    };
  }

  async #health(): Promise<HealthAnswer> {
    const names = this.#shown.listeners.open.slice(0, MOST_TRIED).map(({ config }) => config.name);
    const listeners = await Promise.all(names.map(async (name) => {
      const health = await this.#shown.readiness(name);
      return health ? [{ name, ...health }] : [];
    }));
    return { workers: this.#shown.health(), listeners: listeners.flat() };
  }

  #fresh(path: string, make: () => unknown): Promise<string> {
    const before = this.#made.get(path);
    if (before && this.#now() - before.at < FRESH_MS) return before.body;
    const body = Promise.resolve(make()).then((value) => JSON.stringify(value));
    this.#made.set(path, { at: this.#now(), body });
    return body;
  }
}
