/** Configuration files that change, and clients that should not notice. */
import assert from "node:assert/strict";
import { text, v2 } from "./headers.ts";
import type { LogEvent, Program } from "./program.ts";
import { Stream } from "./tcp.ts";
import { eventually } from "./time.ts";

export const BALANCER = { ip: "198.51.100.1", port: 443 };
/** Connections that a test leaves open do not hold up its end. */
export const FAST = ["--drain-timeout", "1"];

let lastClient = 20_000;
/** A client that nobody has been yet. */
export const nextClient = () => ({ ip: "192.0.2.9", port: ++lastClient });

/** One listener of a file. */
export interface Listener {
  name: string;
  port: number;
  to: string;
  more?: string;
}

/** A file with these listeners on 127.0.0.1. */
export function toml(listeners: readonly Listener[], top = ""): string {
  const tables = listeners.map(({ name, port, to, more }) =>
    `[[listener]]\nname = "${name}"\nlisten = "127.0.0.1:${port}"\nipv4 = "${to}"\n${more ?? ""}\n`
  );
  return [top, ...tables].join("\n");
}

/** A connection that has said whose it is, and whose upstream has answered with that. */
export async function connect(port: number, destination = BALANCER): Promise<Stream> {
  const client = nextClient();
  const stream = await Stream.connect(port);
  await stream.send(v2(client, destination));
  assert.equal(await stream.line(), `${client.ip}:${client.port}`);
  return stream;
}

export async function echoes(stream: Stream, words: string): Promise<void> {
  await stream.send(words);
  assert.equal(text(await stream.exactly(words.length)), words);
}

export async function isRefused(port: number): Promise<boolean> {
  try {
    using _stream = await Stream.connect(port);
    return false;
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) return true;
    throw error;
  }
}

/** SIGHUP; the event with which the reload ends. */
export async function reload(program: Program, event = "reloaded"): Promise<LogEvent> {
  const before = program.all(event).length;
  program.signal("SIGHUP");
  return await eventually(() => program.all(event)[before], `event ${event}`);
}
