/** A listener's own limits of connections and UDP flows, over all workers, beside other listeners. */
import assert from "node:assert/strict";
import { freePort, show } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const WORKERS = 4;

/** A program with a limited and an unlimited listener, each at a port of its own. */
async function start(scratch: Scratch, keys: string, limit: string) {
  const ports = [freePort(), freePort()] as const;
  const [limited, free] = ports.map((port, at) =>
    `[[listener]]\nname = "${
      at === 0 ? "limited" : "free"
    }"\nlisten = "127.0.0.1:${port}"\n${keys}\n`
  );
  const file = await scratch.write(
    "mmproxy.toml",
    `workers = ${WORKERS}\n${limited}${limit}\n${free}`,
  );
  const program = await Program.start({ config: file });
  return { program, ports, file };
}

function client(port: number) {
  return { ip: "203.0.113.7", port };
}

Deno.test("limits: a listener has no more connections than max-connections, with or without a header", async () => {
  await using scratch = await Scratch.make();
  await using upstream = new TcpService(tellAndEcho);
  const { program, ports, file } = await start(
    scratch,
    `ipv4 = "${upstream.address}"`,
    "max-connections = 3",
  );
  await using _program = program;
  const open = async (port: number) => {
    const stream = await Stream.connect(ports[0]);
    await stream.send(v2(client(port), BALANCER));
    return stream;
  };
  // One without a header counts as well, on whichever worker it is.
  using silent = await Stream.connect(ports[0]);
  using one = await open(1_001);
  using two = await open(1_002);
  assert.equal(await one.line(), "203.0.113.7:1001");
  assert.equal(await two.line(), "203.0.113.7:1002");
  for (let times = 0; times < 2 * WORKERS; times++) {
    using more = await Stream.connect(ports[0]);
    assert.equal(await more.end(), "closed");
  }
  const { message, listener } = await program.event("peer_refused");
  assert.equal(listener, "limited");
  assert.match(message, /the listener has reached max-connections/);
  using other = await Stream.connect(ports[1]);
  await other.send(v2(client(1_003), BALANCER));
  assert.equal(await other.line(), "203.0.113.7:1003");
  silent[Symbol.dispose]();
  await eventually(async () => {
    using again = await open(1_004);
    return await again.line().then((line) => line === "203.0.113.7:1004", () => false);
  }, "a place that is free again");
  // Connections that were there before a limit count.
  const before = await Deno.readTextFile(file);
  await Deno.writeTextFile(file, before.replace("max-connections = 3", "max-connections = 2"));
  program.signal("SIGHUP");
  await program.event("reloaded");
  using refused = await Stream.connect(ports[0]);
  assert.equal(await refused.end(), "closed");
  two[Symbol.dispose]();
  await eventually(async () => {
    using again = await open(1_005);
    return await again.line().then(() => true, () => false);
  }, "a place below the new limit");
  // Nothing is left to drain.
  for (const stream of [one, other]) stream[Symbol.dispose]();
  const counters = await program.stop();
  assert.ok(counters.get("refused_too_many_connections") > 2 * WORKERS);
});

Deno.test("limits: a listener's idlest flow makes room where it has max-flows, and no other listener's", async () => {
  await using scratch = await Scratch.make();
  await using upstream = await UdpService.start(tell);
  const { program, ports } = await start(
    scratch,
    `protocol = "udp"\nipv4 = "${upstream.address}"`,
    "max-flows = 2",
  );
  await using _program = program;
  await using peer = await UdpSocket.open();
  const say = async (port: number, to: number) => {
    const header = v2(client(port), BALANCER, { datagram: true });
    await peer.send({ ip: "127.0.0.1", port: to }, header, "x");
    return text((await peer.receive()).data);
  };
  // One peer is at one worker, which has all flows.
  for (const port of [2_001, 2_002, 2_001, 2_003]) {
    assert.equal(await say(port, ports[0]), `${show(client(port))} x`);
  }
  for (let port = 2_101; port < 2_110; port++) {
    assert.equal(await say(port, ports[1]), `${show(client(port))} x`);
  }
  const { message, listener, value } = await program.event("flows_full");
  assert.equal(listener, "limited");
  assert.equal(value, 2);
  assert.match(message, /the listener has reached max-flows/);
  const ended = await program.event("flow_closed");
  assert.equal(ended.client, show(client(2_002)), "the idlest, not the oldest");
  const counters = await program.stop();
  assert.equal(counters.get("flows_evicted"), 1);
  assert.equal(counters.get("refused_too_many_flows"), 0);
});

Deno.test("limits: a new client's datagrams are dropped where other workers have all flows", async () => {
  await using scratch = await Scratch.make();
  await using upstream = await UdpService.start(tell);
  const { program, ports } = await start(
    scratch,
    `protocol = "udp"\nipv4 = "${upstream.address}"`,
    "max-flows = 1",
  );
  await using _program = program;
  const listen = { ip: "127.0.0.1", port: ports[0] };
  const header = (port: number) => v2(client(port), BALANCER, { datagram: true });
  await using first = await UdpSocket.open();
  await first.send(listen, header(3_001), "x");
  assert.equal(text((await first.receive()).data), `${show(client(3_001))} x`);
  // Peers land at the workers by a hash of their address: one of these at another than the first.
  const refused = async () => {
    await using other = await UdpSocket.open();
    await other.send(listen, header(3_002), "x");
    await eventually(
      () => other.queue.length > 0 || program.all("datagrams_refused").length > 0,
      "an answer or a refusal",
    );
    if (other.queue.length > 0) {
      // This worker has the flow now, and gives it away for the first client again.
      await other.send(listen, header(3_001), "x");
    }
    return program.all("datagrams_refused")[0];
  };
  const event = await eventually(refused, "a peer at another worker");
  assert.equal(event.refusal, "too_many_flows");
  assert.equal(event.listener, "limited");
  assert.match(
    event.message,
    /no flow for client 203\.0\.113\.7:3002: the listener has reached max-flows/,
  );
  const counters = await program.stop();
  assert.ok(counters.get("refused_too_many_flows") > 0);
});
