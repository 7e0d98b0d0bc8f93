/** Servers and tools of others, started in a directory of their own and ended by the test. */

import { tcpListens } from "./endpoints.ts";
import { eventually, within } from "./time.ts";

const IN_CI = Deno.env.get("CI") === "true";

/** The path of an installed program, or `undefined`. */
export function installed(name: string): string | undefined {
  const directories = (Deno.env.get("PATH") ?? "").split(":");
  return directories.map((directory) => `${directory}/${name}`).find(isFile);
}

/** Whether there is a file at `path`. */
export function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/**
 * A test that needs third-party software. If some is missing, the test is skipped, and its name says so;
 * in CI it fails.
 *
 * @param needs what must be there: its name, and whether it is.
 */
export function realPeerTest(
  name: string,
  needs: Record<string, unknown>,
  run: () => Promise<void>,
): void {
  const missing = Object.keys(needs).filter((need) => !needs[need]).join(", ");
  if (missing === "") return Deno.test(name, run);
  Deno.test({
    name: `${name} (needs ${missing})`,
    ignore: !IN_CI,
    fn: () => {
      throw new Error(`Missing: ${missing}; .ci/run installs it`);
    },
  });
}

/** A directory that is removed with all that it holds. */
export class Scratch implements AsyncDisposable {
  private constructor(readonly path: string) {}

  static async make(): Promise<Scratch> {
    return new Scratch(await Deno.makeTempDir({ prefix: "mmproxy-e2e-" }));
  }

  /** Writes a file; returns its path. */
  async write(name: string, content: string): Promise<string> {
    const path = `${this.path}/${name}`;
    await Deno.writeTextFile(path, content);
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

/** A program that runs until the test ends. */
export class Server implements AsyncDisposable {
  #child: Deno.ChildProcess;
  #said: Promise<string>[];

  private constructor(child: Deno.ChildProcess) {
    this.#child = child;
    this.#said = [child.stdout, child.stderr].map((stream) => new Response(stream).text());
  }

  /** Starts it and waits until it listens on a TCP port. */
  static async start(port: number, command: string, args: string[]): Promise<Server> {
    const server = Server.spawn(command, args);
    let ended = false;
    server.#child.status.then(() => ended = true);
    try {
      await eventually(() => ended || tcpListens(port), `${command} listening on ${port}`);
      if (ended) throw new Error(`${command} ended:\n${await server.output()}`);
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
    return server;
  }

  /** Starts it and waits for nothing. */
  static spawn(command: string, args: string[]): Server {
    const child = new Deno.Command(command, {
      args,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    return new Server(child);
  }

  /** All that it said; waits for its end. */
  async output(): Promise<string> {
    return (await within(Promise.all(this.#said), "end of the server's output", 30_000)).join("");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // Ended before.
    }
    await within(this.#child.status, "end of the server");
    await this.output();
  }
}

/** Runs a tool to its end; returns what it printed, and fails when it fails. */
export async function runTool(command: string, args: string[], ms = 30_000): Promise<string> {
  const child = new Deno.Command(command, {
    args,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const decoder = new TextDecoder();
  try {
    const { success, stdout, stderr } = await within(child.output(), `end of ${command}`, ms);
    if (success) return decoder.decode(stdout);
    throw new Error(`${[command, ...args].join(" ")} failed:\n${decoder.decode(stderr)}`);
  } catch (error) {
    try {
      child.kill("SIGKILL");
    } catch {
      // Ended before.
    }
    throw error;
  }
}
