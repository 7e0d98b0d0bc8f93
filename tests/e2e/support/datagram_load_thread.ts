/** A thread of a stream of datagrams: the peers, or the service. */

import { type Stream, WORD } from "./datagram_load.ts";
import type { Endpoint } from "./endpoints.ts";
import { addressBytes } from "./headers.ts";

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const SO_RCVTIMEO = 20;
/** Room for bursts at the service, as far as the system allows it. */
const SERVICE_BUFFER = 8 << 20;
/** Bytes of a 64-bit `struct iovec` and `struct mmsghdr` (recvmmsg(2)), and of `struct sockaddr_in`. */
const IOVEC = 16;
const MMSGHDR = 64;
const NAME = 16;
const BATCH = 64;
/** Sockets that send: the program's workers share them. */
const PEERS = 8;
/** Room for a datagram. */
const SIZE = 128;
/** A thread that was kept from running does not make up for more than so much. */
const MOST_LATE_MS = 20;
/** The service waits so long for what is on its way. */
const LAST_MS = 500;

const { symbols: libc } = Deno.dlopen("libc.so.6", {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  sendmmsg: { parameters: ["i32", "buffer", "u32", "i32"], result: "i32" },
  recvmmsg: { parameters: ["i32", "buffer", "u32", "i32", "pointer"], result: "i32" },
});

/** `struct mmsghdr`s with a buffer each. */
class Messages {
  readonly data = new Uint8Array(BATCH * SIZE);
  readonly names = new Uint8Array(BATCH * NAME);
  readonly headers = new Uint8Array(BATCH * (MMSGHDR + IOVEC));
  readonly #view = new DataView(this.headers.buffer);

  constructor(withNames: boolean) {
    const [at, data, names] = [this.headers, this.data, this.names].map(addressOf) as [
      bigint,
      bigint,
      bigint,
    ];
    for (let index = 0; index < BATCH; index++) {
      const vector = BATCH * MMSGHDR + index * IOVEC;
      this.#view.setBigUint64(vector, data + BigInt(index * SIZE), true);
      this.#view.setBigUint64(index * MMSGHDR + 16, at + BigInt(vector), true);
      this.#view.setBigUint64(index * MMSGHDR + 24, 1n, true);
      if (withNames) this.#view.setBigUint64(index * MMSGHDR, names + BigInt(index * NAME), true);
      this.setLength(index, SIZE);
    }
  }

  setLength(index: number, length: number): void {
    this.#view.setBigUint64(BATCH * MMSGHDR + index * IOVEC + 8, BigInt(length), true);
    // The room for the name: the kernel has written its length there.
    this.#view.setUint32(index * MMSGHDR + 8, NAME, true);
  }

  /** Bytes of a message that came. */
  length(index: number): number {
    return this.#view.getUint32(index * MMSGHDR + 56, true);
  }
}

function addressOf(bytes: Uint8Array<ArrayBuffer>): bigint {
  return Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes));
}

function sockaddr({ ip, port }: Endpoint): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(NAME);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_INET, true);
  view.setUint16(2, port);
  bytes.set(addressBytes(ip), 4);
  return bytes;
}

function udp(call: "bind" | "connect", address: Endpoint): number {
  const descriptor = libc.socket(AF_INET, SOCK_DGRAM, 0);
  const name = sockaddr(address);
  if (descriptor < 0 || libc[call](descriptor, name, name.length) !== 0) {
    throw new Error(`Could not ${call} a socket to ${address.ip}:${address.port}`);
  }
  return descriptor;
}

/** Whose a datagram is: each place has clients of its own, and a batch is for one place. */
function clientOf(number: number, places: number, clients: number): number {
  const each = Math.floor(clients / places);
  return placeOf(number, places) * each + number % each;
}

function placeOf(number: number, places: number): number {
  return Math.floor(number / BATCH) % places;
}

/** Datagrams for which the socket of a port had no room. */
function dropsAt(port: number): number {
  const local = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const drops = Deno.readTextFileSync("/proc/net/udp").split("\n").map((line) =>
    line.trim().split(/\s+/)
  ).filter(([, address]) => address?.endsWith(local)).map((fields) => Number(fields.at(-1)));
  return drops.reduce((sum, count) => sum + count, 0);
}

function send({ to, headers, rate }: Stream, words: Int32Array): void {
  const sockets = to.map((one) => Array.from({ length: PEERS }, () => udp("connect", one)));
  const messages = new Messages(false);
  // A name is the socket's own.
  const view = new DataView(messages.headers.buffer);
  for (let index = 0; index < BATCH; index++) view.setUint32(index * MMSGHDR + 8, 0, true);
  const data = new DataView(messages.data.buffer);
  self.postMessage("ready");
  let sent = 0;
  let turn = 0;
  let began = performance.now();
  while (Atomics.load(words, WORD.stop) === 0) {
    const now = performance.now();
    const due = Math.floor((now - began) * rate / 1000);
    if (due - sent > rate * MOST_LATE_MS / 1000) began = now - sent * 1000 / rate;
    if (due - sent < BATCH) {
      Atomics.wait(words, WORD.asleep, 0, 1);
      continue;
    }
    for (let index = 0; index < BATCH; index++) {
      const number = sent + index;
      const header = headers[clientOf(number, to.length, headers.length)] ?? new Uint8Array();
      messages.data.set(header, index * SIZE);
      data.setUint32(index * SIZE + header.length, number);
      messages.setLength(index, header.length + 4);
      view.setUint32(index * MMSGHDR + 8, 0, true);
    }
    const socket = sockets[placeOf(sent, to.length)]?.[turn++ % PEERS] ?? -1;
    const went = libc.sendmmsg(socket, messages.headers, BATCH, 0);
    if (went !== BATCH) throw new Error(`Could not send after ${sent} datagrams`);
    sent += went;
    Atomics.store(words, WORD.sent, sent);
  }
}

function receive({ to, service, ports }: Stream, words: Int32Array): void {
  const socket = udp("bind", service);
  const buffer = new Uint8Array(Int32Array.of(SERVICE_BUFFER).buffer);
  libc.setsockopt(socket, SOL_SOCKET, SO_RCVBUF, buffer, buffer.length);
  const timeout = new Uint8Array(BigInt64Array.of(0n, 50_000n).buffer);
  libc.setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, timeout, timeout.length);
  const messages = new Messages(true);
  const [data, names] = [messages.data, messages.names].map(({ buffer }) =>
    new DataView(buffer)
  ) as [
    DataView,
    DataView,
  ];
  let seen = new Uint8Array(1 << 20);
  /** When nothing more came, once all was sent. */
  let silentSince: number | undefined;
  self.postMessage("ready");
  for (;;) {
    const count = libc.recvmmsg(socket, messages.headers, BATCH, 0x10000, null);
    if (count <= 0) {
      if (Atomics.load(words, WORD.stop) === 0) continue;
      const now = performance.now();
      silentSince ??= now;
      const all = Atomics.load(words, WORD.arrived) >= Atomics.load(words, WORD.sent);
      if (!all && now - silentSince < LAST_MS) continue;
      Atomics.store(words, WORD.overflowed, dropsAt(service.port));
      return;
    }
    silentSince = undefined;
    for (let index = 0; index < count; index++) {
      const number = data.getUint32(index * SIZE);
      const port = names.getUint16(index * NAME + 2);
      if (number >= seen.length) {
        const larger = new Uint8Array(2 * Math.max(seen.length, number));
        larger.set(seen);
        seen = larger;
      }
      if (seen[number]) Atomics.add(words, WORD.twice, 1);
      else Atomics.add(words, WORD.arrived, 1);
      seen[number] = 1;
      if (port !== ports[clientOf(number, to.length, ports.length)]) {
        Atomics.add(words, WORD.foreign, 1);
      }
      messages.setLength(index, SIZE);
    }
  }
}

// The types of a worker's global scope are not in Deno's default library.
declare const self: {
  onmessage: ((message: MessageEvent<Assignment>) => void) | null;
  postMessage(text: string): void;
};

interface Assignment {
  readonly role: "send" | "receive";
  readonly words: Int32Array;
  readonly stream: Stream;
}

self.onmessage = ({ data: { role, words, stream } }) => {
  if (role === "send") send(stream, words);
  else receive(stream, words);
  self.postMessage("ended");
};
