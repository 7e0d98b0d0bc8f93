import assert from "node:assert/strict";
import { type Endpoint, freePort, show } from "./support/endpoints.ts";
import { bytes, concat, spp, text, Tlv, tlv, v1, v2, v2Local, v2Raw } from "./support/headers.ts";
import { Program, type Start } from "./support/program.ts";
import { noise, sha256, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";
import { echo, tell, UdpService, UdpSocket } from "./support/udp.ts";
import { addAddress } from "./support/addresses.ts";

const CLIENT4 = { ip: "192.0.2.77", port: 40_777 };
const CLIENT6 = { ip: "2001:db8::77", port: 40_778 };
const BALANCER4 = { ip: "198.51.100.1", port: 53 };
const BALANCER6 = { ip: "2001:db8:1::1", port: 53 };
/** The most that one UDP datagram over IPv4 carries. */
const LARGEST = 65_507;

/** A v2 header for UDP. */
function header(source: Endpoint, tlvs: Uint8Array[] = []): Uint8Array {
  const destination = source.ip.includes(":") ? BALANCER6 : BALANCER4;
  return v2(source, destination, { datagram: true, tlvs });
}

/** Starts the program for UDP. */
function start(args: string[], rest: Omit<Start, "args"> = {}): Promise<Program> {
  return Program.start({ args: ["-p", "udp", ...args], ...rest });
}

const SPOOFED: [name: string, head: Uint8Array, seen: string | RegExp][] = [
  ["v2 over IPv4", header(CLIENT4), show(CLIENT4)],
  ["v2 over IPv6", header(CLIENT6), show(CLIENT6)],
  ["v1 over IPv4", v1(CLIENT4, BALANCER4), show(CLIENT4)],
  ["v1 over IPv6", v1(CLIENT6, BALANCER6), show(CLIENT6)],
  ["v2 with the stream transport", v2(CLIENT4, BALANCER4), show(CLIENT4)],
  ["v2 with TLVs", header(CLIENT4, [tlv(Tlv.uniqueId, noise(128, 1))]), show(CLIENT4)],
  [
    "v2 with an IPv4-mapped client",
    header({ ip: "::ffff:192.0.2.77", port: 40_777 }),
    show(CLIENT4),
  ],
  ["v2 with port 0", header({ ip: CLIENT4.ip, port: 0 }), /^192\.0\.2\.77:[1-9]\d*$/],
  ["v2 LOCAL", v2Local(), /^127\.0\.0\.1:\d+$/],
];

for (const [name, head, seen] of SPOOFED) {
  Deno.test(`udp: ${name}: the service sees the client, the reply comes back bare`, async () => {
    await using service4 = await UdpService.start(tell);
    await using service6 = await UdpService.start(tell, "::1");
    await using program = await start(["-4", service4.address, "-6", service6.address]);
    await using peer = await UdpSocket.open();
    for (const payload of ["one", "two"]) {
      await peer.send(program.listen, head, payload);
      const { data, from } = await peer.receive();
      assert.deepEqual(from, program.listen);
      const [client, rest] = text(data).split(" ");
      if (typeof seen === "string") assert.equal(client, seen);
      else assert.match(client ?? "", seen);
      assert.equal(rest, payload);
    }
    const counters = await program.stop();
    assert.equal(counters.get("datagrams_up"), 2);
    assert.equal(counters.get("datagrams_down"), 2);
    assert.equal(counters.get("flows_opened"), 1);
    assert.equal(counters.get("flows_active"), 0);
  });
}

Deno.test("udp: LOCAL from an IPv6 peer goes to the IPv6 service", async () => {
  await using service = await UdpService.start(tell, "::1");
  await using program = await start(["-6", service.address], {
    listen: { ip: "::1", port: freePort() },
  });
  await using peer = await UdpSocket.open("::1");
  await peer.send(program.listen, v2Local(), "x");
  assert.match(text((await peer.receive()).data), /^\[::1\]:\d+ x$/);
});

Deno.test("udp: many clients behind one peer socket are each seen under their own address", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address]);
  await using peer = await UdpSocket.open();
  const clients = Array.from({ length: 100 }, (_, index) => ({
    ip: `192.0.2.${100 + (index % 10)}`,
    port: 30_000 + index,
  }));
  for (const round of [1, 2]) {
    for (const client of clients) {
      await peer.send(program.listen, header(client), `${round} for ${show(client)}`);
      assert.equal(
        text((await peer.receive()).data),
        `${show(client)} ${round} for ${show(client)}`,
      );
    }
  }
  assert.equal((await program.stop()).get("flows_opened"), 100);
});

const SPOKEN_TO: [listen: string, spokenTo: string, peer: string][] = [
  ["127.0.0.1", "127.0.0.1", "127.0.0.1"],
  ["0.0.0.0", "127.0.0.2", "127.0.0.1"],
  ["0.0.0.0", "198.51.100.200", "127.0.0.1"],
  ["::", "::1", "::1"],
  ["::", "2001:db8:ffff::2", "::1"],
  ["::", "127.0.0.3", "127.0.0.1"],
];

for (const [listen, spokenTo, peerIp] of SPOKEN_TO) {
  Deno.test(`udp: listening on ${listen}, the reply comes from ${spokenTo}, which was asked`, async () => {
    await addAddress("198.51.100.200/32");
    await addAddress("2001:db8:ffff::2/128");
    await using service = await UdpService.start(tell);
    await using program = await start(["-4", service.address], {
      listen: { ip: listen, port: freePort() },
    });
    await using peer = await UdpSocket.open(peerIp);
    const asked = { ip: spokenTo, port: program.listen.port };
    await peer.send(asked, header(CLIENT4), "hello");
    const { data, from } = await peer.receive();
    assert.deepEqual(from, asked);
    assert.equal(text(data), `${show(CLIENT4)} hello`);
  });
}

Deno.test("udp: a header alone is an empty datagram", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address]);
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(CLIENT4));
  assert.equal(text((await peer.receive()).data), `${show(CLIENT4)} `);
  assert.equal(service.received[0]?.data.length, 0);
});

Deno.test("udp: an empty reply ends no flow", async () => {
  let count = 0;
  await using service = await UdpService.start(() => bytes(count++ === 0 ? "" : "second"));
  await using program = await start(["-4", service.address]);
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(CLIENT4), "a");
  assert.equal((await peer.receive()).data.length, 0);
  await peer.send(program.listen, header(CLIENT4), "b");
  assert.equal(text((await peer.receive()).data), "second");
  assert.equal((await program.stop()).get("flows_opened"), 1);
});

for (const [name, head] of [["v2", header(CLIENT4)], ["v1", v1(CLIENT4, BALANCER4)]] as const) {
  Deno.test(`udp: the largest datagram with a ${name} header, and as large a reply`, async () => {
    await using service = await UdpService.start(({ data }) =>
      concat(data, new Uint8Array(LARGEST - data.length))
    );
    await using program = await start(["-4", service.address]);
    await using peer = await UdpSocket.open();
    const payload = noise(LARGEST - head.length, 3);
    await peer.send(program.listen, head, payload);
    const { data } = await peer.receive();
    assert.equal(data.length, LARGEST);
    assert.equal(sha256(data.subarray(0, payload.length)), sha256(payload));
  });
}

Deno.test("udp: a run of large and small datagrams keeps every boundary", async () => {
  await using service = await UdpService.start(echo);
  await using program = await start(["-4", service.address]);
  await using peer = await UdpSocket.open();
  const sizes = [1, 1400, 1400, 1400, 700, 0, 60_000, 9000, 9000, 3, 1472, 1472, 1];
  for (const [index, size] of sizes.entries()) {
    await peer.send(program.listen, header(CLIENT4), noise(size, index + 1));
  }
  for (const [index, size] of sizes.entries()) {
    assert.deepEqual(new Uint8Array((await peer.receive()).data), noise(size, index + 1));
  }
});

for (const listeners of [1, 4]) {
  Deno.test(`udp: replies reach the peer that last sent for the client, --listeners ${listeners}`, async () => {
    await using service = await UdpService.start(() => undefined);
    await using program = await start(["-4", service.address, "--listeners", String(listeners)]);
    // The kernel's hash puts all sixteen on one of four workers in one of 10^9 runs.
    const peers = await Promise.all(Array.from({ length: 16 }, () => UdpSocket.open()));
    try {
      for (const [index, peer] of peers.entries()) {
        await peer.send(program.listen, header(CLIENT4), `from ${index}`);
        const came = await eventually(() => service.received[index], "datagram at the service");
        assert.equal(text(came.data), `from ${index}`);
        assert.deepEqual(came.from, CLIENT4);
        for (const answer of ["first", "second"]) {
          await service.send(CLIENT4, `${answer} for ${index}`);
          const { data, from } = await peer.receive();
          assert.equal(text(data), `${answer} for ${index}`);
          assert.deepEqual(from, program.listen);
        }
      }
      for (const peer of peers) assert.deepEqual(peer.queue, []);
    } finally {
      for (const peer of peers) await peer[Symbol.asyncDispose]();
    }
    assert.equal((await program.stop()).get("flows_active"), 0);
  });
}

const BAD: [name: string, datagram: Uint8Array, refusal: string][] = [
  ["bare", bytes("no header at all"), "not_proxy"],
  ["empty", new Uint8Array(), "incomplete"],
  ["a header cut short", header(CLIENT4).subarray(0, 20), "incomplete"],
  ["a length past the datagram", v2Raw(1, 0x12, noise(12, 1)).fill(0xff, 14, 16), "incomplete"],
  ["an unknown command", v2Raw(3, 0x12, new Uint8Array(12)), "v2_command"],
  ["a short address block", v2Raw(1, 0x22, new Uint8Array(12)), "v2_short_address"],
  ["a TLV past the end", header(CLIENT4, [Uint8Array.of(4, 0, 99)]), "v2_tlv"],
  ["a v1 line without end", bytes("PROXY TCP4 192.0.2.1"), "incomplete"],
  ["a client at a multicast address", header({ ip: "224.0.0.1", port: 1 }), "client_multicast"],
  ["Simple Proxy Protocol", spp(CLIENT4, BALANCER4), "not_proxy"],
];

Deno.test("udp: bad datagrams are dropped and counted, and none ends the listener", async (t) => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address]);
  await using peer = await UdpSocket.open();
  const expected = new Map<string, number>();
  for (const [name, datagram, refusal] of BAD) {
    expected.set(refusal, (expected.get(refusal) ?? 0) + 1);
    await t.step(name, async () => {
      await peer.send(program.listen, datagram);
      await peer.send(program.listen, header(CLIENT4), name);
      assert.equal(text((await peer.receive()).data), `${show(CLIENT4)} ${name}`);
    });
  }
  assert.equal(service.received.length, BAD.length);
  const counters = await program.stop();
  for (const [refusal, count] of expected) {
    assert.equal(counters.get(`refused_${refusal}`), count, refusal);
  }
});

Deno.test("udp: an ICMP refusal ends nothing: the service comes back on the same flow", async () => {
  const port = freePort();
  await using program = await start(["-4", `127.0.0.1:${port}`]);
  await using peer = await UdpSocket.open();
  for (let round = 0; round < 5; round++) {
    await peer.send(program.listen, header(CLIENT4), "into the void");
    await pause(50);
  }
  {
    await using service = await UdpService.start(tell, "127.0.0.1", port);
    for (const word of ["one", "two"]) {
      await peer.send(program.listen, header(CLIENT4), word);
      assert.equal(text((await peer.receive()).data), `${show(CLIENT4)} ${word}`);
    }
    assert.equal(service.received.length, 2);
  }
  await peer.send(program.listen, header(CLIENT4), "gone again");
  await pause(100);
  await using again = await UdpService.start(tell, "127.0.0.1", port);
  await peer.send(program.listen, header(CLIENT4), "back");
  assert.equal(text((await peer.receive()).data), `${show(CLIENT4)} back`);
  assert.equal(again.received.length, 1);
  const counters = await program.stop();
  assert.equal(counters.get("flows_opened"), 1);
  assert.ok(counters.get("upstream_unreachable") > 0);
});

Deno.test("udp: an idle flow ends after --close-after, and the client's next one works", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address, "-c", "1"]);
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(CLIENT4), "a");
  await peer.receive();
  const closed = await program.event("flow_closed");
  assert.equal(closed.client, show(CLIENT4));
  await peer.send(program.listen, header(CLIENT4), "b");
  assert.equal(text((await peer.receive()).data), `${show(CLIENT4)} b`);
  assert.equal((await program.stop()).get("flows_opened"), 2);
});

Deno.test("udp: a flow that is used does not end, in either direction", async () => {
  await using service = await UdpService.start(() => undefined);
  await using program = await start(["-4", service.address, "-c", "2"]);
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(CLIENT4), "a");
  // Only the service speaks: that is use as well.
  for (let round = 0; round < 8; round++) {
    await pause(500);
    await service.send(CLIENT4, `${round}`);
    assert.equal(text((await peer.receive()).data), `${round}`);
  }
  assert.equal((await program.stop()).get("flows_opened"), 1);
});

Deno.test("udp: a peer outside the allowed subnets is dropped", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(path, "127.0.0.9/32\n");
    await using service = await UdpService.start(tell);
    await using program = await start(["-4", service.address, "-a", path]);
    await using outside = await UdpSocket.open("127.0.0.1");
    await using inside = await UdpSocket.open("127.0.0.9");
    await outside.send(program.listen, header(CLIENT4), "no");
    await inside.send(program.listen, header(CLIENT4), "yes");
    assert.equal(text((await inside.receive()).data), `${show(CLIENT4)} yes`);
    assert.deepEqual(outside.queue, []);
    assert.equal(service.received.length, 1);
    assert.equal((await program.stop()).get("refused_peer_not_allowed"), 1);
  } finally {
    await Deno.remove(path);
  }
});

Deno.test("both: one program serves TCP and UDP on one address", async () => {
  const port = freePort();
  await using tcp = new TcpService(tellAndEcho, "127.0.0.1", port);
  await using udp = await UdpService.start(tell, "127.0.0.1", port);
  await using program = await Program.start({ args: ["-p", "both", "-4", tcp.address] });
  using client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT4, BALANCER4));
  assert.equal(await client.line(), show(CLIENT4));
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(CLIENT4), "x");
  assert.equal(text((await peer.receive()).data), `${show(CLIENT4)} x`);
  assert.equal(udp.received.length, 1);
});

Deno.test("udp session: the first datagram's header holds for the bare ones after it", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address, "--udp-header", "session"]);
  await using peer = await UdpSocket.open();
  const ask = async (...parts: (Uint8Array | string)[]) => {
    await peer.send(program.listen, ...parts);
    return text((await peer.receive()).data);
  };
  assert.equal(await ask(header(CLIENT4), "first"), `${show(CLIENT4)} first`);
  assert.equal(await ask("second"), `${show(CLIENT4)} second`);
  assert.equal(await ask(""), `${show(CLIENT4)} `);
  const other = { ip: "192.0.2.78", port: 40_000 };
  assert.equal(await ask(header(other), "anew"), `${show(other)} anew`);
  assert.equal(await ask("bare"), `${show(other)} bare`);
});

Deno.test("udp session: a header alone opens the session and forwards nothing", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address, "--udp-header", "session"]);
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(CLIENT4));
  await peer.send(program.listen, "payload");
  assert.equal(text((await peer.receive()).data), `${show(CLIENT4)} payload`);
  assert.equal(service.received.length, 1);
});

Deno.test("udp session: bare datagrams of a peer without a session are dropped and counted", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address, "--udp-header", "session"]);
  await using one = await UdpSocket.open();
  await using other = await UdpSocket.open();
  await one.send(program.listen, header(CLIENT4), "a");
  await one.receive();
  await other.send(program.listen, "whose?");
  await other.silence();
  assert.equal(service.received.length, 1);
  assert.equal((await program.stop()).get("refused_no_session"), 1);
});

Deno.test("udp session: each peer has its own session, with four listeners too", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start([
    "-4",
    service.address,
    "--udp-header",
    "session",
    "--listeners",
    "4",
  ]);
  const peers = await Promise.all(Array.from({ length: 12 }, () => UdpSocket.open()));
  try {
    for (const [index, peer] of peers.entries()) {
      await peer.send(program.listen, header({ ip: "192.0.2.90", port: 41_000 + index }), "open");
      await peer.receive();
    }
    for (const [index, peer] of peers.entries()) {
      await peer.send(program.listen, "bare");
      assert.equal(text((await peer.receive()).data), `192.0.2.90:${41_000 + index} bare`);
    }
  } finally {
    for (const peer of peers) await peer[Symbol.asyncDispose]();
  }
});

for (const client of [CLIENT4, CLIENT6]) {
  Deno.test(`udp spp: ${show(client)} is seen, the reply carries the same 38 bytes`, async () => {
    await using service4 = await UdpService.start(tell);
    await using service6 = await UdpService.start(tell, "::1");
    await using program = await start([
      "-4",
      service4.address,
      "-6",
      service6.address,
      "--udp-header",
      "spp",
    ]);
    await using peer = await UdpSocket.open();
    const head = spp(client, client === CLIENT4 ? BALANCER4 : BALANCER6);
    for (const payload of ["question", ""]) {
      await peer.send(program.listen, head, payload);
      const { data } = await peer.receive();
      assert.deepEqual(new Uint8Array(data.subarray(0, 38)), head);
      assert.equal(text(data.subarray(38)), `${show(client)} ${payload}`);
    }
    assert.equal((await program.stop()).get("headers_spp") > 0, true);
  });
}

Deno.test("udp spp: clients behind one peer each get their own header back", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address, "--udp-header", "spp"]);
  await using peer = await UdpSocket.open();
  for (const round of [0, 1]) {
    for (let index = 0; index < 10; index++) {
      const client = { ip: "192.0.2.91", port: 42_000 + index };
      const head = spp(client, BALANCER4);
      await peer.send(program.listen, head, `${round}`);
      const { data } = await peer.receive();
      assert.deepEqual(new Uint8Array(data.subarray(0, 38)), head);
      assert.equal(text(data.subarray(38)), `${show(client)} ${round}`);
    }
  }
});

Deno.test("udp spp: short datagrams, another magic and PROXY headers are dropped and counted", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(["-4", service.address, "--udp-header", "spp"]);
  await using peer = await UdpSocket.open();
  const head = spp(CLIENT4, BALANCER4);
  await peer.send(program.listen, head.subarray(0, 37));
  await peer.send(program.listen, Uint8Array.of(0x56, 0xed), head.subarray(2), "x");
  await peer.send(program.listen, header(CLIENT4), noise(60, 1));
  await peer.silence();
  await peer.send(program.listen, head, "good");
  await peer.receive();
  assert.equal(service.received.length, 1);
  const counters = await program.stop();
  assert.equal(counters.get("refused_spp_short"), 1);
  assert.equal(counters.get("refused_spp_magic"), 2);
});
