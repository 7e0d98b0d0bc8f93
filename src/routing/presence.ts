/** The other runs of this program that use a routing table, in the same network namespace. */
import { type Library, NativeError } from "../native/library.ts";

type Native = Pick<Library, "holdName" | "readFile">;

/** A run that uses the table. */
export interface Neighbour {
  /** It has set routes there, which the last run that uses them removes. */
  readonly hasSet: boolean;
}

/** A run's own sign, and those of others: names that processes hold as long as they live. */
export class Presence {
  readonly #native: Native;
  readonly #prefix: string;
  #sign: string | undefined;
  // Containers share a network and not the numbers of processes.
  readonly #own = crypto.randomUUID();

  constructor(native: Native, table: number) {
    this.#native = native;
    this.#prefix = `mmproxy/table/${table}/`;
  }

  /** Announces that this run uses the table. If this fails, other runs do not wait for this one. */
  announce(hasSet: boolean): void {
    const sign = `${this.#prefix}${this.#own}/${hasSet ? "set" : "used"}`;
    try {
      this.#native.holdName(sign);
      this.#sign = sign;
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
    }
  }

  /** The name that this run holds as long as it lives, if it could be had. */
  get sign(): string | undefined {
    return this.#sign;
  }

  /** Whether a run still holds its name. */
  isHeld(sign: string): boolean {
    return this.#names(sign).includes(sign);
  }

  /** Those that run now. */
  others(): Neighbour[] {
    return this.#names(this.#prefix).flatMap((name) => {
      const [own, how] = name.slice(this.#prefix.length).split("/");
      return own === this.#own ? [] : [{ hasSet: how === "set" }];
    });
  }

  /** The last column of /proc/net/unix has a socket's name; `@` stands for an abstract one (unix(7)). */
  #names(prefix: string): string[] {
    try {
      const table = new TextDecoder().decode(this.#native.readFile("/proc/self/net/unix"));
      return table.split("\n").map((line) => line.slice(line.lastIndexOf(" @") + 2))
        .filter((name) => name.startsWith(prefix));
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      return [];
    }
  }
}
