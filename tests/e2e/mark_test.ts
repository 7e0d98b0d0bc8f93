import assert from "node:assert/strict";
import { Network } from "./support/addresses.ts";
import { show } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { UdpService, UdpSocket } from "./support/udp.ts";

const CLIENT = { ip: "192.0.2.111", port: 41_111 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
/** Reached with the mark alone. */
const MARKED = "198.51.100.77";
const MARK = 7;

Deno.test("mark: TCP packets to the service carry it, and none without --mark", async () => {
  await using _network = await Network.onlyForMark(MARK, MARKED);
  await using service = new TcpService(tellAndEcho, "0.0.0.0");
  const upstream = `${MARKED}:${service.port}`;
  {
    await using program = await Program.start({ args: ["-4", upstream, "--mark", `${MARK}`] });
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER));
    assert.equal(await client.line(), show(CLIENT));
  }
  await using program = await Program.start({ args: ["-4", upstream] });
  using client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  await client.end();
  assert.equal((await program.event("connect_failed")).error, "EACCES");
  assert.equal(service.clients.length, 1);
});

Deno.test("mark: UDP packets to the service carry it", async () => {
  await using _network = await Network.onlyForMark(MARK, MARKED);
  await using service = await UdpService.start(() => undefined, "0.0.0.0");
  await using program = await Program.start({
    args: ["-p", "udp", "-4", `${MARKED}:${service.local.port}`, "--mark", `${MARK}`],
  });
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, v2(CLIENT, BALANCER, { datagram: true }), "marked");
  const came = await eventually(() => service.received[0], "datagram at the service");
  assert.equal(text(came.data), "marked");
  assert.deepEqual(came.from, CLIENT);
});
