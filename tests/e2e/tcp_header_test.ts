import assert from "node:assert/strict";
import { type Endpoint, freePort, show, socketsOf } from "./support/endpoints.ts";
import {
  bytes,
  concat,
  sslTlv,
  text,
  Tlv,
  tlv,
  v1,
  v1Unknown,
  v2,
  v2Local,
  v2Raw,
  v2Unix,
  v2Unspecified,
} from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { noise, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { pause } from "./support/time.ts";

const CLIENT4 = { ip: "192.0.2.33", port: 40_123 };
const CLIENT6 = { ip: "2001:db8::33", port: 40_124 };
const BALANCER4 = { ip: "198.51.100.1", port: 443 };
const BALANCER6 = { ip: "2001:db8:1::1", port: 443 };
const OWN4 = /^127\.0\.0\.1:\d+$/;
const OWN6 = /^\[::1\]:\d+$/;

/** Where a scene's connections come in, and the services behind. */
interface Scene {
  program: Program;
  service4: TcpService;
  service6: TcpService;
}

/** One program before a service of each family, all of which say whom they see. */
async function scene(listenIp: string, act: (scene: Scene) => Promise<void>): Promise<void> {
  await using service4 = new TcpService(tellAndEcho);
  await using service6 = new TcpService(tellAndEcho, "::1");
  await using program = await Program.start({
    listen: { ip: listenIp, port: freePort() },
    args: ["-4", service4.address, "-6", service6.address],
  });
  await act({ program, service4, service6 });
}

/** Sends a header with a payload behind it; asserts whom the service saw and that it got all. */
async function assertSeen(
  program: Program,
  header: Uint8Array,
  expected: string | RegExp,
): Promise<void> {
  using client = await Stream.connect(program.listen.port, program.listen.ip);
  await client.send(header, "payload\r\n");
  const seen = await client.line();
  if (typeof expected === "string") assert.equal(seen, expected);
  else assert.match(seen, expected);
  assert.equal(text(await client.exactly(9)), "payload\r\n");
}

const SPOOFED: [name: string, header: Uint8Array, client: Endpoint][] = [
  ["v1 over IPv4", v1(CLIENT4, BALANCER4), CLIENT4],
  ["v1 over IPv6", v1(CLIENT6, BALANCER6), CLIENT6],
  ["v2 over IPv4", v2(CLIENT4, BALANCER4), CLIENT4],
  ["v2 over IPv6", v2(CLIENT6, BALANCER6), CLIENT6],
  [
    "v1 with an IPv4-mapped client",
    v1({ ip: "::ffff:192.0.2.33", port: 40_123 }, { ip: "::ffff:198.51.100.1", port: 443 }),
    CLIENT4,
  ],
  [
    "v2 with an IPv4-mapped client",
    v2({ ip: "::ffff:192.0.2.33", port: 40_123 }, BALANCER6),
    CLIENT4,
  ],
  ["v2 with a right checksum", v2(CLIENT4, BALANCER4, { checksum: true }), CLIENT4],
  [
    "v2 with ALPN, authority, unique id, padding and nested SSL",
    v2(CLIENT6, BALANCER6, {
      tlvs: [
        tlv(Tlv.alpn, bytes("h2")),
        tlv(Tlv.authority, bytes("example.org")),
        tlv(Tlv.uniqueId, noise(128, 1)),
        tlv(Tlv.noop, new Uint8Array()),
        sslTlv(tlv(Tlv.sslVersion, bytes("TLSv1.3")), tlv(Tlv.sslCommonName, bytes("example"))),
      ],
      checksum: true,
    }),
    CLIENT6,
  ],
  [
    "v2 with TLVs up to the largest length",
    v2(CLIENT4, BALANCER4, { tlvs: [tlv(Tlv.noop, noise(65_535 - 12 - 3, 2))] }),
    CLIENT4,
  ],
  [
    "v2 with values that are not UTF-8",
    v2(CLIENT4, BALANCER4, { tlvs: [tlv(Tlv.authority, Uint8Array.of(0xff, 0xfe, 0xc0))] }),
    CLIENT4,
  ],
];

for (const [name, header, client] of SPOOFED) {
  Deno.test(`tcp: ${name} shows the service the client's address and port`, async () => {
    await scene("127.0.0.1", ({ program }) => assertSeen(program, header, show(client)));
  });
}

Deno.test("tcp: a header that arrives one byte at a time", async () => {
  await scene("127.0.0.1", async ({ program }) => {
    for (
      const [header, seen] of [
        [v1(CLIENT6, BALANCER6), show(CLIENT6)],
        [v2(CLIENT4, BALANCER4, { tlvs: [tlv(Tlv.noop, noise(30, 3))] }), show(CLIENT4)],
      ] as const
    ) {
      using client = await Stream.connect(program.listen.port);
      for (const byte of header) {
        await client.write(Uint8Array.of(byte));
        await pause(2);
      }
      assert.equal(await client.line(), seen);
      await client.send("after");
      assert.equal(text(await client.exactly(5)), "after");
    }
  });
});

const OWN_ADDRESS: [name: string, header: Uint8Array][] = [
  ["v1 UNKNOWN", v1Unknown()],
  ["v1 UNKNOWN with a tail", v1Unknown(" ffff::1 ffff::2 1 2")],
  ["v2 LOCAL", v2Local()],
  ["v2 LOCAL with an address block", v2Local(noise(12, 4), 0x11)],
  ["v2 LOCAL of family TCP4 with TLVs and no addresses", v2Local(tlv(Tlv.noop, noise(9, 5)), 0x11)],
  ["v2 LOCAL with bytes that are no TLV", v2Local(noise(7, 6), 0xff)],
  ["v2 UNSPEC", v2Unspecified()],
  ["v2 UNSPEC with TLVs", v2Unspecified(tlv(Tlv.noop, noise(20, 7)))],
  ["v2 unix", v2Unix("/run/client", "/run/balancer")],
];

for (const [name, header] of OWN_ADDRESS) {
  Deno.test(`tcp: ${name} connects from the proxy's own address`, async () => {
    await scene("127.0.0.1", async ({ program }) => {
      await assertSeen(program, header, OWN4);
      const counters = await program.stop();
      assert.equal(counters.get("headers_own"), 1);
    });
  });
}

Deno.test("tcp: LOCAL from an IPv6 peer goes to the IPv6 service", async () => {
  await scene("::1", ({ program }) => assertSeen(program, v2Local(), OWN6));
});

Deno.test("tcp: an IPv6 client behind an IPv4 peer, and the other way round", async () => {
  await scene("::", async ({ program, service4, service6 }) => {
    for (
      const [peer, header, seen] of [
        ["127.0.0.1", v2(CLIENT6, BALANCER6), show(CLIENT6)],
        ["::1", v2(CLIENT4, BALANCER4), show(CLIENT4)],
      ] as const
    ) {
      using client = await Stream.connect(program.listen.port, peer);
      await client.send(header);
      assert.equal(await client.line(), seen);
    }
    assert.deepEqual(service4.clients, [show(CLIENT4)]);
    assert.deepEqual(service6.clients, [show(CLIENT6)]);
  });
});

Deno.test("tcp: a listener on [::] takes IPv4 peers", async () => {
  await scene("::", async ({ program }) => {
    using client = await Stream.connect(program.listen.port, "127.0.0.1");
    await client.send(v1Unknown());
    assert.match(await client.line(), OWN4);
  });
});

Deno.test("tcp: no SYN leaves for the service before the header is complete", async () => {
  await scene("127.0.0.1", async ({ program, service4 }) => {
    for (const header of [v1(CLIENT4, BALANCER4), v2(CLIENT4, BALANCER4)]) {
      const before = service4.clients.length;
      using client = await Stream.connect(program.listen.port);
      await client.send(header.subarray(0, -1));
      await pause(400);
      assert.equal(service4.clients.length, before);
      const towards = socketsOf(service4.port).filter((row) => row.remotePort === service4.port);
      assert.deepEqual(towards.filter((row) => row.state !== TIME_WAIT), []);
      await client.send(header.subarray(-1));
      assert.match(await client.line(), /^192\.0\.2\.33:/);
    }
  });
});

/** The kernel's number, from its include/net/tcp_states.h. */
const TIME_WAIT = 6;

Deno.test("tcp: the next header's connection is not touched by a refused one", async () => {
  await scene("127.0.0.1", async ({ program }) => {
    using bad = await Stream.connect(program.listen.port);
    await bad.send(v2Raw(1, 0x11, new Uint8Array(11)));
    await bad.end();
    await assertSeen(program, v2(CLIENT4, BALANCER4), show(CLIENT4));
    const counters = await program.stop();
    assert.equal(counters.get("refused_v2_short_address"), 1);
  });
});

Deno.test("tcp: a long payload in the header's segment loses nothing", async () => {
  await scene("127.0.0.1", async ({ program }) => {
    const payload = noise(200_000, 8);
    using client = await Stream.connect(program.listen.port);
    const sent = client.write(concat(v2(CLIENT4, BALANCER4), payload));
    assert.equal(await client.line(), show(CLIENT4));
    assert.deepEqual(await client.exactly(payload.length), payload);
    await sent;
  });
});
