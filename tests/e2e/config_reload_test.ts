/** The configuration file read again: listeners come, change and go, and nobody's connection notices. */
import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import {
  BALANCER,
  connect,
  echoes,
  FAST,
  isRefused,
  nextClient,
  reload,
  toml,
} from "./support/reloads.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const RELOADS = 1_000;
const CONNECTIONS = 200;

Deno.test("reload, file: 1,000 of them under connections and datagrams that notice nothing", async () => {
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho);
  await using other = new TcpService(tellAndEcho);
  await using dns = await UdpService.start(tell);
  const [mail, web, udp, extra] = [freePort(), freePort(), freePort(), freePort()];
  const stays = { name: "mail", port: mail, to: service.address };
  const flows = { name: "dns", port: udp, to: dns.address, more: 'protocol = "udp"' };
  // One that changes its upstream, one that changes its name, and one that comes and goes.
  const odd = [stays, flows, {
    name: "web",
    port: web,
    to: service.address,
    more: "idle-timeout = 90",
  }];
  const even = [stays, { ...flows, name: "names" }, { name: "web", port: web, to: other.address }, {
    name: "extra",
    port: extra,
    to: other.address,
  }];
  const file = await scratch.write("m.toml", toml(odd, "workers = 2"));
  await using program = await Program.start({ config: file, logLevel: "info" });
  await program.event("listening", ({ listener }) => listener === "web");

  const clients: Stream[] = [];
  await using peer = await UdpSocket.open();
  try {
    for (let index = 0; index < CONNECTIONS; index++) {
      clients.push(await connect(index % 2 === 0 ? mail : web));
    }
    const client = nextClient();
    const header = v2(client, BALANCER, { datagram: true });
    for (let round = 1; round <= RELOADS; round++) {
      await scratch.write("m.toml", toml(round % 2 === 1 ? even : odd, "workers = 2"));
      await reload(program);
      await peer.send({ ip: "127.0.0.1", port: udp }, header, `${round}`);
      const { data } = await peer.receive();
      assert.equal(text(data), `${client.ip}:${client.port} ${round}`);
      const stream = clients[round % CONNECTIONS];
      assert(stream);
      await echoes(stream, `round ${round}`);
      using fresh = await connect(mail);
      await echoes(fresh, "fresh");
    }
    for (const stream of clients) await echoes(stream, "the end");
    assert.equal(program.all("reload_failed").length, 0);
  } finally {
    for (const stream of clients) stream[Symbol.dispose]();
  }
  const counters = await program.stop();
  assert.equal(counters.get("flows_opened"), 1, "a listener by another name keeps its flows");
  assert.equal(counters.get("connected"), CONNECTIONS + RELOADS);
});

Deno.test("reload, file: a removed listener's connection finishes, an added one serves", async () => {
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho);
  const [mail, web] = [freePort(), freePort()];
  const both = [
    { name: "mail", port: mail, to: service.address },
    { name: "web", port: web, to: service.address },
  ];
  const file = await scratch.write("m.toml", toml(both, "drain-timeout = 2"));
  await using program = await Program.start({ config: file });
  await program.event("listening", ({ listener }) => listener === "web");
  using finishing = await connect(web);
  await scratch.write("m.toml", toml(both.slice(0, 1), "drain-timeout = 2"));
  const line = await reload(program);
  assert.match(line.message, /1 listener removed \(web\), 1 as before$/);
  await eventually(async () => await isRefused(web) || undefined, "refusal");
  await echoes(finishing, "still here");
  // Up to the drain timeout.
  assert.equal(await finishing.end(), "closed");

  await scratch.write("m.toml", toml(both, "drain-timeout = 2"));
  assert.match((await reload(program)).message, /1 listener added \(web\)/);
  using again = await connect(web);
  await echoes(again, "here");
  await program.stop();
});

Deno.test("reload, file: a wrong one changes nothing, and says every mistake", async () => {
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho);
  const port = freePort();
  const good = toml([{ name: "mail", port, to: service.address }]);
  const file = await scratch.write("m.toml", good);
  await using program = await Program.start({ config: file, args: FAST });
  using client = await connect(port);

  await scratch.write("m.toml", good.replace("listen =", "lissten =").replace("ipv4", "ipv5"));
  const failed = await reload(program, "reload_failed");
  assert.match(failed.message, /m\.toml: 4 mistakes; the old configuration stays in force$/);
  const mistakes = program.all("mistake").map(({ message }) => message.replace(/^.*\//, ""));
  assert.equal(mistakes.length, 4, mistakes.join("\n"));
  assert(mistakes.some((line) => /line 4: lissten = .*did you mean listen/.test(line)));
  await echoes(client, "as before");
  using fresh = await connect(port);
  await echoes(fresh, "as before");

  // One that is right in itself, but is not available: half of it must not hold.
  const added = freePort();
  using taken = Deno.listen({ hostname: "127.0.0.1", port: freePort() });
  const { port: busy } = taken.addr as Deno.NetAddr;
  await scratch.write(
    "m.toml",
    toml([
      { name: "added", port: added, to: service.address },
      { name: "busy", port: busy, to: service.address },
    ]),
  );
  program.events.length = 0;
  assert.match(
    (await reload(program, "reload_failed")).message,
    new RegExp(`busy: Cannot listen on 127.0.0.1:${busy} \\(TCP\\).*another program uses it`),
  );
  assert(await isRefused(added));
  using still = await connect(port);
  await echoes(still, "as before");

  // What only a restart can change.
  await scratch.write(
    "m.toml",
    toml([{ name: "mail", port, to: service.address }], 'workers = 2\nsandbox = "off"'),
  );
  assert.match((await reload(program)).message, /: 1 as before$/);
  const restart = await program.event("restart_needed");
  assert.match(restart.message, /^Restart mmproxy to change workers, sandbox: /);
  await program.stop();
});

Deno.test("reload, file: a port goes from one listener to another, with what waits at it", async () => {
  await using scratch = await Scratch.make();
  await using one = new TcpService(tellAndEcho);
  await using two = await UdpService.start(tell);
  const [tcp, udp] = [freePort(), freePort()];
  const both = (owner: string, other: string) => `
[[listener]]
name = "${owner}"
listen = ["127.0.0.1:${tcp}"]
ipv4 = "${one.address}"
[[listener]]
name = "${other}"
listen = ["127.0.0.1:${udp}"]
protocol = "udp"
ipv4 = "${two.address}"
`;
  const file = await scratch.write("m.toml", both("a", "b"));
  await using program = await Program.start({ config: file, args: FAST });
  await program.event("listening", ({ listener }) => listener === "b");
  using client = await connect(tcp);
  await using peer = await UdpSocket.open();
  const header = v2(nextClient(), BALANCER, { datagram: true });
  for (let round = 0; round < 20; round++) {
    await peer.send({ ip: "127.0.0.1", port: udp }, header, `${round}`);
    assert.match(text((await peer.receive()).data), new RegExp(` ${round}$`));
    await scratch.write("m.toml", round % 2 === 0 ? both("b", "a") : both("a", "b"));
    await reload(program);
    await echoes(client, "as before");
    using fresh = await connect(tcp);
    await echoes(fresh, "fresh");
  }
  assert.equal((await program.stop()).get("flows_opened"), 1);
});

Deno.test("--watch: a file is followed as editors and Kubernetes change it, under the sandbox", async () => {
  await using scratch = await Scratch.make();
  await using service = new TcpService(tellAndEcho);
  const [first, second] = [freePort(), freePort()];
  const listeners = (...ports: number[]) =>
    toml(ports.map((port) => ({
      name: `l${port}`,
      port,
      to: service.address,
      more: `allowed-subnets = "${scratch.path}/subnets"`,
    })));
  // As a ConfigMap is mounted.
  await Deno.mkdir(`${scratch.path}/..1`);
  await Deno.mkdir(`${scratch.path}/..2`);
  await scratch.write("..1/m.toml", listeners(first));
  await scratch.write("..2/m.toml", listeners(first, second));
  await scratch.write("subnets", "127.0.0.1\n");
  await Deno.symlink("..1", `${scratch.path}/..data`);
  await Deno.symlink("..data/m.toml", `${scratch.path}/m.toml`);
  await using program = await Program.start({
    config: `${scratch.path}/m.toml`,
    args: ["--watch", "--sandbox", "on", ...FAST],
  });
  await pause(300);
  assert.deepEqual(program.all("reloaded"), []);

  const swap = async (version: string) => {
    const before = program.all("reloaded").length;
    await Deno.symlink(version, `${scratch.path}/..data_tmp`);
    await Deno.rename(`${scratch.path}/..data_tmp`, `${scratch.path}/..data`);
    return await eventually(() => program.all("reloaded")[before], "reload");
  };
  assert.match((await swap("..2")).message, new RegExp(`1 listener added \\(l${second}\\)`));
  using client = await connect(second);
  assert.match((await swap("..1")).message, /1 listener removed/);
  await echoes(client, "still here");

  // The subnet file: written in place.
  await scratch.write("subnets", "127.0.0.7\n");
  await eventually(() => program.all("reloaded").at(2), "reload");
  using refused = await Stream.connect(first);
  await refused.end();

  // A wrong file, and then a right one, moved into place.
  await scratch.write("..1/new", "nonsense");
  await Deno.rename(`${scratch.path}/..1/new`, `${scratch.path}/..1/m.toml`);
  await program.event("reload_failed");
  await scratch.write("..1/new", listeners(second));
  await Deno.rename(`${scratch.path}/..1/new`, `${scratch.path}/..1/m.toml`);
  await eventually(() => program.all("reloaded").at(3), "reload");
  await pause(300);
  assert.equal(program.all("reloaded").length, 4, "each change once");
  await program.stop();
});

Deno.test("reload, file: a start with a wrong file says every mistake, and ends", async () => {
  await using scratch = await Scratch.make();
  const file = await scratch.write("m.toml", 'workers = 0\n[[listener]]\nlisten = "x"\n');
  const { code, stderr } = await runToEnd(["--config", file]);
  assert.equal(code, 2);
  assert.equal(stderr.trimEnd().split("\n").length, 3, stderr);
});
