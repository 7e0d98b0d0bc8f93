/**
 * An HTTP server for monitoring: GET and HEAD, one request per connection. Its connections are limited in number, time and
 * bytes. Neither its peers nor a lack of descriptors can end the process.
 * Deno's own server guarantees none of this (docs/decisions/0060-metrics-port.md).
 */

/** What is asked. */
export interface Question {
  readonly method: "GET" | "HEAD";
  readonly path: string;
  /** Whom the request is for (RFC 9110, section 7.2), as it was sent. */
  readonly host?: string;
}

/** What comes back, as text. */
export interface Answer {
  readonly status: number;
  readonly body: string;
  /** `text/plain` unless it is said. */
  readonly type?: string;
  /** More fields of its head. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** For the whole head of a request, and again for reading the answer. */
const TIMEOUT_MS = 5_000;
const LONGEST_HEAD = 8 << 10;
/** What is read after the request, so that closing does not reset the connection under the answer. */
const LONGEST_REST = 64 << 10;
/** Between two attempts to accept when there are no descriptors. */
const ACCEPT_PAUSE_MS = 100;

const REASONS: Record<number, string> = {
  200: "OK",
  400: "Bad Request",
  404: "Not Found",
  405: "Method Not Allowed",
  421: "Misdirected Request",
  431: "Request Header Fields Too Large",
  500: "Internal Server Error",
  503: "Service Unavailable",
};

/** What a PROXY header of version 2 begins with, up to the length of what follows. */
const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const PREFIX = SIGNATURE.length + 4;

/** Answers requests. If it rejects, the error is logged, and the answer is 500. */
export type Answering = (question: Question) => Promise<Answer>;

/** Reports an error that the peer did not cause. */
export interface Troubles {
  /** No connection could be accepted; tried again. */
  accept(error: unknown): void;
  /** An answer could not be given: a defect. */
  answer(error: unknown): void;
}

/** Serves the connections of a listener until `close`. */
export class HttpServer {
  readonly #listener: Deno.TcpListener;
  readonly #most: number;
  readonly #answering: Answering;
  readonly #troubles: Troubles;
  /** Connections without a whole request, the oldest first. */
  readonly #asking = new Set<Deno.TcpConn>();
  /** Those whose request is known, the oldest first. */
  readonly #answered = new Set<Deno.TcpConn>();
  #closed = false;

  /** @param most connections at once; one more ends the oldest, so that who asks promptly is served */
  constructor(listener: Deno.TcpListener, most: number, answering: Answering, troubles: Troubles) {
    this.#listener = listener;
    this.#most = most;
    this.#answering = answering;
    this.#troubles = troubles;
    this.#accept();
  }

  /** Ends it at once: a question that waits for its answer is not waited for. */
  close(): void {
    this.#closed = true;
    close(this.#listener);
    for (const conn of [...this.#asking, ...this.#answered]) close(conn);
  }

  async #accept(): Promise<void> {
    for (;;) {
      try {
        const conn = await this.#listener.accept();
        if (this.#asking.size + this.#answered.size >= this.#most) this.#makeRoom();
        this.#serve(conn);
      } catch (error) {
        if (this.#closed) return;
        this.#troubles.accept(error);
        // The descriptor of one that asks nothing may be all that is wanted.
        if (this.#asking.size > 0) this.#makeRoom();
        await new Promise((wake) => setTimeout(wake, ACCEPT_PAUSE_MS));
      }
    }
  }

  /** Ends who has been there longest, those who have asked nothing first. */
  #makeRoom(): void {
    const [oldest] = this.#asking.size > 0 ? this.#asking : this.#answered;
    if (!oldest) return;
    this.#forget(oldest);
    close(oldest);
  }

  #forget(conn: Deno.TcpConn): void {
    this.#asking.delete(conn);
    this.#answered.delete(conn);
  }

  /** Serves one connection. Never rejects. */
  async #serve(conn: Deno.TcpConn): Promise<void> {
    this.#asking.add(conn);
    try {
      const head = await inTime(conn, readHead(conn));
      if (head === undefined) return;
      this.#asking.delete(conn);
      this.#answered.add(conn);
      const answer = await this.#answer(head);
      await inTime(conn, send(conn, answer));
    } catch {
      // It was slow, is gone, or made room for another.
    } finally {
      this.#forget(conn);
      close(conn);
    }
  }

  /** The response to a request's head. */
  async #answer(head: string): Promise<string> {
    const question = parseHead(head);
    if (typeof question === "number") {
      const status = question;
      return respond({ status, body: `${REASONS[status]}\n` }, "GET");
    }
    try {
      return respond(await this.#answering(question), question.method);
    } catch (error) {
      this.#troubles.answer(error);
      return respond({ status: 500, body: "Internal error: the log says more\n" }, question.method);
    }
  }
}

/** Waits for `work`, and closes the connection under it when that takes too long. */
async function inTime<T>(conn: Deno.TcpConn, work: Promise<T>): Promise<T> {
  const timer = setTimeout(() => close(conn), TIMEOUT_MS);
  try {
    return await work;
  } finally {
    clearTimeout(timer);
  }
}

/** A request up to the empty line, or as much of it as is read; nothing from who sends nothing. */
async function readHead(conn: Deno.TcpConn): Promise<string | undefined> {
  const buffer = new Uint8Array(LONGEST_HEAD);
  let length = 0;
  while (length < buffer.length) {
    const count = await conn.read(buffer.subarray(length));
    if (count === null) return undefined;
    length += count;
    const start = headerLength(buffer.subarray(0, length));
    if (start === undefined) continue;
    const text = new TextDecoder("latin1").decode(buffer.subarray(start, length));
    if (/\r?\n\r?\n/.test(text)) return text;
  }
  return new TextDecoder("latin1").decode(buffer);
}

/**
 * How many bytes of a PROXY header precede a request; nothing while that cannot be known. An AWS NLB whose target
 * group has proxy protocol puts one before its health checks, on whatever port they go to. What it says is not used.
 */
function headerLength(bytes: Uint8Array): number | undefined {
  if (!bytes.subarray(0, SIGNATURE.length).every((byte, at) => byte === SIGNATURE[at])) return 0;
  if (bytes.length < PREFIX) return undefined;
  return PREFIX + new DataView(bytes.buffer, bytes.byteOffset).getUint16(PREFIX - 2);
}

/** What a request's head asks, or the status of its refusal. */
export function parseHead(head: string): Question | number {
  const line = /^([^\r\n]*)\r?\n/.exec(head)?.[1];
  if (!/\n\r?\n/.test(head)) return 431;
  const [, method, target = ""] = /^([A-Z]+) (\S+) HTTP\/\d\.\d$/.exec(line ?? "") ?? [];
  if (method === undefined) return 400;
  if (method !== "GET" && method !== "HEAD") return 405;
  // An absolute form has a path, too, and its host counts (RFC 9112, section 3.2.2).
  const [, authority, path] = /^(?:https?:\/\/([^/?#]*))?(\/[^?#]*)/.exec(target) ?? [];
  if (path === undefined) return 400;
  const host = authority ?? /\nhost:[ \t]*([^\r\n]*)/i.exec(head)?.[1];
  return { method, path, ...(host !== undefined && { host }) };
}

/** The bytes of a response, as text. */
export function respond({ status, body, type, headers }: Answer, method: "GET" | "HEAD"): string {
  const head = [
    `HTTP/1.1 ${status} ${REASONS[status] ?? ""}`,
    `content-type: ${type ?? "text/plain; charset=utf-8"}`,
    `content-length: ${new TextEncoder().encode(body).length}`,
    "cache-control: no-store",
    "connection: close",
    ...(status === 405 ? ["allow: GET, HEAD"] : []),
    ...Object.entries(headers ?? {}).map(([name, value]) => `${name}: ${value}`),
  ];
  return `${head.join("\r\n")}\r\n\r\n${method === "HEAD" ? "" : body}`;
}

/** Sends a response, and waits until the other side has it. */
async function send(conn: Deno.TcpConn, response: string): Promise<void> {
  const bytes = new TextEncoder().encode(response);
  for (let sent = 0; sent < bytes.length;) sent += await conn.write(bytes.subarray(sent));
  await conn.closeWrite();
  const rest = new Uint8Array(4096);
  for (let read = 0; read < LONGEST_REST;) {
    const count = await conn.read(rest);
    if (count === null) return;
    read += count;
  }
}

function close(resource: { close(): void }): void {
  try {
    resource.close();
  } catch {
    // It is closed.
  }
}
