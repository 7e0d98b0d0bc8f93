import assert from "node:assert/strict";
import { ClientSide } from "./support/client_side.ts";
import { DnsService } from "./support/dns.ts";
import { freePort } from "./support/endpoints.ts";
import { bytes, concat, text } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { installed, realPeerTest, Scratch, Server } from "./support/real_peers.ts";
import { eventually } from "./support/time.ts";
import { UdpSocket } from "./support/udp.ts";

realPeerTest(
  "dnsdist: with useProxyProtocol, a DNS service sees who asks, over UDP and TCP",
  { dnsdist: installed("dnsdist"), dig: installed("dig") },
  async () => {
    await using scratch = await Scratch.make();
    await using clients = await ClientSide.open();
    const servicePort = freePort();
    await using service4 = await DnsService.start("127.0.0.1", servicePort);
    await using _service6 = await DnsService.start("::1", servicePort);
    await using program = await Program.start({
      args: ["-p", "both", "-4", `127.0.0.1:${servicePort}`, "-6", `[::1]:${servicePort}`],
    });
    const port = freePort();
    const config = await scratch.write(
      "dnsdist.conf",
      `setLocal("${clients.serverIp4}:${port}")
addLocal("[${clients.serverIp6}]:${port}")
setACL({"0.0.0.0/0", "::/0"})
newServer({address="127.0.0.1:${program.listen.port}", useProxyProtocol=true, checkInterval=1})
`,
    );
    await using _dnsdist = await Server.start(port, "dnsdist", [
      "--supervised",
      "--disable-syslog",
      "--config",
      config,
    ]);
    // The server counts as up only after a good health check: those come from the proxy itself.
    await program.event("flow_opened", ({ client }) => client === undefined);
    for (
      const [client, server] of [[clients.ip4, clients.serverIp4], [clients.ip6, clients.serverIp6]]
    ) {
      for (const [protocol, from] of [["+notcp", 41_053], ["+tcp", 41_054]] as const) {
        const said = await clients.run("dig", [
          ...["-b", `${client}#${from}`, `@${server}`, "-p", String(port)],
          ...[protocol, "+tries=3", "+time=5", "+short", "TXT", "who.example"],
        ]);
        const shown = client?.includes(":") ? `[${client}]` : client;
        assert.equal(said.trim(), `"${shown}:${from}"`);
      }
    }
    assert.equal(service4.tcp.clients.length, 1);
    const counters = await program.stop();
    assert.ok(counters.get("headers_own") > 0);
    assert.equal(program.all("header_refused").length + program.all("datagrams_refused").length, 0);
  },
);

/** A question for the TXT record of a name (RFC 1035, section 4). */
function question(id: number, name: string): Uint8Array {
  const labels = name.split(".").map((label) => concat([label.length], bytes(label)));
  return concat([id >> 8, id & 0xff, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], ...labels, [0, 0, 16, 0, 1]);
}

realPeerTest(
  "dnsdist: with values of its own in each query's header, each client is seen and answered",
  { dnsdist: installed("dnsdist") },
  async () => {
    await using scratch = await Scratch.make();
    const servicePort = freePort();
    await using service = await DnsService.start("127.0.0.1", servicePort);
    await using program = await Program.start({
      args: ["-p", "udp", "-4", `127.0.0.1:${servicePort}`],
      logLevel: "info",
    });
    const port = freePort();
    const config = await scratch.write(
      "dnsdist.conf",
      `setLocal("127.0.0.1:${port}")
newServer({address="127.0.0.1:${program.listen.port}", useProxyProtocol=true, healthCheckMode="up"})
number = 0
function values(dq)
  number = number + 1
  dq:setProxyProtocolValues({[0xe0]="query " .. number, [0x05]="id " .. number})
  return DNSAction.None, ""
end
addAction(AllRule(), LuaAction(values))
`,
    );
    await using _dnsdist = await Server.start(port, "dnsdist", [
      "--supervised",
      "--disable-syslog",
      "--config",
      config,
    ]);
    const dnsdist = { ip: "127.0.0.1", port };
    const clients = await Promise.all([11, 12, 13].map((at) => UdpSocket.open(`127.0.0.${at}`)));
    try {
      const rounds = 20, each = 40;
      for (let round = 0; round < rounds; round++) {
        program.signal("SIGSTOP");
        for (let index = 0; index < each; index++) {
          for (const client of clients) {
            const name = `q${round * each + index}.example`;
            await client.send(dnsdist, question(round * each + index, name));
          }
        }
        program.signal("SIGCONT");
        for (const client of clients) {
          await eventually(() => client.queue.length >= each, `${each} answers`);
          for (const { data } of client.queue.splice(0)) {
            // The record's text ends the answer: whom the service saw. The client's socket holds its
            // port on this host, so the program has another one.
            const seen = /127\.0\.0\.\d+(?=:\d+$)/.exec(text(data))?.[0];
            assert.equal(seen, client.local.ip);
          }
        }
      }
      // The proxy's own address: dnsdist asks whether the server is up.
      const seen = service.udp.received.filter(({ from }) => from.ip !== "127.0.0.1");
      assert.equal(seen.length, 3 * rounds * each);
    } finally {
      for (const client of clients) await client[Symbol.asyncDispose]();
    }
    const counters = await program.stop();
    assert.equal(counters.get("headers_v2"), counters.get("datagrams_up"));
    assert.equal(counters.get("datagrams_lost"), 0);
  },
);
