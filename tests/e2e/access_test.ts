import assert from "node:assert/strict";
import net from "node:net";
import { type Endpoint, freePort, show } from "./support/endpoints.ts";
import { bytes, concat, spp, sslTlv, text, Tlv, tlv, v1, v2, v2Local } from "./support/headers.ts";
import { command, killAtEnd, type LogEvent, Program } from "./support/program.ts";
import { type Handler, Resettable, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause, within } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const CLIENT = { ip: "192.0.2.31", port: 41_000 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** A line of the access log, with its fields. */
type Line = LogEvent & Record<string, unknown>;

/** Starts the program with its access log. */
function start(service: { address: string }, ...args: string[]): Promise<Program> {
  return Program.start({ args: ["-4", service.address, ...args], logLevel: "access" });
}

async function access(program: Program, client: Endpoint = CLIENT): Promise<Line> {
  const found = (line: LogEvent) => line.level === "access" && line.client === show(client);
  const line = await Promise.any([
    program.event("connection", found),
    program.event("flow", found),
  ]);
  return line as Line;
}

/** A connection of `CLIENT` that the service has greeted. */
async function open(program: Program): Promise<Stream> {
  const client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  assert.equal(await client.line(), show(CLIENT));
  return client;
}

Deno.test("access: a TCP connection has one line with all that its header says", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await start(service);
  const began = performance.now();
  using client = await Stream.connect(program.listen.port);
  await client.send(
    v2(CLIENT, BALANCER, {
      checksum: true,
      tlvs: [
        tlv(Tlv.authority, bytes("www.example.org")),
        tlv(Tlv.alpn, bytes("h2")),
        sslTlv(tlv(Tlv.sslVersion, bytes("TLSv1.3")), tlv(Tlv.sslCommonName, bytes("alice"))),
        tlv(0xea, concat([1], bytes("vpce-08d2bf15fac5001c9"))),
        tlv(0xf0, bytes("more")),
      ],
    }),
    "ping",
  );
  assert.equal(await client.line(), show(CLIENT));
  assert.equal(text(await client.exactly(4)), "ping");
  await pause(300);
  await client.finish();
  assert.equal(await client.end(), "closed");
  const took = performance.now() - began;

  const { time: _time, message, duration_ms, ...fields } = await access(program);
  assert.deepEqual(fields, {
    level: "access",
    event: "connection",
    protocol: "tcp",
    listener: show(program.listen),
    worker: 0,
    header: "v2",
    peer: client.local,
    client: show(CLIENT),
    destination: show(BALANCER),
    upstream: service.address,
    bytes_up: 4,
    bytes_down: `${show(CLIENT)}\nping`.length,
    ended: "client_closed",
    authority: "www.example.org",
    alpn: "h2",
    tls: { version: "TLSv1.3", cn: "alice" },
    aws_vpc_endpoint: "vpce-08d2bf15fac5001c9",
    other_tlvs: { "0xf0": "more" },
  });
  assert.ok(Number(duration_ms) >= 299 && Number(duration_ms) <= took + 2, `${duration_ms} ms`);
  assert.match(message, /^tcp client=192\.0\.2\.31:41000 .* authority=www\.example\.org alpn=h2 /);
  assert.equal((await program.stop()).get("events_lost"), 0);
  assert.equal(program.all("connection").length, 1);
});

/** Says whom it sees, and ends. */
const brief: Handler = (stream, client) => stream.send(`${client}\n`);

Deno.test("access: the service first is service_closed", async () => {
  await using service = new TcpService(brief);
  await using program = await start(service);
  using client = await open(program);
  await client.end();
  client[Symbol.dispose]();
  const line = await access(program);
  assert.equal(line.ended, "service_closed");
  assert.ok(!("error" in line));
});

Deno.test("access: a reset of the service is service_reset", async () => {
  const service = net.createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => socket.resetAndDestroy());
  });
  const port = freePort();
  await new Promise<void>((resolve) => service.listen(port, "127.0.0.1", resolve));
  try {
    await using program = await start({ address: show({ ip: "127.0.0.1", port }) });
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER), "hello");
    assert.equal(await client.end(), "reset");
    const line = await access(program);
    assert.equal(line.ended, "service_reset");
    assert.equal(line.error, "ECONNRESET");
    assert.equal(line.bytes_up, 5);
  } finally {
    await new Promise((resolve) => service.close(resolve));
  }
});

Deno.test("access: a reset of the client is client_reset", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await start(service);
  await using client = await Resettable.connect(program.listen.port);
  const greeting = client.next();
  client.send(v1(CLIENT, BALANCER));
  await greeting;
  client.reset();
  const line = await access(program);
  assert.equal(line.ended, "client_reset");
  assert.equal(line.error, "ECONNRESET");
  assert.equal(line.header, "v1");
});

Deno.test("access: an upstream that refuses is connect_failed, in addition to the warning", async () => {
  await using program = await start({ address: show({ ip: "127.0.0.1", port: freePort() }) });
  using client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  await client.end();
  const line = await access(program);
  assert.equal(line.ended, "connect_failed");
  assert.equal(line.error, "ECONNREFUSED");
  assert.equal(line.bytes_up, 0);
  await program.event("connect_failed");
});

Deno.test("access: a connection that the stop ends is stopped", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await start(service, "--drain-timeout", "1");
  using client = await open(program);
  program.signal("SIGTERM");
  assert.equal(await program.ended(), 0);
  assert.equal((await access(program)).ended, "stopped");
  assert.equal(program.all("stopped").length, 1);
  await client.end();
});

Deno.test("access: LOCAL has no client and no destination", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await start(service);
  using client = await Stream.connect(program.listen.port);
  await client.send(v2Local(tlv(Tlv.authority, bytes("probe"))));
  await client.line();
  client[Symbol.dispose]();
  const line = await program.event("connection") as Line;
  assert.ok(!("client" in line) && !("destination" in line) && !("authority" in line));
  assert.match(line.message, / client=- | client=-$/);
});

Deno.test("access: refused peers and headers have their own lines alone", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await start(service);
  using client = await Stream.connect(program.listen.port);
  await client.send("GET / HTTP/1.1\r\n\r\n");
  await client.end();
  await program.event("header_refused");
  await program.stop();
  assert.deepEqual(program.all("connection"), []);
});

Deno.test("access: a UDP flow has one line at its end", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(service, "-p", "udp", "--udp-header", "spp", "-c", "1");
  await using peer = await UdpSocket.open();
  const answer = `${show(CLIENT)} one`.length;
  for (let index = 0; index < 3; index++) {
    await peer.send(program.listen, spp(CLIENT, BALANCER), "one");
    assert.equal((await peer.receive()).data.length, 38 + answer);
  }
  const { time: _time, message, duration_ms, ...fields } = await access(program);
  assert.deepEqual(fields, {
    level: "access",
    event: "flow",
    protocol: "udp",
    listener: show(program.listen),
    worker: 0,
    header: "spp",
    peer: show(peer.local),
    client: show(CLIENT),
    destination: show(BALANCER),
    upstream: service.address,
    bytes_up: 9,
    bytes_down: 3 * answer,
    datagrams_up: 3,
    datagrams_down: 3,
    ended: "idle",
  });
  assert.ok(Number(duration_ms) >= 1000, `${duration_ms} ms`);
  assert.match(message, /^udp client=/);
  const counters = await program.stop();
  assert.equal(counters.get("datagram_bytes_up"), 9);
  assert.equal(counters.get("datagram_bytes_down"), 3 * answer);
});

Deno.test("access: a UDP flow's TLVs, and a flow that the stop ends", async () => {
  await using service = await UdpService.start(tell);
  await using program = await start(service, "-p", "udp");
  await using peer = await UdpSocket.open();
  const tlvs = [tlv(Tlv.authority, bytes("dns.example.org"))];
  await peer.send(program.listen, v2(CLIENT, BALANCER, { datagram: true, tlvs }), "one");
  await peer.receive();
  await program.stop();
  const line = await access(program);
  assert.equal(line.ended, "stopped");
  assert.equal(line.authority, "dns.example.org");
});

Deno.test("access: no line below its level", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address], logLevel: "info" });
  using client = await open(program);
  await client.finish();
  await client.end();
  await program.stop();
  assert.deepEqual(program.events.map(({ event }) => event), [
    "all_allowed",
    "sandbox",
    "listening",
    "no_upstream",
    "stopping",
    "stopped",
  ]);
});

Deno.test("access: none of 2,000 lines over two listeners is lost", async () => {
  await using service = new TcpService(brief);
  await using program = await start(service, "--listeners", "2");
  for (let round = 0; round < 40; round++) {
    await Promise.all(Array.from({ length: 50 }, async (_, index) => {
      using client = await Stream.connect(program.listen.port);
      await client.send(v2({ ip: "192.0.2.32", port: 10_000 + round * 50 + index }, BALANCER));
      await client.end();
    }));
  }
  assert.equal((await program.stop()).get("events_lost"), 0);
  const ports = new Set(program.all("connection").map(({ client }) => client));
  assert.equal(ports.size, 2000);
});

Deno.test("access: the text form is a line of key=value pairs", async () => {
  await using service = new TcpService(brief);
  const listen = { ip: "127.0.0.1", port: freePort() };
  const args = ["-4", service.address, "-l", show(listen), "--log-level", "access"];
  const child = command(args, {}).spawn();
  using _end = killAtEnd(child);
  const output = child.output();
  {
    using client = await eventually(
      () => Stream.connect(listen.port).catch(() => undefined),
      "connection",
      30_000,
    );
    await client.send(v2(CLIENT, BALANCER));
    assert.equal(await client.line(), show(CLIENT));
  }
  child.kill("SIGTERM");
  const { stderr } = await within(output, "end of the program");
  const [line, ...more] = text(stderr).split("\n").filter((line) => line.includes("ACCESS"));
  assert.deepEqual(more, []);
  assert.match(
    line ?? "",
    /^\S+Z ACCESS tcp client=192\.0\.2\.31:41000 peer=127\.0\.0\.1:\d+ upstream=127\.0\.0\.1:\d+ up=0 down=17 ms=\d+ ended=(service|client)_closed header=v2$/,
  );
});
