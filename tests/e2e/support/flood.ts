/** Sends datagrams faster than JavaScript's own sockets do: many with one system call. */

import type { Endpoint } from "./endpoints.ts";
import { addressBytes } from "./headers.ts";

const AF_INET = 2;
const SOCK_DGRAM = 2;
/** Bytes of a 64-bit `struct iovec` and `struct mmsghdr` (recvmmsg(2)). */
const IOVEC = 16;
const MMSGHDR = 64;
const BATCH = 64;
/** Bytes in a receive queue above which the sender waits; the kernel's default limit is 212,992. */
const QUEUED = 60_000;

const SYMBOLS = {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  sendmmsg: { parameters: ["i32", "buffer", "u32", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

/** The socket calls of the C library, and the descriptors that they opened. */
class Sockets implements Disposable {
  #libc = Deno.dlopen("libc.so.6", SYMBOLS);
  #open: number[] = [];

  /** A UDP socket over IPv4, bound or connected to an address. */
  udp(call: "bind" | "connect", address: Endpoint): number {
    const descriptor = this.#libc.symbols.socket(AF_INET, SOCK_DGRAM, 0);
    this.#open.push(descriptor);
    const name = sockaddr(address);
    if (descriptor < 0 || this.#libc.symbols[call](descriptor, name, name.length) !== 0) {
      throw new Error(`Could not ${call} a socket to ${address.ip}:${address.port}`);
    }
    return descriptor;
  }

  /** Sends the first `count` messages; returns how many went. */
  send(descriptor: number, messages: Uint8Array<ArrayBuffer>, count: number): number {
    return this.#libc.symbols.sendmmsg(descriptor, messages, count, 0);
  }

  [Symbol.dispose](): void {
    for (const descriptor of this.#open) this.#libc.symbols.close(descriptor);
    this.#libc.close();
  }
}

/** `struct sockaddr_in`. */
function sockaddr({ ip, port }: Endpoint): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_INET, true);
  view.setUint16(2, port);
  bytes.set(addressBytes(ip), 4);
  return bytes;
}

/**
 * Sends `count` datagrams to a UDP socket over IPv4, no faster than it is read. Every datagram is
 * `template` with a number of its own, big-endian, in the four bytes at `at`.
 *
 * @returns how many were sent.
 */
export async function flood(
  to: Endpoint,
  template: Uint8Array,
  at: number,
  count: number,
): Promise<number> {
  using sockets = new Sockets();
  const descriptor = sockets.udp("connect", to);
  const size = template.length;
  const payload = new Uint8Array(BATCH * size);
  const numbers = new DataView(payload.buffer);
  const messages = messagesOver(payload, size);
  for (let index = 0; index < BATCH; index++) payload.set(template, index * size);
  let sent = 0;
  while (sent < count) {
    for (let index = 0; index < BATCH; index++) numbers.setUint32(index * size + at, sent + index);
    const went = sockets.send(descriptor, messages, Math.min(BATCH, count - sent));
    if (went < 0) throw new Error(`Could not send after ${sent} datagrams`);
    sent += went;
    while (queuedAt(to.port) > QUEUED) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return sent;
}

/** One `struct mmsghdr` for each datagram in `payload`, and their `struct iovec` behind them. */
function messagesOver(
  payload: Uint8Array<ArrayBuffer>,
  size: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(BATCH * (MMSGHDR + IOVEC));
  const view = new DataView(bytes.buffer);
  const vectors = addressOf(bytes) + BigInt(BATCH * MMSGHDR);
  const data = addressOf(payload);
  for (let index = 0; index < BATCH; index++) {
    const vector = BATCH * MMSGHDR + index * IOVEC;
    view.setBigUint64(vector, data + BigInt(index * size), true);
    view.setBigUint64(vector + 8, BigInt(size), true);
    // msg_iov is at 16 and msg_iovlen at 24; all else is 0, for the socket is connected.
    view.setBigUint64(index * MMSGHDR + 16, vectors + BigInt(index * IOVEC), true);
    view.setBigUint64(index * MMSGHDR + 24, 1n, true);
  }
  return bytes;
}

function addressOf(bytes: Uint8Array<ArrayBuffer>): bigint {
  return Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes));
}

/** Bytes that wait in the receive queue of an IPv4 UDP socket. */
function queuedAt(port: number): number {
  const local = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  for (const line of Deno.readTextFileSync("/proc/net/udp").split("\n")) {
    const [, address, , , queues] = line.trim().split(/\s+/);
    if (address?.endsWith(local)) return parseInt(queues?.split(":")[1] ?? "0", 16);
  }
  return 0;
}

/** A UDP service that reads nothing: what does not fit its queue is dropped in silence. */
export class Sink implements Disposable {
  #sockets = new Sockets();

  constructor(address: Endpoint) {
    this.#sockets.udp("bind", address);
  }

  [Symbol.dispose](): void {
    this.#sockets[Symbol.dispose]();
  }
}
