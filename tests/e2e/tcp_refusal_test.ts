import assert from "node:assert/strict";
import { freePort, socketsOf } from "./support/endpoints.ts";
import { bytes, concat, text, Tlv, tlv, v1, v2, v2Local, v2Raw } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { noise, Resettable, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";

const CLIENT = { ip: "192.0.2.55", port: 40_555 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** A version 2 header whose checksum TLV does not match. */
function wrongChecksum(): Uint8Array {
  const header = v2(CLIENT, BALANCER, { checksum: true });
  header[header.length - 1] = (header[header.length - 1] ?? 0) ^ 1;
  return header;
}

/** What a TLS client sends first: a handshake record with a ClientHello in it. */
const CLIENT_HELLO = concat([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]);

const REFUSED: [name: string, sent: Uint8Array, refusal: string, came: RegExp | undefined][] = [
  ["a TLS ClientHello", CLIENT_HELLO, "not_proxy", /TLS ClientHello/],
  ["an HTTP request", bytes("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "not_proxy", /HTTP request/],
  ["an SSH client", bytes("SSH-2.0-OpenSSH_9.2p1\r\n"), "not_proxy", /SSH/],
  [
    "a v1 line that does not end",
    bytes(`PROXY UNKNOWN ${"x".repeat(5000)}`),
    "v1_too_long",
    undefined,
  ],
  [
    "a v1 line ended by a lone LF",
    bytes("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n"),
    "v1_lone_line_end",
    undefined,
  ],
  [
    "a v1 address with a leading zero",
    bytes("PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n"),
    "v1_address",
    undefined,
  ],
  [
    "a v1 port above 65535",
    bytes("PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n"),
    "v1_port",
    undefined,
  ],
  [
    "a v1 line with two spaces",
    bytes("PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n"),
    "v1_syntax",
    undefined,
  ],
  [
    "a v1 word of no family",
    bytes("PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n"),
    "v1_protocol",
    undefined,
  ],
  ["v2 with an unknown command", v2Raw(2, 0x11, new Uint8Array(12)), "v2_command", undefined],
  ["v2 with an unknown family", v2Raw(1, 0x41, new Uint8Array(12)), "v2_family", undefined],
  ["v2 with an unknown transport", v2Raw(1, 0x13, new Uint8Array(12)), "v2_transport", undefined],
  [
    "v2 shorter than its address block",
    v2Raw(1, 0x21, new Uint8Array(35)),
    "v2_short_address",
    undefined,
  ],
  [
    "v2 with a TLV past the header's end",
    v2(CLIENT, BALANCER, { tlvs: [Uint8Array.of(Tlv.noop, 0, 9, 1)] }),
    "v2_tlv",
    undefined,
  ],
  ["v2 with a wrong checksum", wrongChecksum(), "v2_checksum", undefined],
];

Deno.test("tcp refusal: every wrong header ends its connection at once with its reason", async (t) => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "-6", "[::1]:9", "--header-timeout", "60"],
  });
  const expected = new Map<string, number>();
  for (const [name, sent, refusal, came] of REFUSED) {
    expected.set(refusal, (expected.get(refusal) ?? 0) + 1);
    await t.step(name, async () => {
      using client = await Stream.connect(program.listen.port);
      const peer = client.local;
      await client.send(sent);
      await client.end();
      const event = await program.event("header_refused", (event) => event.peer === peer);
      assert.equal(event.refusal, refusal);
      if (came !== undefined) assert.match(event.came ?? "", came);
      assert.equal(program.all("header_refused").filter((e) => e.peer === peer).length, 1);
    });
  }
  assert.deepEqual(service.clients, []);
  const counters = await program.stop();
  for (const [refusal, count] of expected) {
    assert.equal(counters.get(`refused_${refusal}`), count, refusal);
  }
});

Deno.test("tcp refusal: a wrong first byte is refused without waiting for more", async () => {
  await using program = await Program.start({ args: ["--header-timeout", "60"] });
  using client = await Stream.connect(program.listen.port);
  await client.send("G");
  await client.end(5000);
});

Deno.test("tcp refusal: a connection that ends inside the header", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address] });
  using client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER).subarray(0, 20));
  await client.finish();
  await client.end();
  assert.deepEqual(service.clients, []);
  assert.equal((await program.stop()).get("refused_incomplete"), 1);
});

Deno.test("tcp refusal: a peer that sends nothing is cut by the header timeout", async () => {
  await using program = await Program.start({ args: ["--header-timeout", "3"] });
  using client = await Stream.connect(program.listen.port);
  const begin = performance.now();
  await client.end();
  const took = performance.now() - begin;
  assert.ok(took > 2900 && took < 8000, `${took} ms`);
  const event = await program.event("header_timeout");
  assert.match(event.came ?? "", /nothing for 3 s/);
  assert.equal(event.level, "debug");
  const counters = await program.stop();
  assert.deepEqual(["refused_timeout", "silent"].map((name) => counters.get(name)), [1, 1]);
});

Deno.test("tcp refusal: a probe that opens and closes is counted, and no warning", async () => {
  await using program = await Program.start();
  using client = await Stream.connect(program.listen.port);
  await client.finish();
  await client.end();
  assert.equal((await program.event("header_refused")).level, "debug");
  const counters = await program.stop();
  assert.deepEqual(["refused_incomplete", "silent"].map((name) => counters.get(name)), [1, 1]);
});

Deno.test("tcp refusal: a peer that drips is cut by the same absolute deadline", async () => {
  await using program = await Program.start({ args: ["--header-timeout", "3"] });
  using client = await Stream.connect(program.listen.port);
  const begin = performance.now();
  let ended = false;
  const watching = client.end().finally(() => ended = true);
  // A failure is reported where it is awaited below.
  watching.catch(() => {});
  const header = v2(CLIENT, BALANCER, { tlvs: [tlv(Tlv.noop, noise(500, 1))] });
  for (const byte of header) {
    if (ended) break;
    await client.write(Uint8Array.of(byte)).catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await watching;
  const took = performance.now() - begin;
  assert.ok(took > 2900 && took < 8000, `${took} ms`);
  assert.equal((await program.stop()).get("refused_timeout"), 1);
});

/** Runs `act` with the path of a file that holds `content`. */
async function withFile(content: string, act: (path: string) => Promise<void>): Promise<void> {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(path, content);
    await act(path);
  } finally {
    await Deno.remove(path);
  }
}

Deno.test("subnets: a peer outside is closed before it has sent a byte", async () => {
  await withFile("192.0.2.0/24\n", async (path) => {
    await using service = new TcpService(tellAndEcho);
    await using program = await Program.start({ args: ["-4", service.address, "-a", path] });
    using client = await Stream.connect(program.listen.port);
    const peer = client.local;
    await client.end();
    assert.equal((await program.event("peer_refused")).peer, peer);
    assert.deepEqual(service.clients, []);
    const counters = await program.stop();
    assert.equal(counters.get("refused_peer_not_allowed"), 1);
  });
});

Deno.test("subnets: a listed address is served, its neighbour is not", async () => {
  const list = "# the balancers\n\n127.0.0.9   # one address\n2001:db8::/32\n";
  await withFile(list, async (path) => {
    await using service = new TcpService(tellAndEcho);
    await using program = await Program.start({ args: ["-4", service.address, "-a", path] });
    await using inside = await Resettable.connect(program.listen.port, "127.0.0.9");
    inside.send(v2(CLIENT, BALANCER));
    assert.equal(text(await inside.next()), "192.0.2.55:40555\n");
    await using outside = await Resettable.connect(program.listen.port, "127.0.0.10");
    await outside.end();
    assert.equal(service.clients.length, 1);
  });
});

Deno.test("subnets: an IPv4 peer of a [::] listener matches an IPv4 subnet", async () => {
  await withFile("127.0.0.0/8\n", async (path) => {
    await using service = new TcpService(tellAndEcho);
    await using program = await Program.start({
      listen: { ip: "::", port: freePort() },
      args: ["-4", service.address, "-a", path],
    });
    using inside = await Stream.connect(program.listen.port, "127.0.0.1");
    await inside.send(v2(CLIENT, BALANCER));
    assert.equal(await inside.line(), "192.0.2.55:40555");
    using outside = await Stream.connect(program.listen.port, "::1");
    await outside.end();
  });
});

Deno.test("tcp refusal: a refused connection leaves no socket behind", async () => {
  await using program = await Program.start();
  using client = await Stream.connect(program.listen.port);
  await client.send("nonsense");
  await client.end();
  client[Symbol.dispose]();
  const ESTABLISHED = 1;
  await eventually(
    () => socketsOf(program.listen.port).every((row) => row.state !== ESTABLISHED),
    "end of the connection",
  );
  assert.equal((await program.stop()).get("connections_active"), 0);
});

Deno.test("tcp refusal: an IPv6 listener refuses as the IPv4 one does", async () => {
  await using program = await Program.start({ listen: { ip: "::1", port: freePort() } });
  for (const sent of [bytes("HELO x\r\n"), v1(CLIENT, BALANCER).subarray(1), v2Local().fill(0)]) {
    using client = await Stream.connect(program.listen.port, "::1");
    await client.send(sent);
    await client.end();
  }
  assert.equal((await program.stop()).get("refused_not_proxy"), 3);
});
