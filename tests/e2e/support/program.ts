/** Starts the program under test as its users do, and reads its log. */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Endpoint, freePort, show } from "./endpoints.ts";
import { eventually, TIMEOUT, within } from "./time.ts";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");
/** Loading Deno, the library and a worker on a busy machine. */
const STARTUP = 30_000;

/** One line of `--log-format json`. */
export interface LogEvent {
  time: string;
  level: string;
  event: string;
  message: string;
  /** The name of the listener that it is about. */
  listener?: string;
  worker?: number;
  peer?: string;
  client?: string;
  upstream?: string;
  refusal?: string;
  came?: string;
  value?: number;
  left_out?: number;
  error?: string;
  /** With `upgraded`: the process that has taken over; with `taken_over`: how many flows it has. */
  successor?: number;
  flows?: number;
  /** With the event `stopped`: the counters that are not zero. */
  counters?: Record<string, number>;
}

/** How the program is started. */
export interface Start {
  /** Where it listens; by default a free port of 127.0.0.1. */
  listen?: Endpoint;
  /** A file that says where it listens, instead of `--listen-addr`. */
  config?: string;
  /** Flags beyond `--listen-addr`, `--log-format json` and `--log-level`. */
  args?: string[];
  logLevel?: string;
  /** A shell command in front, ended by `exec "$@"`, for example a smaller limit of open files. */
  shell?: string;
  v8Flags?: string;
  /** Permissions beside `--allow-ffi`, as Deno's flags: without `bin/mmproxy`, which gives its own. */
  permissions?: string[];
  /** The directory that holds `main.ts`; by default this repository. */
  root?: string;
  /** Deno's path, where it is not the tests' own. */
  deno?: string;
  /** A compiled program, instead of `main.ts` and Deno. */
  binary?: string;
}

/** What a run that ended by itself left. */
export interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

/** A running program. */
export class Program implements AsyncDisposable {
  /** Every JSON line so far. */
  readonly events: LogEvent[] = [];
  /** Every line so far that is not JSON, of both outputs. */
  readonly otherLines: string[] = [];
  #child: Deno.ChildProcess;
  #outputs: Promise<unknown>;
  #code: number | undefined;
  /** Whether the test has asked for the exit code, and so judges it itself. */
  #asked = false;

  private constructor(child: Deno.ChildProcess, readonly listen: Endpoint) {
    this.#child = child;
    this.#outputs = Promise.all([this.#read(child.stdout), this.#read(child.stderr)]);
    child.status.then(({ code }) => this.#code = code);
  }

  /** Starts it and waits until it listens. */
  static async start(start: Start = {}): Promise<Program> {
    const listen = start.listen ?? { ip: "127.0.0.1", port: freePort() };
    const args = [
      ...(start.config === undefined
        ? ["--listen-addr", show(listen)]
        : ["--config", start.config]),
      "--log-format",
      "json",
      "--log-level",
      start.logLevel ?? "debug",
      ...start.args ?? [],
    ];
    const program = new Program(command(args, start).spawn(), listen);
    try {
      await program.event("listening", () => true, STARTUP);
    } catch (cause) {
      await program[Symbol.asyncDispose]().catch(() => {});
      throw new Error(`The program does not listen; it said:\n${program.transcript()}`, { cause });
    }
    return program;
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** The first event of this name, past or to come, that `matches`. */
  event(
    name: string,
    matches: (event: LogEvent) => boolean = () => true,
    ms = TIMEOUT,
  ): Promise<LogEvent> {
    return eventually(
      () => {
        const found = this.events.find((event) => event.event === name && matches(event));
        if (found === undefined && this.#code !== undefined) {
          throw new Error(`The program ended with ${this.#code}:\n${this.transcript()}`);
        }
        return found;
      },
      `event ${name}`,
      ms,
    );
  }

  /** The events of this name so far. */
  all(name: string): LogEvent[] {
    return this.events.filter((event) => event.event === name);
  }

  signal(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  /** Waits for the end; the exit code, 128 and more after a signal. A defect of the program fails. */
  async ended(ms = TIMEOUT): Promise<number> {
    this.#asked = true;
    const { code } = await within(this.#child.status, "end of the program", ms);
    await within(this.#outputs, "end of the program's output");
    const defects = this.all("internal_error").map(({ message }) => message);
    assert.deepEqual(defects, [], "the program goes on after a defect, a test does not");
    return code;
  }

  /** Waits for the end of the process alone: one that has taken over may still write to its outputs. */
  async processEnded(ms = TIMEOUT): Promise<number> {
    this.#asked = true;
    return (await within(this.#child.status, "end of the program", ms)).code;
  }

  /** SIGTERM; asserts a clean end, and returns the counters. A counter that is zero reads as 0. */
  async stop(ms = TIMEOUT): Promise<Counters> {
    this.signal("SIGTERM");
    const code = await this.ended(ms);
    assert.equal(code, 0, `exit code after SIGTERM; it said:\n${this.transcript()}`);
    const stopped = this.all("stopped");
    assert.equal(stopped.length, 1, "one event stopped");
    return new Counters(stopped[0]?.counters ?? {});
  }

  /** All that it said, for a failure's message. */
  transcript(): string {
    return [...this.events.map((event) => JSON.stringify(event)), ...this.otherLines].join("\n");
  }

  /** Ends it whatever it does, and fails when it had died unasked. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#code === undefined) {
      this.signal("SIGKILL");
      await this.ended();
      return;
    }
    await this.#outputs;
    if (this.#asked) return;
    assert.equal(this.#code, 0, `exit code; it said:\n${this.transcript()}`);
  }

  async #read(stream: ReadableStream<Uint8Array>): Promise<void> {
    let rest = "";
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#line(line);
    }
    if (rest !== "") this.#line(rest);
  }

  #line(line: string): void {
    if (line.startsWith("{")) this.events.push(JSON.parse(line) as LogEvent);
    else if (line !== "") this.otherLines.push(line);
  }
}

/** The counters of a program that has stopped. */
export class Counters {
  constructor(readonly values: Record<string, number>) {}

  /** One counter by its name; the log leaves out those that are zero. */
  get(name: string): number {
    return this.values[name] ?? 0;
  }
}

/** Runs the program with exactly these flags until it ends by itself. */
export async function runToEnd(args: string[], start: Omit<Start, "args"> = {}): Promise<Ended> {
  const child = command(args, start).spawn();
  try {
    const { code, stdout, stderr } = await within(child.output(), "end of the program", STARTUP);
    const decoder = new TextDecoder();
    return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  }
}

/** Kills a process at the end of its scope, if it still runs: no test leaves one behind. */
export function killAtEnd(child: Deno.ChildProcess): Disposable {
  return {
    [Symbol.dispose]() {
      try {
        child.kill("SIGKILL");
      } catch {
        // It has ended.
      }
    },
  };
}

/** The program with exactly these flags, as it is started; both its outputs are pipes. */
export function command(args: string[], start: Omit<Start, "args">): Deno.Command {
  const [first = "", ...rest] = commandLine(args, start);
  return new Deno.Command(first, {
    args: rest,
    cwd: start.root ?? ROOT,
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
}

/** The words that start the program with exactly these flags. */
export function commandLine(args: string[], start: Omit<Start, "args"> = {}): string[] {
  const program = start.binary === undefined ? launched(start) : [start.binary];
  const whole = [...program, ...args];
  return start.shell === undefined ? whole : ["sh", "-c", start.shell, "sh", ...whole];
}

/** `bin/mmproxy`, or Deno itself where a test says what it may. */
function launched(start: Omit<Start, "args">): string[] {
  const deno = start.deno ?? Deno.execPath();
  const root = start.root ?? Deno.env.get("MMPROXY_TEST_PROGRAM") ?? ROOT;
  if (start.permissions) {
    const flags = ["run", "--quiet", "--no-prompt", "--allow-ffi", "--cached-only"];
    return [deno, ...flags, ...start.permissions, mainOf(root)];
  }
  const v8 = start.v8Flags === undefined ? [] : [`DENO_V8_FLAGS=${start.v8Flags}`];
  return ["env", `MMPROXY_DENO=${deno}`, ...v8, join(root, "bin/mmproxy")];
}

/** What the launcher starts: in a release the bundle. */
function mainOf(root: string): string {
  const bundled = join(root, "lib/main.js");
  return existsSync(bundled) ? bundled : join(root, "main.ts");
}

/** A shell's command that puts `mmproxy` on the PATH, as its users have it. */
export const ON_PATH = `export MMPROXY_DENO='${Deno.execPath()}' PATH='${ROOT}/bin':"$PATH"`;
