/** A reload that changes one thing of a listener, and what it leaves behind. */
import assert from "node:assert/strict";
import { Network } from "./support/addresses.ts";
import { freePort, show } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { Program } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { BALANCER, connect, echoes, FAST, nextClient, reload, toml } from "./support/reloads.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";
import { without } from "./support/without_calls.ts";

Deno.test("reload: of trust alone, who was let in stays, and the new rules count from then on", async () => {
  await using scratch = await Scratch.make();
  const port = freePort();
  await using service = new TcpService(tellAndEcho);
  await using datagrams = await UdpService.start(tell, "127.0.0.1", service.port);
  const file = (from: string) =>
    toml([{
      name: "web",
      port,
      to: service.address,
      more: `protocol = "both"\ntrust = [{ from = "${from}", header = "require" }]`,
    }]);
  const path = await scratch.write("m.toml", file("127.0.0.1"));
  await using program = await Program.start({ config: path, args: FAST });
  using before = await connect(port);
  await using peer = await UdpSocket.open();
  const header = v2(nextClient(), BALANCER, { datagram: true });
  await peer.send({ ip: "127.0.0.1", port }, header, "before");
  await peer.receive();

  await scratch.write("m.toml", file("127.0.0.7"));
  assert.match((await reload(program)).message, /: 1 listener changed \(web\)$/);
  await echoes(before, "still here");
  using refused = await Stream.connect(port);
  await refused.end();
  await program.event("peer_refused");
  await peer.send({ ip: "127.0.0.1", port }, header, "after");
  await peer.silence();
  assert.deepEqual(datagrams.received.map(({ data }) => text(data)), ["before"]);

  await scratch.write("m.toml", file("127.0.0.0/8"));
  await reload(program);
  await echoes(before, "and here");
  using _again = await connect(port);
  await peer.send({ ip: "127.0.0.1", port }, header, "again");
  assert.match(text((await peer.receive()).data), / again$/);
  await program.stop();
});

Deno.test("reload: a destination that is no longer allowed is not reached again", async () => {
  await using scratch = await Scratch.make();
  const port = freePort();
  await using one = new TcpService(tellAndEcho);
  await using two = new TcpService(tellAndEcho);
  await using datagrams = await UdpService.start(tell, "127.0.0.1", two.port);
  const [first, second] = [one, two].map(({ ip, port }) => ({ ip, port }));
  assert(first && second);
  const file = (...allowed: { ip: string; port: number }[]) =>
    `[[listener]]
name = "any"
listen = "127.0.0.1:${port}"
protocol = "both"
upstream = "destination"
allowed-destinations = ${JSON.stringify(allowed.map(show))}
`;
  const path = await scratch.write("m.toml", file(first, second));
  await using program = await Program.start({ config: path, args: FAST });
  using before = await connect(port, second);
  await using peer = await UdpSocket.open();
  const header = v2(nextClient(), second, { datagram: true });
  await peer.send({ ip: "127.0.0.1", port }, header, "before");
  await peer.receive();

  await scratch.write("m.toml", file(first));
  assert.match((await reload(program)).message, /: 1 listener changed \(any\)$/);
  await echoes(before, "still here");
  using _allowed = await connect(port, first);
  using refused = await Stream.connect(port);
  await refused.send(v2(nextClient(), second));
  await refused.end();
  await eventually(
    () => program.events.find(({ refusal }) => refusal === "destination_not_allowed"),
    "refusal",
  );
  // A header that was decided before is judged again.
  await peer.send({ ip: "127.0.0.1", port }, header, "after");
  await peer.silence();
  assert.deepEqual(datagrams.received.map(({ data }) => text(data)), ["before"]);

  await scratch.write("m.toml", file(second));
  await reload(program);
  using _again = await connect(port, second);
  await program.stop();
});

Deno.test("reload: of limits alone, they count connections that there are", async () => {
  await using scratch = await Scratch.make();
  const port = freePort();
  await using service = new TcpService(tellAndEcho);
  const file = (limit: string) => toml([{ name: "web", port, to: service.address, more: limit }]);
  const path = await scratch.write("m.toml", file(""));
  await using program = await Program.start({ config: path, args: FAST });
  // All of one client.
  using one = await connect(port);
  using two = await connect(port);
  await scratch.write("m.toml", file("max-connections-per-client = 3"));
  assert.match((await reload(program)).message, /: 1 listener changed \(web\)$/);
  // Those from before the limit have no place to give back, and are not counted.
  using _three = await connect(port);
  using _four = await connect(port);
  using _five = await connect(port);
  using refused = await Stream.connect(port);
  await refused.send(v2(nextClient(), BALANCER));
  await refused.end();
  await eventually(
    () => program.events.find(({ refusal }) => refusal === "too_many_of_client"),
    "refusal",
  );
  await scratch.write("m.toml", file("max-connections-per-client = 4"));
  await reload(program);
  using _six = await connect(port);
  await echoes(one, "still here");
  await echoes(two, "and here");
  await program.stop();
});

Deno.test("reload: routes go when the last connection that needs them has ended, in the sandbox", async () => {
  using host = await Host.make();
  await using scratch = await Scratch.make();
  // Its replies need a rule of their own: it is no loopback address.
  const apart = "198.51.100.77";
  await host.run(`ip address add ${apart}/32 dev lo`);
  await host.act(async () => {
    const [web, ssh] = [freePort(), freePort()];
    await using far = new TcpService(tellAndEcho, apart);
    await using near = new TcpService(tellAndEcho);
    const file = (webTo: string, ...more: { name: string; port: number; to: string }[]) =>
      toml([{ name: "web", port: web, to: webTo }, ...more], "auto-routes = true");
    const path = await scratch.write("m.toml", file(far.address));
    await using program = await Program.start({ config: path, args: ["--sandbox", "on", ...FAST] });
    const rules = async () => (await host.run("ip rule")).match(/from \S+ iif lo/g) ?? [];
    const onlyFar = [`from ${apart} iif lo`];
    assert.deepEqual(await rules(), onlyFar);
    const old = await connect(web);

    // What another listener still needs stays, whoever needed it first.
    await scratch.write("m.toml", file(near.address, { name: "ssh", port: ssh, to: far.address }));
    await reload(program);
    const other = await connect(ssh);
    const both = ["from 127.0.0.1/8 iif lo", ...onlyFar].sort();
    assert.deepEqual((await rules()).sort(), both);

    await scratch.write("m.toml", file(near.address));
    await reload(program);
    assert.deepEqual((await rules()).sort(), both);
    await echoes(old, "still here");
    using _new = await connect(web);
    other[Symbol.dispose]();
    // The first connection still needs it.
    await eventually(() => program.all("connection_closed").length > 0, "its end");
    assert.deepEqual((await rules()).sort(), both);
    await echoes(old, "and here");
    old[Symbol.dispose]();
    const removed = await program.event("routes_removed");
    assert.match(removed.message, /^Routes removed: .*198\.51\.100\.77/);
    assert.deepEqual(await rules(), ["from 127.0.0.1/8 iif lo"]);
    using _newest = await connect(web);
    await program.stop();
    assert.deepEqual(await rules(), []);
    assert.equal((await host.run("ip route show table 123 || true")).trim(), "");
  });
});

Deno.test("reload: a rule that was set before another program's stays as long as it is needed", async () => {
  using host = await Host.make();
  await using scratch = await Scratch.make();
  const apart = "198.51.100.77";
  // Replies to clients have a way out by the main table.
  await host.run(
    `ip address add ${apart}/32 dev lo
     ip link add out type veth peer name nobody
     ip link set nobody up
     ip address add 203.0.113.2/24 dev out
     ip link set out up
     ip route add default via 203.0.113.1`,
  );
  await host.act(async () => {
    const [web, ssh] = [freePort(), freePort()];
    await using far = new TcpService(tellAndEcho, apart);
    const file = (...names: string[]) =>
      toml(
        names.map((name) => ({ name, port: name === "web" ? web : ssh, to: far.address })),
        "auto-routes = true",
      );
    const path = await scratch.write("m.toml", file("web"));
    await using program = await Program.start({ config: path, args: FAST });
    using _before = await connect(web);
    // A VPN that is started later.
    await host.run("ip rule add pref 50 lookup main");
    await scratch.write("m.toml", file("web", "ssh"));
    await reload(program);
    const ours = async () =>
      (await host.run("ip rule")).match(/^\d+:\s+from 198\S+ iif lo/gm) ?? [];
    assert.ok((await ours()).some((rule) => rule.startsWith("49:")), await host.run("ip rule"));
    assert.equal(program.all("routes_removed").length, 0);
    using _after = await connect(ssh);
    await scratch.write("m.toml", file("ssh"));
    await reload(program);
    using _again = await connect(ssh);
    assert.equal(program.all("routes_removed").length, 0);
    await program.stop();
    assert.deepEqual(await ours(), []);
  });
});

const MARKED = "198.51.100.77";
const MARK = 7;

Deno.test("reload: a first mark is set on new connections, in the sandbox", async () => {
  await using _network = await Network.onlyForMark(MARK, MARKED);
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho, "0.0.0.0");
  const port = freePort();
  const file = (mark: number) =>
    toml([{ name: "web", port, to: `${MARKED}:${service.port}`, more: `mark = ${mark}` }]);
  const path = await scratch.write("m.toml", file(0));
  await using program = await Program.start({ config: path, args: ["--sandbox", "on", ...FAST] });
  using unmarked = await Stream.connect(port);
  await unmarked.send(v2(nextClient(), BALANCER));
  await unmarked.end();
  assert.equal((await program.event("connect_failed")).error, "EACCES");
  await scratch.write("m.toml", file(MARK));
  await reload(program);
  using _marked = await connect(port);
  await program.stop();
});

Deno.test("reload: a first mark that the process may not set changes nothing, and says restart", async () => {
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho);
  const [port, added] = [freePort(), freePort()];
  const listener = { name: "web", port, to: service.address };
  const path = await scratch.write("m.toml", toml([listener]));
  await using program = await Program.start({
    config: path,
    args: FAST,
    shell: without("so_mark"),
  });
  using before = await connect(port);
  await scratch.write(
    "m.toml",
    toml([listener, { name: "new", port: added, to: service.address, more: `mark = ${MARK}` }]),
  );
  const { message } = await reload(program, "reload_failed");
  assert.match(
    message,
    /m\.toml: Cannot use the clients' addresses and mark its packets: .*: restart it \(docs\/sandbox\.md\); the old configuration stays in force$/,
  );
  await echoes(before, "as before");
  using _new = await connect(port);
  await assert.rejects(Stream.connect(added), Deno.errors.ConnectionRefused);
  await program.stop();
});

Deno.test("reload: descriptors are distributed again among more transports", async () => {
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho);
  const [port, dns] = [freePort(), freePort()];
  const tcp = { name: "web", port, to: service.address };
  const path = await scratch.write("m.toml", toml([tcp]));
  // So few that TCP alone may have 40 connections, and with UDP next to it about half.
  await using program = await Program.start({
    config: path,
    args: FAST,
    shell: 'ulimit -n 160; exec "$@"',
  });
  await scratch.write(
    "m.toml",
    toml([tcp, { name: "dns", port: dns, to: "127.0.0.1:9", more: 'protocol = "udp"' }]),
  );
  await reload(program);
  const clients: Stream[] = [];
  try {
    for (let round = 0; round < 40; round++) {
      const stream = await Stream.connect(port);
      clients.push(stream);
      await stream.send(v2(nextClient(), BALANCER));
    }
    await program.event("accept_paused");
    const { clients: { length: relayed } } = service;
    assert.ok(relayed >= 10 && relayed <= 25, `${relayed}`);
    await scratch.write("m.toml", toml([tcp]));
    await reload(program);
    await eventually(() => service.clients.length > relayed + 10, "more connections");
  } finally {
    for (const stream of clients) stream[Symbol.dispose]();
  }
  await program.stop();
});
