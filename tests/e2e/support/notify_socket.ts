/**
 * The service manager's end of sd_notify(3): a Unix datagram socket. Deno opens none without an unstable
 * flag, so this one comes from libc.
 */

import { bytes, concat, text } from "./headers.ts";
import { eventually } from "./time.ts";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;

/** A socket that keeps what it is told. */
export class NotifySocket implements Disposable {
  /** Every message so far, each as its lines. */
  readonly messages: string[][] = [];
  #libc = Deno.dlopen("libc.so.6", {
    socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
    bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
    recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
    close: { parameters: ["i32"], result: "i32" },
  });
  #socket: number;
  /** Reads also while the test waits for something else: the kernel keeps ten messages for a socket. */
  #reading = setInterval(() => this.#receive(), 20);

  /** @param name the value of NOTIFY_SOCKET: a path, or an abstract name behind `@`. */
  constructor(readonly name: string) {
    const family = new Uint8Array(Uint16Array.of(AF_UNIX).buffer);
    const address = concat(family, bytes(name.replace(/^@/, "\0")));
    this.#socket = this.#libc.symbols.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (this.#libc.symbols.bind(this.#socket, address, address.length) !== 0) {
      clearInterval(this.#reading);
      throw new Error(`Cannot bind ${name}`);
    }
  }

  /** The first message, past or to come, that has this line. */
  async message(line: string, ms?: number): Promise<string[]> {
    return await eventually(
      () => {
        this.#receive();
        return this.messages.find((message) => message.includes(line));
      },
      `notification ${line}`,
      ms,
    );
  }

  /** How many messages so far have this line. */
  count(line: string): number {
    this.#receive();
    return this.messages.filter((message) => message.includes(line)).length;
  }

  #receive(): void {
    const buffer = new Uint8Array(4096);
    for (;;) {
      const length = this.#libc.symbols.recv(this.#socket, buffer, 4096n, MSG_DONTWAIT);
      if (length <= 0) return;
      this.messages.push(text(buffer.subarray(0, Number(length))).split("\n"));
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#reading);
    this.#libc.symbols.close(this.#socket);
    this.#libc.close();
  }
}
