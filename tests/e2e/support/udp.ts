/** UDP peers and services for the tests. Every wait is bounded. */

import dgram from "node:dgram";
import { type Endpoint, show } from "./endpoints.ts";
import { bytes, concat } from "./headers.ts";
import { eventually, pause } from "./time.ts";

/** A datagram as received. */
export interface Datagram {
  data: Uint8Array;
  from: Endpoint;
}

/** A UDP socket that keeps what it receives. */
export class UdpSocket implements AsyncDisposable {
  /** What has come and was not taken yet, in order. */
  readonly queue: Datagram[] = [];
  #socket: dgram.Socket;

  protected constructor(socket: dgram.Socket, readonly local: Endpoint) {
    this.#socket = socket;
    // The kernel reports an ICMP refusal of an earlier datagram as an error of the socket.
    socket.on("error", () => {});
    socket.on("message", (data, from) => {
      this.arrived({ data, from: { ip: from.address, port: from.port } });
    });
  }

  static async open(ip = "127.0.0.1", port = 0): Promise<UdpSocket> {
    return new UdpSocket(...await bound(ip, port));
  }

  protected arrived(datagram: Datagram): void {
    this.queue.push(datagram);
  }

  /** Sends one datagram, the parts one after the other. */
  async send(to: Endpoint, ...parts: (Uint8Array | string)[]): Promise<void> {
    const whole = concat(...parts.map((part) => typeof part === "string" ? bytes(part) : part));
    await new Promise<void>((resolve, reject) => {
      this.#socket.send(whole, to.port, to.ip, (error) => error ? reject(error) : resolve());
    });
  }

  /** The oldest datagram that was not taken yet. */
  async receive(ms?: number): Promise<Datagram> {
    return await eventually(() => this.queue.shift(), `datagram at ${show(this.local)}`, ms);
  }

  /** @throws {Error} when a datagram comes within `ms` milliseconds. */
  async silence(ms = 300): Promise<void> {
    await pause(ms);
    const [unwanted] = this.queue;
    if (unwanted === undefined) return;
    throw new Error(`A datagram of ${unwanted.data.length} bytes came to ${show(this.local)}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => this.#socket.close(() => resolve()));
  }
}

/** What a service answers, if anything. */
export type Answer = (datagram: Datagram) => Uint8Array | undefined;

/** A UDP service: the program forwards to it. */
export class UdpService extends UdpSocket {
  /** All that came. */
  readonly received: Datagram[] = [];
  #answer: Answer;

  private constructor(socket: dgram.Socket, local: Endpoint, answer: Answer) {
    super(socket, local);
    this.#answer = answer;
  }

  static async start(answer: Answer, ip = "127.0.0.1", port = 0): Promise<UdpService> {
    const [socket, local] = await bound(ip, port);
    return new UdpService(socket, local, answer);
  }

  /** For `--ipv4` or `--ipv6`. */
  get address(): string {
    return show(this.local);
  }

  protected override arrived(datagram: Datagram): void {
    this.received.push(datagram);
    const answer = this.#answer(datagram);
    if (answer !== undefined) this.send(datagram.from, answer).catch(() => {});
  }
}

/** Answers with whom it sees, a space, and what came. */
export const tell: Answer = ({ data, from }) => concat(bytes(`${show(from)} `), data);

/** Answers with what came. */
export const echo: Answer = ({ data }) => data;

async function bound(ip: string, port: number): Promise<[dgram.Socket, Endpoint]> {
  const socket = dgram.createSocket(ip.includes(":") ? "udp6" : "udp4");
  await new Promise<void>((resolve, reject) => {
    socket.once("error", reject);
    socket.bind(port, ip, () => {
      socket.off("error", reject);
      resolve();
    });
  });
  return [socket, { ip, port: socket.address().port }];
}
