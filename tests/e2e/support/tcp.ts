/** TCP clients and services for the tests. Every wait is bounded. */

import { createHash } from "node:crypto";
import net from "node:net";
import { show } from "./endpoints.ts";
import { bytes, concat, text } from "./headers.ts";
import { TIMEOUT, within } from "./time.ts";

/** How a stream ended for its reader. */
export type End = "closed" | "reset";

/** One end of a TCP connection, read and written as a test needs it. */
export class Stream implements Disposable {
  #buffered = new Uint8Array();

  constructor(readonly conn: Deno.TcpConn) {
    conn.setNoDelay(true);
  }

  static async connect(port: number, hostname = "127.0.0.1"): Promise<Stream> {
    return new Stream(await within(Deno.connect({ hostname, port }), "connection"));
  }

  /** The address that this end has, as text. */
  get local(): string {
    const { hostname, port } = this.conn.localAddr;
    return show({ ip: hostname, port });
  }

  /** Sends the parts in one piece. */
  async send(...parts: (Uint8Array | string)[]): Promise<void> {
    const whole = concat(...parts.map((part) => typeof part === "string" ? bytes(part) : part));
    await within(this.write(whole), "room to send", 60_000);
  }

  /** Sends one byte after the other, each in a segment of its own. */
  async drip(data: Uint8Array): Promise<void> {
    for (const byte of data) await this.write(Uint8Array.of(byte));
  }

  /** Sends all of `data`, however long the other side takes. */
  async write(data: Uint8Array): Promise<void> {
    for (let sent = 0; sent < data.length;) sent += await this.conn.write(data.subarray(sent));
  }

  /** Ends the sending half. */
  async finish(): Promise<void> {
    await this.conn.closeWrite();
  }

  /** What comes next, at most `limit` bytes; `null` at the end. */
  async read(limit = 65_536, ms = TIMEOUT): Promise<Uint8Array | null> {
    if (this.#buffered.length > 0) {
      const chunk = this.#buffered.subarray(0, limit);
      this.#buffered = this.#buffered.subarray(chunk.length);
      return chunk;
    }
    const buffer = new Uint8Array(limit);
    const count = await within(this.conn.read(buffer), "data", ms);
    return count === null ? null : buffer.subarray(0, count);
  }

  /** Exactly `count` bytes. */
  async exactly(count: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (let missing = count; missing > 0;) {
      const chunk = await this.read(missing);
      if (chunk === null) throw new Error(`The stream ended ${missing} bytes early`);
      parts.push(chunk);
      missing -= chunk.length;
    }
    return concat(...parts);
  }

  /** The text up to the next line feed, without it. */
  async line(): Promise<string> {
    const parts: Uint8Array[] = [];
    for (;;) {
      const chunk = await this.read();
      if (chunk === null) throw new Error(`The stream ended in "${text(concat(...parts))}"`);
      const at = chunk.indexOf(0x0a);
      if (at < 0) {
        parts.push(chunk);
        continue;
      }
      parts.push(chunk.subarray(0, at));
      this.#buffered = concat(chunk.subarray(at + 1), this.#buffered);
      return text(concat(...parts));
    }
  }

  /** Everything up to the end. */
  async rest(): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (let chunk = await this.read(); chunk !== null; chunk = await this.read()) {
      parts.push(chunk);
    }
    return concat(...parts);
  }

  /** Reads and drops what comes until the stream ends; says how it did. */
  async end(ms = TIMEOUT): Promise<End> {
    try {
      while (await this.read(65_536, ms) !== null);
      return "closed";
    } catch (error) {
      if (error instanceof Deno.errors.ConnectionReset) return "reset";
      throw error;
    }
  }

  [Symbol.dispose](): void {
    try {
      this.conn.close();
    } catch {
      // Closed before.
    }
  }
}

/** What a service does with one connection; `client` is the peer it sees. */
export type Handler = (stream: Stream, client: string) => Promise<void>;

/** A TCP service: the program forwards to it. */
export class TcpService implements AsyncDisposable {
  /** The peers of the connections so far, in the order of arrival. */
  readonly clients: string[] = [];
  readonly port: number;
  #listener: Deno.TcpListener;
  #open = new Set<Stream>();
  #handlers = new Set<Promise<void>>();

  constructor(handler: Handler, readonly ip = "127.0.0.1", port = 0) {
    this.#listener = Deno.listen({ hostname: ip, port });
    this.port = this.#listener.addr.port;
    this.#handlers.add(this.#accept(handler));
  }

  /** For `--ipv4` or `--ipv6`. */
  get address(): string {
    return show({ ip: this.ip, port: this.port });
  }

  async #accept(handler: Handler): Promise<void> {
    for (let conn = await this.#next(); conn !== undefined; conn = await this.#next()) {
      const { hostname, port } = conn.remoteAddr;
      const client = show({ ip: hostname, port });
      const stream = new Stream(conn);
      this.clients.push(client);
      this.#open.add(stream);
      const done = handler(stream, client)
        // The far end may be gone already: what the test sees at its own end decides.
        .catch(() => {})
        .finally(() => {
          stream[Symbol.dispose]();
          this.#open.delete(stream);
          this.#handlers.delete(done);
        });
      this.#handlers.add(done);
    }
  }

  /** The next connection that is not reset already; nothing once the listener is closed. */
  async #next(): Promise<Deno.TcpConn | undefined> {
    for (;;) {
      try {
        return await this.#listener.accept();
      } catch (error) {
        if (error instanceof Deno.errors.NotConnected) continue;
        if (error instanceof Deno.errors.BadResource) return undefined;
        if (error instanceof Deno.errors.Interrupted) return undefined;
        throw error;
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    for (const stream of this.#open) stream[Symbol.dispose]();
    await within(Promise.all(this.#handlers), "end of the service", 30_000);
  }
}

/** Says whom it sees in one line, then sends back what comes. */
export const tellAndEcho: Handler = async (stream, client) => {
  await stream.send(`${client}\n`);
  for (let chunk = await stream.read(65_536, 60_000); chunk !== null;) {
    await stream.write(chunk);
    chunk = await stream.read(65_536, 60_000);
  }
};

/** A connection that can be reset, and that can choose its own address: from node:net. */
export class Resettable implements AsyncDisposable {
  #socket: net.Socket;
  #ended: Promise<End>;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    this.#ended = new Promise((resolve) => {
      socket.on("end", () => resolve("closed"));
      socket.on("close", () => resolve("closed"));
      socket.on("error", (error: NodeJS.ErrnoException) => {
        resolve(error.code === "ECONNRESET" ? "reset" : "closed");
      });
    });
  }

  static async connect(port: number, localAddress = "127.0.0.1"): Promise<Resettable> {
    const socket = net.connect({ host: "127.0.0.1", port, localAddress });
    const connection = new Resettable(socket);
    await within(
      new Promise<void>((resolve, reject) => {
        socket.once("connect", resolve);
        socket.once("error", reject);
      }),
      "connection",
    );
    return connection;
  }

  send(data: Uint8Array): void {
    this.#socket.write(data);
  }

  /** The next bytes that come. */
  async next(): Promise<Uint8Array> {
    const data = new Promise<Uint8Array>((resolve) => this.#socket.once("data", resolve));
    return await within(data, "data");
  }

  /** Reads no more. */
  pause(): void {
    this.#socket.pause();
  }

  /** Sends a reset. */
  reset(): void {
    this.#socket.resetAndDestroy();
  }

  /** How the other side ended the connection. */
  async end(ms = TIMEOUT): Promise<End> {
    this.#socket.resume();
    return await within(this.#ended, "end of the connection", ms);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#socket.destroyed) return;
    const closed = new Promise<void>((resolve) => this.#socket.once("close", () => resolve()));
    this.#socket.destroy();
    await within(closed, "end of the connection");
  }
}

/** Bytes that look random, the same for the same seed (xorshift32). */
export function noise(length: number, seed: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = seed | 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return new Uint8Array(words.buffer).slice(0, length);
}

/** SHA-256 in hexadecimal. */
export function sha256(data: Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}
