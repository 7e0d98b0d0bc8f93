/** Sockets with a DSCP of their own, and what goes over the loopback interface. Through the C library. */

import type { Endpoint } from "./endpoints.ts";
import { addressBytes, text } from "./headers.ts";
import { eventually } from "./time.ts";

const AF_INET = 2;
const AF_INET6 = 10;
const AF_PACKET = 17;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
/** ETH_P_ALL in network byte order (packet(7)). */
const ALL_PROTOCOLS = 0x0300;
const SOL_IP = 0;
const SOL_IPV6 = 41;
const IP_TOS = 1;
const IPV6_TCLASS = 67;
const MSG_DONTWAIT = 0x40;
const TCP = 6;
const SYN = 0x02;

const libc = Deno.dlopen("libc.so.6", {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  close: { parameters: ["i32"], result: "i32" },
});

/** A TCP client whose packets, its SYN among them, have a TOS or traffic class octet. */
export class MarkedClient implements Disposable {
  #fd: number;

  constructor(to: Endpoint, octet: number) {
    const isIpv6 = to.ip.includes(":");
    this.#fd = check(libc.symbols.socket(isIpv6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0), "socket");
    const value = new Uint8Array(Int32Array.of(octet).buffer);
    const [level, name] = isIpv6 ? [SOL_IPV6, IPV6_TCLASS] : [SOL_IP, IP_TOS];
    check(libc.symbols.setsockopt(this.#fd, level, name, value, value.length), "setsockopt");
    const address = isIpv6 ? sockaddr6(to) : sockaddr4(to);
    check(libc.symbols.connect(this.#fd, address, address.length), "connect");
  }

  send(data: Uint8Array<ArrayBuffer>): void {
    check(Number(libc.symbols.send(this.#fd, data, BigInt(data.length), 0)), "send");
  }

  /** What comes next, as text. */
  async receive(): Promise<string> {
    const buffer = new Uint8Array(65_536);
    const count = await eventually(() => {
      const count = Number(
        libc.symbols.recv(this.#fd, buffer, BigInt(buffer.length), MSG_DONTWAIT),
      );
      return count > 0 && count;
    }, "data");
    return text(buffer.subarray(0, count));
  }

  [Symbol.dispose](): void {
    libc.symbols.close(this.#fd);
  }
}

/** One TCP packet. */
export interface Packet {
  /** The TOS or traffic class octet. */
  readonly octet: number;
  readonly from: number;
  readonly to: number;
  readonly isSyn: boolean;
  /** Bytes of payload. */
  readonly length: number;
}

/** Sees every packet of the namespace, those over loopback twice. */
export class Sniffer implements Disposable {
  #fd = check(libc.symbols.socket(AF_PACKET, SOCK_DGRAM, ALL_PROTOCOLS), "socket");

  /** The TCP packets since the last call. */
  take(): Packet[] {
    const packets: Packet[] = [];
    const buffer = new Uint8Array(65_536);
    for (;;) {
      const count = Number(
        libc.symbols.recv(this.#fd, buffer, BigInt(buffer.length), MSG_DONTWAIT),
      );
      if (count < 0) return packets;
      const packet = parse(new DataView(buffer.buffer, 0, count));
      if (packet) packets.push(packet);
    }
  }

  [Symbol.dispose](): void {
    libc.symbols.close(this.#fd);
  }
}

/** A packet that begins with its IPv4 or IPv6 header; nothing when it is not TCP right behind it. */
function parse(packet: DataView): Packet | undefined {
  const version = packet.getUint8(0) >> 4;
  const isIpv6 = version === 6;
  if (packet.getUint8(isIpv6 ? 6 : 9) !== TCP) return undefined;
  const start = isIpv6 ? 40 : (packet.getUint8(0) & 0xf) * 4;
  const whole = isIpv6 ? 40 + packet.getUint16(4) : packet.getUint16(2);
  return {
    octet: isIpv6 ? (packet.getUint16(0) >> 4) & 0xff : packet.getUint8(1),
    from: packet.getUint16(start),
    to: packet.getUint16(start + 2),
    isSyn: (packet.getUint8(start + 13) & SYN) !== 0,
    length: whole - start - (packet.getUint8(start + 12) >> 4) * 4,
  };
}

function sockaddr4({ ip, port }: Endpoint): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_INET, true);
  view.setUint16(2, port);
  bytes.set(addressBytes(ip), 4);
  return bytes;
}

function sockaddr6({ ip, port }: Endpoint): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(28);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_INET6, true);
  view.setUint16(2, port);
  bytes.set(addressBytes(ip), 8);
  return bytes;
}

function check(result: number, call: string): number {
  if (result < 0) throw new Error(`${call} failed`);
  return result;
}
