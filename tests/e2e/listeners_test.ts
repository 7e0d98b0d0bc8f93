/** One process with several listeners: each leads to its own upstream, and is named everywhere. */
import assert from "node:assert/strict";
import { freePort, show } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { parseScrape } from "./support/prometheus.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const CLIENT = { ip: "192.0.2.71", port: 0 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** A running program with a file of two listeners, and the upstreams of both. */
class Two implements AsyncDisposable {
  #isMailDown = false;

  private constructor(
    readonly program: Program,
    readonly scratch: Scratch,
    readonly mail: TcpService,
    readonly dns: UdpService,
    readonly metrics: string,
    readonly file: string,
    readonly ports: { readonly mail: readonly [number, number]; readonly dns: number },
  ) {}

  static async start(...args: string[]): Promise<Two> {
    const scratch = await Scratch.make();
    const mail = new TcpService(tellAndEcho);
    const dns = await UdpService.start(tell);
    const ports = { mail: [freePort(), freePort()], dns: freePort() } as const;
    const metrics = show({ ip: "127.0.0.1", port: freePort() });
    await scratch.write("subnets.txt", "127.0.0.0/8\n");
    const file = await scratch.write(
      "mmproxy.toml",
      `metrics-addr = "${metrics}"
[[listener]]
name = "mail"
listen = ["127.0.0.1:${ports.mail[0]}", "127.0.0.1:${ports.mail[1]}"]
ipv4 = "${mail.address}"
allowed-subnets = "${scratch.path}/subnets.txt"

[[listener]]
name = "dns"
listen = "127.0.0.1:${ports.dns}"
protocol = "udp"
ipv4 = "${dns.address}"
trust = [{ from = "127.0.0.1", header = "require" }]
`,
    );
    const program = await Program.start({
      config: file,
      args,
    });
    return new Two(program, scratch, mail, dns, `http://${metrics}`, file, ports);
  }

  async stopMail(): Promise<void> {
    this.#isMailDown = true;
    await this.mail[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program[Symbol.asyncDispose]();
    if (!this.#isMailDown) await this.mail[Symbol.asyncDispose]();
    await this.dns[Symbol.asyncDispose]();
    await this.scratch[Symbol.asyncDispose]();
  }
}

Deno.test("listeners: each takes its addresses to its own upstream, with two workers", async () => {
  await using two = await Two.start("--workers", "2");
  const { program, ports } = two;
  for (const port of ports.mail) {
    using client = await Stream.connect(port);
    await client.send(v2(CLIENT, BALANCER), "hello");
    assert.match(await client.line(), /^192\.0\.2\.71:/);
    assert.equal(text(await client.exactly(5)), "hello");
  }
  await using peer = await UdpSocket.open();
  const udp = v2(CLIENT, BALANCER, { datagram: true });
  await peer.send({ ip: "127.0.0.1", port: ports.dns }, udp, "hello");
  assert.match(text((await peer.receive()).data), /^192\.0\.2\.71:/);

  const opened = await eventually(
    () => program.all("connection_opened").length === 2 && program.all("connection_opened"),
    "both connections",
  );
  assert.deepEqual(opened.map(({ listener }) => listener), ["mail", "mail"]);
  assert.match(opened[0]?.message ?? "", /^mail: Relaying /);
  assert.equal((await program.event("flow_opened")).listener, "dns");
  assert.deepEqual(program.all("listening").map(({ listener }) => listener), ["mail", "dns"]);

  const { listeners, samples } = parseScrape(await (await fetch(`${two.metrics}/metrics`)).text());
  assert.equal(listeners.get("mail")?.get("mmproxy_connections_established_total"), 2);
  assert.equal(listeners.get("dns")?.get("mmproxy_connections_established_total"), 0);
  assert.equal(listeners.get("dns")?.get("mmproxy_flows_opened_total"), 1);
  assert.equal(listeners.get("mail")?.get("mmproxy_flows_opened_total"), 0);
  assert.equal(samples.get("mmproxy_workers_up"), 2);
});

Deno.test("listeners: /readyz says which one is not ready", async () => {
  await using two = await Two.start();
  const get = async (path: string) => {
    const response = await fetch(two.metrics + path);
    return [response.status, await response.text()] as const;
  };
  assert.deepEqual(await get("/readyz"), [200, "ready\nmail: ready\ndns: ready\n"]);
  await two.stopMail();
  // The result is fresh for five seconds.
  const [, said] = await eventually(async () => {
    const answer = await get("/readyz");
    return answer[0] === 503 && answer;
  }, "503");
  assert.match(
    said,
    /^not ready: 1 of 2 listeners\nmail: not ready: cannot connect .*\ndns: ready$/m,
  );
  assert.deepEqual(await get("/readyz/dns"), [200, "ready\n"]);
  assert.equal((await get("/readyz/mail"))[0], 503);
});

Deno.test("listeners: the subnets of one are not those of the other, and SIGHUP reads them again", async () => {
  await using two = await Two.start();
  const { program, ports, scratch } = two;
  await scratch.write("subnets.txt", "203.0.113.0/24\n");
  program.signal("SIGHUP");
  const { message } = await program.event("reloaded");
  assert.match(message, /: 1 listener changed \(mail\), 1 as before$/);
  using refused = await Stream.connect(ports.mail[0]);
  await refused.send(v2(CLIENT, BALANCER));
  await refused.end();
  const event = await program.event("peer_refused");
  assert.equal(event.listener, "mail");
  assert.match(event.message, /^mail: Refused .* add it to .*subnets\.txt$/);
  await using peer = await UdpSocket.open();
  const udp = v2(CLIENT, BALANCER, { datagram: true });
  await peer.send({ ip: "127.0.0.1", port: ports.dns }, udp, "hello");
  assert.match(text((await peer.receive()).data), /^192\.0\.2\.71:/);
});

Deno.test("listeners: a range of a hundred ports is one to one with the upstream's", async () => {
  await using scratch = await Scratch.make();
  const first = 30_000;
  await using service = new TcpService(tellAndEcho, "127.0.0.2", first + 1042);
  const file = await scratch.write(
    "range.toml",
    `[[listener]]
listen = "127.0.0.1:${first}-${first + 99}"
ipv4 = "127.0.0.2:${first + 1000}-${first + 1099}"
`,
  );
  await using _program = await Program.start({ config: file });
  using client = await Stream.connect(first + 42);
  await client.send(v2(CLIENT, BALANCER));
  assert.match(await client.line(), /^192\.0\.2\.71:/);
  assert.equal(service.clients.length, 1);
});

Deno.test("listeners: flags alone take several addresses, too", async () => {
  await using service = new TcpService(tellAndEcho);
  const other = freePort();
  await using program = await Program.start({
    args: ["-l", `127.0.0.1:${other}`, "-4", service.address],
  });
  for (const port of [program.listen.port, other]) {
    using client = await Stream.connect(port);
    await client.send(v2(CLIENT, BALANCER));
    assert.match(await client.line(), /^192\.0\.2\.71:/);
  }
  const opened = await eventually(
    () => program.all("connection_opened").length === 2 && program.all("connection_opened"),
    "both connections",
  );
  assert.deepEqual(opened.map(({ listener }) => listener), Array(2).fill(show(program.listen)));
  assert.match(opened[0]?.message ?? "", /^Relaying /, "one listener needs no name");
});

Deno.test("listeners: what is taken stops the start, with listener and address", async () => {
  await using taken = new TcpService(tellAndEcho);
  await using scratch = await Scratch.make();
  const file = await scratch.write(
    "m.toml",
    `[[listener]]
name = "web"
listen = "127.0.0.1:${freePort()}"
ipv4 = "127.0.0.1:9"
[[listener]]
name = "mail"
listen = "${taken.address}"
ipv4 = "127.0.0.1:9"
`,
  );
  const { code, stderr } = await runToEnd(["--config", file]);
  assert.equal(code, 1);
  const line = stderr.trimEnd().split("\n").at(-1) ?? "";
  assert.match(line, /^mmproxy: mail: .*choose another port with listen of listener mail$/);
  assert.ok(line.includes(taken.address), line);
});
