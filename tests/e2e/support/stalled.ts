/** A program whose log nobody reads: what it does is seen at its metrics port. */

import assert from "node:assert/strict";
import { freePort, show } from "./endpoints.ts";
import { command, type Start } from "./program.ts";
import { parseScrape } from "./prometheus.ts";
import { eventually, within } from "./time.ts";

/** A program whose standard error is a pipe that nobody reads. */
export class Stalled implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly ended: Promise<Deno.CommandStatus>;
  readonly port: number;
  readonly url: string;

  private constructor(child: Deno.ChildProcess, port: number, url: string) {
    this.#child = child;
    this.ended = child.status;
    this.port = port;
    this.url = url;
  }

  /**
   * Starts it and waits until it is well.
   *
   * @param pipe the path of a FIFO to make; the program holds both ends of it open
   * @param before a shell command to run first
   */
  static async start(
    pipe: string,
    args: string[],
    { root, before = ":" }: Pick<Start, "root"> & { before?: string } = {},
  ): Promise<Stalled> {
    const port = freePort();
    const metrics = show({ ip: "127.0.0.1", port: freePort() });
    const child = command(
      ["-l", show({ ip: "127.0.0.1", port }), "--metrics-addr", metrics, ...args],
      {
        shell: `mkfifo ${pipe} && ${before} && exec 3<>${pipe} 2>${pipe} "$@"`,
        ...(root !== undefined && { root }),
      },
    ).spawn();
    const stalled = new Stalled(child, port, `http://${metrics}`);
    try {
      const ask = async () => await stalled.get("/healthz").catch(() => false);
      await eventually(ask, "health", 30_000);
      return stalled;
    } catch (error) {
      await stalled[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** What the metrics port answers, promptly. */
  async get(path: string): Promise<string> {
    const response = await within(fetch(this.url + path), `answer to ${path}`, 5_000);
    assert.equal(response.status, 200, path);
    return await response.text();
  }

  async sample(name: string): Promise<number | undefined> {
    return parseScrape(await this.get("/metrics")).samples.get(name);
  }

  signal(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.signal("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.ended;
    await Promise.all([this.#child.stdout.cancel(), this.#child.stderr.cancel()]);
  }
}
