/**
 * A stream of datagrams at a rate, from many clients by way of a few peers, and what arrives of it: each by its
 * number, with the address that it came from. Both ends run in threads of their own, by system calls that move
 * many at once.
 */

import type { Endpoint } from "./endpoints.ts";
import { within } from "./time.ts";

/** What is sent where. */
export interface Stream {
  /** Where the program takes datagrams: each in turn. */
  readonly to: readonly Endpoint[];
  /** Where the service is, which this opens. */
  readonly service: Endpoint;
  /** A header for each client. */
  readonly headers: readonly Uint8Array[];
  /** The clients' ports, as the service sees them. */
  readonly ports: readonly number[];
  /** Datagrams a second. */
  readonly rate: number;
}

/** What became of it. */
export interface Outcome {
  readonly sent: number;
  readonly arrived: number;
  readonly twice: number;
  /** From another port than the client's. */
  readonly foreign: number;
  /** Came to the service, which did not read in time: the test's own loss. */
  readonly overflowed: number;
}

/** Words of the memory that the threads share: the outcome, whether to stop, and one to sleep on. */
export const WORD = {
  sent: 0,
  arrived: 1,
  twice: 2,
  foreign: 3,
  overflowed: 4,
  stop: 5,
  asleep: 6,
} as const;

/** Datagrams that run. */
export class DatagramLoad implements AsyncDisposable {
  readonly #words = new Int32Array(new SharedArrayBuffer(4 * Object.keys(WORD).length));
  readonly #workers: Worker[] = [];
  readonly #ends: Promise<void>[] = [];

  private constructor(readonly stream: Stream) {}

  static async start(stream: Stream): Promise<DatagramLoad> {
    const load = new DatagramLoad(stream);
    // Who receives must be there first.
    await load.#run("receive");
    await load.#run("send");
    return load;
  }

  /** How many were sent so far. */
  get sent(): number {
    return Atomics.load(this.#words, WORD.sent);
  }

  /** Sends no more, waits for what is on its way, and says what became of it. */
  async stop(): Promise<Outcome> {
    Atomics.store(this.#words, WORD.stop, 1);
    await within(Promise.all(this.#ends), "end of the datagrams", 30_000);
    const [sent = 0, arrived = 0, twice = 0, foreign = 0, overflowed = 0] = this.#words;
    return { sent, arrived, twice, foreign, overflowed };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    for (const worker of this.#workers) worker.terminate();
  }

  async #run(role: "send" | "receive"): Promise<void> {
    const url = new URL("./datagram_load_thread.ts", import.meta.url);
    const worker = new Worker(url, { type: "module", name: role });
    this.#workers.push(worker);
    const ready = Promise.withResolvers<void>();
    const end = Promise.withResolvers<void>();
    this.#ends.push(end.promise);
    worker.onmessage = ({ data }: MessageEvent<string>) =>
      data === "ready" ? ready.resolve() : end.resolve();
    worker.onerror = (event) => {
      event.preventDefault();
      ready.reject(new Error(event.message));
      end.reject(new Error(event.message));
    };
    worker.postMessage({ role, words: this.#words, stream: this.stream });
    await within(ready.promise, `thread that can ${role}`);
  }
}
