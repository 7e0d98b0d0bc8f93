/** Former listeners that a connection or a flow still uses. */
import type { ListenerConfig } from "../config/model.ts";
import type { Library } from "../native/library.ts";
import type { Running } from "./change.ts";

/** One that was changed or removed. */
interface Former extends Running {
  /** The last of the run's configurations that had it so. */
  readonly until: number;
}

/** Those of one proxy. */
export class Past {
  #former: Former[] = [];

  constructor(readonly proxy: number, readonly library: Pick<Library, "isListenerInUse">) {}

  /** Notes that the configuration behind number `until` changed or removed these. */
  add(gone: readonly Running[], until: number): void {
    this.#former.push(...gone.map((running) => ({ ...running, until })));
  }

  /** Those that somebody still has; the others are forgotten. */
  inUse(): ListenerConfig[] {
    this.#former = this.#former.filter(({ id, since, until }) =>
      this.library.isListenerInUse(this.proxy, id, since, until)
    );
    return this.#former.map(({ config }) => config);
  }
}
