/** A small DNS service that tells whom it sees. */

import { show } from "./endpoints.ts";
import { bytes, concat } from "./headers.ts";
import { type Handler, type Stream, TcpService } from "./tcp.ts";
import { UdpService } from "./udp.ts";

const HEADER = 12;
const TYPE_TXT = 16;

/** Answers every TXT question with the address and port that it came from, over UDP and TCP. */
export class DnsService implements AsyncDisposable {
  private constructor(readonly udp: UdpService, readonly tcp: TcpService) {}

  /** Starts it on one port for both. */
  static async start(ip: string, port: number): Promise<DnsService> {
    const udp = await UdpService.start(({ data, from }) => answer(data, show(from)), ip, port);
    return new DnsService(udp, new TcpService(overTcp, ip, port));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.udp[Symbol.asyncDispose]();
    await this.tcp[Symbol.asyncDispose]();
  }
}

/** Messages over TCP have their length in two bytes before them (RFC 1035, 4.2.2). */
const overTcp: Handler = async (stream, client) => {
  for (;;) {
    const reply = answer(await messageOf(stream), client);
    await stream.send(Uint8Array.of(reply.length >> 8, reply.length & 0xff), reply);
  }
};

async function messageOf(stream: Stream): Promise<Uint8Array> {
  const [high = 0, low = 0] = await stream.exactly(2);
  return await stream.exactly((high << 8) | low);
}

/** The reply to a query: its question, and for TXT one record with `told` (RFC 1035, section 4). */
function answer(query: Uint8Array, told: string): Uint8Array {
  let end = HEADER;
  for (let label = query[end]; label !== undefined && label !== 0; label = query[end]) {
    end += label + 1;
  }
  const question = query.subarray(HEADER, end + 5);
  const isTxt = question.at(-3) === TYPE_TXT;
  const value = bytes(told);
  const record = concat(
    [0xc0, HEADER, 0, TYPE_TXT, 0, 1, 0, 0, 0, 0, 0, value.length + 1, value.length],
    value,
  );
  return concat(
    query.subarray(0, 2),
    // A reply, authoritative, without error; one question, one answer or none.
    [0x84, 0, 0, 1, 0, isTxt ? 1 : 0, 0, 0, 0, 0],
    question,
    isTxt ? record : [],
  );
}
