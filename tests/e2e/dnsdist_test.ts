import assert from "node:assert/strict";
import { ClientSide } from "./support/client_side.ts";
import { DnsService } from "./support/dns.ts";
import { freePort } from "./support/endpoints.ts";
import { Program } from "./support/program.ts";
import { installed, realPeerTest, Scratch, Server } from "./support/real_peers.ts";

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
