import assert from "node:assert/strict";
import { ClientSide } from "./support/client_side.ts";
import { freePort } from "./support/endpoints.ts";
import { Program } from "./support/program.ts";
import { installed, realPeerTest, Scratch, Server } from "./support/real_peers.ts";
import { eventually } from "./support/time.ts";

realPeerTest(
  "unbound: behind dnsdist, its query log and its access list see each client, over UDP and TCP",
  { dnsdist: installed("dnsdist"), dig: installed("dig"), unbound: installed("unbound") },
  async () => {
    await using scratch = await Scratch.make();
    await using clients = await ClientSide.open();
    const [servicePort, port] = [freePort(), freePort()];
    const log = `${scratch.path}/unbound.log`;
    const unbound = await scratch.write(
      "unbound.conf",
      `server:
  interface: 127.0.0.1
  interface: ::1
  port: ${servicePort}
  access-control: 127.0.0.0/8 allow
  access-control: ${clients.ip4}/32 allow
  access-control: ${clients.ip6}/128 refuse
  local-zone: "example." static
  local-data: "www.example. A 192.0.2.80"
  log-queries: yes
  logfile: "${log}"
  chroot: ""
  username: ""
  directory: "${scratch.path}"
  pidfile: ""
remote-control:
  control-enable: no
`,
    );
    await using _unbound = await Server.start(servicePort, "unbound", ["-d", "-c", unbound]);
    await using program = await Program.start({
      args: ["-p", "both", "-4", `127.0.0.1:${servicePort}`, "-6", `[::1]:${servicePort}`],
    });
    const dnsdist = await scratch.write(
      "dnsdist.conf",
      `setLocal("${clients.serverIp4}:${port}")
addLocal("[${clients.serverIp6}]:${port}")
setACL({"0.0.0.0/0", "::/0"})
newServer({address="127.0.0.1:${program.listen.port}", useProxyProtocol=true, checkName="www.example."})
`,
    );
    await using _dnsdist = await Server.start(port, "dnsdist", [
      ...["--supervised", "--disable-syslog", "--config", dnsdist],
    ]);
    // A good health check first: dnsdist sends no query to a server that it takes to be down.
    await eventually(
      async () => (await Deno.readTextFile(log)).includes(" 127.0.0.1 www.example. A IN"),
      "health check in unbound's log",
    );
    for (const protocol of ["+notcp", "+tcp"]) {
      const ask = (server: string, name: string) =>
        clients.run("dig", [
          ...[`@${server}`, "-p", String(port), protocol, "+tries=3", "+time=5", "A", name],
        ]);
      assert.match(await ask(clients.serverIp4, "www.example"), /\b192\.0\.2\.80\b/);
      assert.match(await ask(clients.serverIp6, "www.example"), /status: REFUSED/);
    }
    const asked = (await Deno.readTextFile(log)).split("\n")
      .filter((line) => line.endsWith(` ${clients.ip4} www.example. A IN`));
    assert.equal(asked.length, 2);
    await program.stop();
  },
);
