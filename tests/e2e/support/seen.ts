/** Whom a service behind the program sees, asked in the way that most tests ask it. */
import assert from "node:assert/strict";
import { type Endpoint, show } from "./endpoints.ts";
import { text, v2 } from "./headers.ts";
import { Stream } from "./tcp.ts";
import { UdpSocket } from "./udp.ts";

/** Asserts that the service, which runs `tellAndEcho`, sees the client of a header. */
export async function assertSeenOverTcp(
  listen: Endpoint,
  client: Endpoint,
  balancer: Endpoint,
): Promise<void> {
  using stream = await Stream.connect(listen.port);
  await stream.send(v2(client, balancer));
  assert.equal(await stream.line(), show(client));
}

/** Asserts that the service, which runs `tell`, sees the client of a datagram's header. */
export async function assertSeenOverUdp(
  listen: Endpoint,
  client: Endpoint,
  balancer: Endpoint,
): Promise<void> {
  await using peer = await UdpSocket.open();
  await peer.send(listen, v2(client, balancer, { datagram: true }), "hello");
  assert.equal(text((await peer.receive()).data), `${show(client)} hello`);
}
