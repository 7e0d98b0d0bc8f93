/** The listeners of the proxy by the native core's numbers: their names and settings. */
import type { ListenerConfig } from "../config/model.ts";

/** A listener, and its number in the native core. */
export interface RunningListener {
  /** From 1, and never given again. */
  readonly id: number;
  readonly config: ListenerConfig;
}

/**
 * What a number stands for, for log and metrics. One that is closed keeps its name: its connections
 * finish, and the log still speaks of them.
 */
export class Listeners {
  readonly #configs = new Map<number, ListenerConfig>();
  readonly #open = new Set<number>();
  readonly #openedAt = new Map<number, number>();

  /** @param now a clock, in milliseconds */
  constructor(readonly now: () => number = () => performance.now()) {}

  /** Notes a listener that is opened, or whose settings have changed. */
  set(id: number, config: ListenerConfig): void {
    if (!this.#openedAt.has(id)) this.#openedAt.set(id, this.now());
    this.#configs.set(id, config);
    this.#open.add(id);
  }

  /** Notes that a listener takes no more connections. */
  close(id: number): void {
    this.#open.delete(id);
  }

  /** A listener's settings; undefined for 0, which is the proxy. */
  get(id: number): ListenerConfig | undefined {
    return this.#configs.get(id);
  }

  /** The name of a listener. */
  name(id: number): string | undefined {
    return this.#configs.get(id)?.name;
  }

  /** How long ago a listener was opened, in milliseconds. */
  age(id: number): number {
    const now = this.now();
    return now - (this.#openedAt.get(id) ?? now);
  }

  /** Those that take connections, in the order in which they were opened. */
  get open(): RunningListener[] {
    return [...this.#configs].filter(([id]) => this.#open.has(id))
      .map(([id, config]) => ({ id, config }));
  }

  /** Whether a line has to say which listener it is about: one alone needs no name. */
  get isMany(): boolean {
    return this.#configs.size > 1;
  }
}
