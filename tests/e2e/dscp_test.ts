import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { bytes, concat, v2 } from "./support/headers.ts";
import { MarkedClient, type Packet, Sniffer } from "./support/packets.ts";
import { Program } from "./support/program.ts";
import { TcpService, tellAndEcho } from "./support/tcp.ts";
import { pause } from "./support/time.ts";

const BALANCER4 = { ip: "198.51.100.1", port: 443 };
const BALANCER6 = { ip: "2001:db8::1", port: 443 };
const CLIENT4 = { ip: "192.0.2.170", port: 42_000 };
const CLIENT6 = { ip: "2001:db8::170", port: 42_000 };

/** Expedited forwarding, and a low one; the two bits below are congestion's. */
const OCTETS = [0xb8, 0x28];

/** Where the listener is, where the peer connects, whom it names, and how many connections before. */
const CASES = [
  ["IPv4", "127.0.0.1", "127.0.0.1", CLIENT4],
  ["IPv6", "::1", "::1", CLIENT6],
  ["an IPv4 peer of a [::] listener", "::", "127.0.0.1", CLIENT4],
  ["an IPv4 peer of an IPv6 client", "127.0.0.1", "127.0.0.1", CLIENT6],
  ["an IPv6 peer of an IPv4 client", "::1", "::1", CLIENT4],
] as const;

/** What a packet has that carries payload or is the SYN of the port's client. */
function octetsOf(packets: Packet[], matches: (packet: Packet) => boolean): Set<number> {
  return new Set(packets.filter(matches).map(({ octet }) => octet & 0xfc));
}

let nextPort = CLIENT4.port;

for (const [name, listen, connect, client] of CASES) {
  Deno.test(`dscp: ${name}: the peer's reaches the service and comes back`, async () => {
    const isIpv6 = client.ip.includes(":");
    await using service = new TcpService(tellAndEcho, isIpv6 ? "::1" : "127.0.0.1");
    await using program = await Program.start({
      listen: { ip: listen, port: freePort() },
      args: [isIpv6 ? "-6" : "-4", service.address],
    });
    const { port } = program.listen;
    for (const octet of [...OCTETS, 0]) {
      using sniffer = new Sniffer();
      using peer = new MarkedClient({ ip: connect, port }, octet);
      nextPort += 1;
      const header = v2({ ...client, port: nextPort }, isIpv6 ? BALANCER6 : BALANCER4);
      peer.send(concat(header, bytes("hello")));
      assert.match(await peer.receive(), new RegExp(`:${nextPort}\n`));
      await pause(100);
      const packets = sniffer.take();
      const upstream = (packet: Packet) => packet.to === service.port;
      assert.deepEqual(octetsOf(packets, (p) => upstream(p) && p.isSyn), new Set([octet]), "SYN");
      assert.deepEqual(octetsOf(packets, (p) => upstream(p) && p.length > 0), new Set([octet]));
      const back = octetsOf(packets, (p) => p.from === port && p.length > 0);
      assert.deepEqual(back, new Set([octet]), "back");
    }
  });
}
