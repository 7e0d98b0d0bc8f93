/** Whose a datagram is, when headers vary, sessions change, and tables are full. */
import assert from "node:assert/strict";
import { type Endpoint, show } from "./support/endpoints.ts";
import { flood } from "./support/flood.ts";
import { bytes, concat, text, Tlv, tlv, v2 } from "./support/headers.ts";
import { Program, type Start } from "./support/program.ts";
import { eventually } from "./support/time.ts";
import { echo, UdpService, UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 53 };
const SILENT = () => undefined;

function clients(count: number): Endpoint[] {
  return Array.from({ length: count }, (_, index) => ({
    ip: `192.0.2.${1 + index % 200}`,
    port: 20_000 + index,
  }));
}

let unique = 0;

/** A header whose unique id no other has. */
function varying(client: Endpoint): Uint8Array {
  const id = bytes(`id ${unique++}`);
  return v2(client, BALANCER, { datagram: true, tlvs: [tlv(Tlv.uniqueId, id)] });
}

function constant(client: Endpoint): Uint8Array {
  return v2(client, BALANCER, { datagram: true });
}

function start(args: string[], rest: Omit<Start, "args"> = {}): Promise<Program> {
  return Program.start({ args: ["-p", "udp", ...args], logLevel: "info", ...rest });
}

/** Sends while the program stands still, so that it finds all of it at once. */
async function burst(
  program: Program,
  peer: UdpSocket,
  datagrams: readonly (readonly Uint8Array[])[],
): Promise<void> {
  program.signal("SIGSTOP");
  for (const parts of datagrams) await peer.send(program.listen, ...parts);
  program.signal("SIGCONT");
}

/** Asserts that every payload, which names its client and a number, came from that client in order. */
function assertOwn(service: UdpService): void {
  const last = new Map<string, number>();
  for (const { data, from } of service.received) {
    const [client = "", number] = text(data).split(" ");
    assert.equal(show(from), client, "a datagram came from another client's address");
    assert.ok(Number(number) > (last.get(client) ?? -1), `${text(data)} came out of order`);
    last.set(client, Number(number));
  }
}

for (
  const [name, header, listeners] of [
    ["a unique id in each header", varying, 1],
    ["a unique id in each header, four listeners", varying, 4],
    ["the same header again and again", constant, 1],
  ] as const
) {
  Deno.test(`udp identity: ${name}: every datagram comes from its own client, in order`, async () => {
    await using service = await UdpService.start(SILENT);
    const args = ["-4", service.address, "--listeners", String(listeners)];
    await using program = await start(args);
    await using peer = await UdpSocket.open();
    const three = clients(3);
    const rounds = 30, each = 64;
    for (let round = 0; round < rounds; round++) {
      const datagrams = Array.from({ length: 3 * each }, (_, index) => {
        const client = three[index % 3] as Endpoint;
        return [header(client), bytes(`${show(client)} ${round * each + Math.floor(index / 3)}`)];
      });
      await burst(program, peer, datagrams);
      const total = 3 * each * (round + 1);
      await eventually(() => service.received.length >= total, `${total} datagrams`);
    }
    assert.equal(service.received.length, 3 * each * rounds);
    assertOwn(service);
    const counters = await program.stop();
    assert.equal(counters.get("flows_opened"), 3);
    assert.equal(counters.get("datagrams_lost"), 0);
  });
}

for (const different of [9, 64]) {
  Deno.test(`udp identity: one client with ${different} different headers in a batch loses nothing`, async () => {
    await using service = await UdpService.start(SILENT);
    await using program = await start(["-4", service.address]);
    await using peer = await UdpSocket.open();
    const [client] = clients(1) as [Endpoint];
    const headers = Array.from({ length: different }, () => varying(client));
    const datagrams = Array.from({ length: 192 }, (_, index) => [
      headers[index % different] as Uint8Array,
      bytes(`${show(client)} ${index}`),
    ]);
    await burst(program, peer, datagrams);
    await eventually(() => service.received.length === datagrams.length, "all datagrams");
    assertOwn(service);
    await program.stop();
  });
}

Deno.test("udp identity: with two balancers each gets the replies to what it has sent", async () => {
  await using service = await UdpService.start(echo);
  await using program = await start(["-4", service.address]);
  await using one = await UdpSocket.open();
  await using two = await UdpSocket.open();
  const all = clients(6);
  const sides = [[one, all.slice(0, 3)], [two, all.slice(3)]] as const;
  for (let round = 0; round < 20; round++) {
    program.signal("SIGSTOP");
    for (let index = 0; index < 32; index++) {
      for (const [peer, own] of sides) {
        const client = own[index % 3] as Endpoint;
        await peer.send(program.listen, varying(client), `${show(client)} ${round}.${index}`);
      }
    }
    program.signal("SIGCONT");
    for (const [peer, own] of sides) {
      await eventually(() => peer.queue.length >= 32, "32 replies");
      const names = own.map(show);
      for (const { data } of peer.queue.splice(0)) {
        const client = text(data).split(" ")[0] ?? "";
        assert.ok(names.includes(client), `a reply for ${client} came to the other balancer`);
      }
    }
  }
  await program.stop();
});

Deno.test("udp identity: a session with a new header in a burst belongs to the new client immediately", async () => {
  await using service = await UdpService.start(SILENT);
  await using program = await start(["-4", service.address, "--udp-header", "session"]);
  await using peer = await UdpSocket.open();
  const three = clients(3);
  for (let round = 0; round < 20; round++) {
    const datagrams = three.flatMap((client) => [
      [constant(client), bytes(`${show(client)} ${2 * round}`)],
      [bytes(`${show(client)} ${2 * round + 1}`)],
    ]);
    await burst(program, peer, datagrams);
    await eventually(() => service.received.length >= 6 * (round + 1), "six datagrams");
  }
  assertOwn(service);
  await program.stop();
});

Deno.test("udp identity: a refused header ends its peer's session", async () => {
  await using service = await UdpService.start(SILENT);
  await using program = await start(["-4", service.address, "--udp-header", "session"]);
  await using peer = await UdpSocket.open();
  const [client] = clients(1) as [Endpoint];
  await peer.send(program.listen, constant(client), "first");
  await eventually(() => service.received.length === 1, "the first datagram");
  await peer.send(program.listen, constant({ ip: "224.0.0.1", port: 1 }), "refused");
  await peer.send(program.listen, "whose is this?");
  await peer.send(program.listen, constant(client), "last");
  await eventually(() => service.received.length === 2, "the last datagram");
  assert.deepEqual(service.received.map(({ data }) => text(data)), ["first", "last"]);
  assert.equal((await program.stop()).get("refused_no_session"), 1);
});

Deno.test("udp identity: a session whose flow made room for others opens it again", async () => {
  await using service = await UdpService.start(SILENT);
  await using program = await start(
    ["-4", service.address, "--udp-header", "session"],
    { shell: 'ulimit -n 160; exec "$@"' },
  );
  await using first = await UdpSocket.open();
  await using others = await UdpSocket.open();
  const [client, ...rest] = clients(200) as [Endpoint, ...Endpoint[]];
  await first.send(program.listen, constant(client), `${show(client)} 0`);
  await eventually(() => service.received.length === 1, "the first datagram");
  // One peer announces them all, each instead of the one before.
  for (let from = 0; from < rest.length; from += 40) {
    const before = service.received.length;
    const some = rest.slice(from, from + 40);
    await burst(
      program,
      others,
      some.map((other) => [constant(other), bytes(`${show(other)} 0`)]),
    );
    await eventually(() => service.received.length === before + some.length, "the others");
  }
  await first.send(program.listen, `${show(client)} 1`);
  await eventually(() => service.received.length === 201, "the bare datagram");
  assertOwn(service);
  const counters = await program.stop();
  assert.ok(counters.get("flows_evicted") > 50);
  assert.equal(counters.get("flows_opened"), 201);
});

Deno.test("udp identity: a full table gives new clients room and nobody another's address", async () => {
  await using service = await UdpService.start(SILENT);
  await using program = await start(["-4", service.address], {
    shell: 'ulimit -n 256; exec "$@"',
  });
  await using peer = await UdpSocket.open();
  const all = clients(1_000);
  const parts = (client: Endpoint, number: number) => [
    constant(client),
    bytes(`${show(client)} ${number}`),
  ];
  let total = 0;
  for (let round = 0; round < 4; round++) {
    for (let from = 0; from < all.length; from += 250) {
      await burst(program, peer, all.slice(from, from + 250).map((client) => parts(client, round)));
      total += 250;
      await eventually(() => service.received.length >= total, `${total} datagrams`);
    }
  }
  assert.equal(service.received.length, total);
  assertOwn(service);
  const counters = await program.stop();
  assert.ok(counters.get("flows_evicted") > 1_000);
  assert.equal(counters.get("flows_active"), 0);
});

/** A process's memory in MiB. */
function residentMiB(pid: number): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
}

/** Where a version 2 header over IPv4 has its source port, and the two bytes before it. */
const BEFORE_SOURCE_PORT = 22;
const DESTINATION_PORT = 26;

for (
  const [name, length, count, at] of [
    ["of one client", 1_000, 160_000, undefined],
    ["of 30 KB, each of another client", 30_000, 12_000, BEFORE_SOURCE_PORT],
  ] as const
) {
  Deno.test(`udp identity: headers that never come again, ${name}, take no memory for long`, async () => {
    await using service = await UdpService.start(SILENT);
    await using program = await start(["-4", service.address, "--listeners", "4"]);
    const [client] = clients(1) as [Endpoint];
    const template = concat(
      v2(client, BALANCER, { datagram: true, tlvs: [tlv(0xe0, new Uint8Array(length))] }),
      bytes("payload"),
    );
    const varies = at ?? template.length - "payload".length - length;
    // The first of them load what every run needs.
    await flood(program.listen, template, varies, 64);
    const before = residentMiB(program.pid);
    // Each flood is another peer's: they are spread over the workers.
    for (let peer = 0; peer < 8; peer++) {
      template[DESTINATION_PORT] = peer;
      await flood(program.listen, template, varies, count / 8);
    }
    const grown = residentMiB(program.pid) - before;
    // 16 MiB of headers, buffers for long datagrams, and what the runtime takes.
    assert.ok(grown < 90, `${grown.toFixed()} MiB more`);
    const seen = (await program.stop()).get("headers_v2");
    // Many of the long ones find the queue of the socket full.
    const room = seen * (length + 150);
    assert.ok(room > 1.1 * 16 * 2 ** 20, `only ${seen} headers were decoded`);
  });
}

Deno.test("udp identity: an upstream without a route costs one decode and socket a second", async () => {
  await using program = await start(["-4", "203.0.113.9:53"]);
  await using peer = await UdpSocket.open();
  const [client, other] = clients(2) as [Endpoint, Endpoint];
  for (let index = 0; index < 20; index++) {
    await peer.send(program.listen, constant(client), `datagram ${index}`);
  }
  await peer.send(program.listen, constant(other), "another client's");
  await program.event("flow_failed");
  const counters = await program.stop();
  assert.equal(counters.get("headers_v2"), 2);
  assert.equal(counters.get("flow_errors"), 2);
  assert.equal(counters.get("datagrams_lost"), 21);
  const lines = program.all("flow_failed");
  assert.ok(lines.length <= 2, `${lines.length} lines`);
  const told = lines.reduce((sum, { left_out = 0 }) => sum + 1 + left_out, 0);
  assert.equal(told, 21);
});
