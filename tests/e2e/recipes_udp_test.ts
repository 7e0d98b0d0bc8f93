/** Recipes for services over UDP, with nginx as the load balancer. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { show, socketsOf } from "./support/endpoints.ts";
import { certificate } from "./support/haproxy.ts";
import { text } from "./support/headers.ts";
import type { Host } from "./support/host.ts";
import { nginx, startUdpBalancer, streamModule } from "./support/nginx.ts";
import { installed, realPeerTest, runTool, Server } from "./support/real_peers.ts";
import { blockOf, Recipe } from "./support/recipe.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const balancer = { nginx, streamModule };

realPeerTest(
  "recipes: syslog, rsyslog sees each host over UDP and TCP and both families",
  { ...balancer, rsyslogd: installed("rsyslogd"), logger: installed("logger") },
  async () => {
    await using recipe = await Recipe.make("syslog.md");
    const { client, scratch, server } = recipe;
    const log = `${scratch.path}/remote.log`;
    const block = await blockOf(recipe.page, "rsyslog");
    const config = await scratch.write("rsyslog.conf", block.replace("/var/log/remote.log", log));
    const start = () => Server.start(514, "rsyslogd", ["-n", "-iNONE", "-f", config]);
    recipe.stack.use(await server.act(start));
    const program = await recipe.start();
    await startUdpBalancer(recipe, 514);
    const lines: string[] = [];
    // It writes the file with the first message.
    await Deno.writeTextFile(log, "");
    const file = async () => (await Deno.readTextFile(log)).trim().split("\n");
    for (
      const [from, to] of [["203.0.113.7", "203.0.113.1"], ["2001:db8:203::7", "2001:db8:203::1"]]
    ) {
      for (const transport of ["udp", "tcp"]) {
        // Both messages from one port.
        await client.run(
          `printf 'one\\ntwo\\n' | logger --server ${to} --port 514 --${transport} --tag app`,
        );
        for (const message of ["one", "two"]) lines.push(`${from} im${transport} app: ${message}`);
        await eventually(
          async () => (await file()).length === lines.length,
          `line ${lines.length}`,
        );
      }
    }
    assert.deepEqual(await file(), lines);
    const counters = await program.stop();
    // One for each TCP connection and for each datagram: nginx sends each from a port of its own.
    assert.equal(counters.get("headers_v1"), 6);
    assert.equal(counters.get("flows_opened"), 2);
    assert.equal(program.all("header_refused").length, 0);
  },
);

/** Whether a TUN device can be made: its file is root's on most systems. */
const tun = (() => {
  try {
    Deno.openSync("/dev/net/tun", { read: true, write: true }).close();
    return true;
  } catch {
    return false;
  }
})();

realPeerTest(
  "recipes: WireGuard, the server has each client's endpoint, and packets pass in both directions",
  {
    ...balancer,
    "wireguard-go": installed("wireguard-go"),
    wg: installed("wg"),
    "/dev/net/tun": tun,
  },
  async () => {
    await using recipe = await Recipe.make("wireguard.md");
    const { client, scratch, server, stack } = recipe;
    const key = async () => (await runTool("wg", ["genkey"])).trim();
    const [ours, theirs] = [await key(), await key()];
    const publicKey = async (name: string) =>
      (await runTool("sh", ["-c", `wg pubkey <${scratch.path}/${name}`])).trim();
    const program = await recipe.start();
    await startUdpBalancer(recipe, 51_820);
    const tunnel = async (host: Host, name: string, key: string, address: string) => {
      await scratch.write(name, key);
      const go = await host.act(() => Server.spawn("wireguard-go", ["--foreground", name]));
      stack.use(go);
      // Its control socket comes after the interface.
      const configured = () => host.run(`wg show ${name}`).then(() => true, () => false);
      await eventually(configured, `interface ${name}`);
      await host.run(
        `wg set ${name} private-key ${scratch.path}/${name}
         ip address add ${address}/24 dev ${name}
         ip link set ${name} up`,
      );
    };
    // The control sockets of all namespaces are in one directory.
    const [near, far] = [`s${Deno.pid}`, `c${Deno.pid}`];
    await tunnel(server, near, ours, "192.0.2.1");
    await tunnel(client, far, theirs, "192.0.2.2");
    await server.run(
      `wg set ${near} listen-port 51821 peer ${await publicKey(far)} allowed-ips 192.0.2.2/32`,
    );
    await client.run(
      `wg set ${far} listen-port 40820 peer ${await publicKey(near)} \
         endpoint 203.0.113.1:51820 allowed-ips 192.0.2.1/32`,
    );
    stack.use(await server.act(() => UdpService.start(tell, "192.0.2.1", 7)));
    stack.use(await client.act(() => UdpService.start(tell, "192.0.2.2", 7)));
    /** A datagram through the tunnel, and its answer. */
    const ping = async (host: Host, from: string, ip: string) => {
      await using socket = await host.act(() => UdpSocket.open(from));
      await socket.send({ ip, port: 7 }, "ping");
      assert.equal(text((await socket.receive()).data), `${show(socket.local)} ping`);
    };
    const endpoint = async () => (await server.run(`wg show ${near} endpoints`)).split(/\s+/)[1];
    for (const port of [40_820, 40_821]) {
      await client.run(`wg set ${far} listen-port ${port}`);
      await ping(client, "192.0.2.2", "192.0.2.1");
      assert.equal(await endpoint(), `203.0.113.7:${port}`);
      await ping(server, "192.0.2.1", "192.0.2.2");
    }
    const counters = await program.stop();
    // One for each port of the client.
    assert.equal(counters.get("headers_v1"), 2, program.transcript());
    assert.equal(program.all("datagrams_refused").length, 0);
  },
);

realPeerTest(
  "recipes: SIP, a call of a phone that the server sees, and media on the port of the SDP",
  { ...balancer, sipp: installed("sipp"), nft: installed("nft") },
  async () => {
    await using recipe = await Recipe.make("sip.md");
    const { client, scratch, server, stack } = recipe;
    // The address of the load balancer where sipp would put its own, as a server's settings do.
    const scenario = (await runTool("sh", ["-c", "sipp -sd uas; exit 0"]))
      .replaceAll("[media_ip]", "203.0.113.1").replaceAll("[local_ip]", "203.0.113.1");
    const file = await scratch.write("uas.xml", scenario);
    const answer = ["-sf", file, "-i", "127.0.0.1", "-p", "5060", "-mi", "127.0.0.1"];
    const media = ["-mp", "30000", "-rtp_echo", "-nostdin"];
    await server.act(async () => {
      stack.use(Server.spawn("sipp", [...answer, ...media]));
      await eventually(() => socketsOf(5060).length > 0, "sipp on port 5060");
    });
    const program = await recipe.start();
    await startUdpBalancer(recipe, 5060);
    await recipe.run(server, "table inet sip {");

    await client.run(
      `cd ${scratch.path}
       sipp -sn uac -i 203.0.113.7 -p 5062 -m 1 -timeout 20 -timeout_error -nostdin -trace_msg \
         -message_file call.log 203.0.113.1:5060 >/dev/null`,
    );
    const call = await Deno.readTextFile(`${scratch.path}/call.log`);
    const [, port] = /received[^]*?c=IN IP4 203\.0\.113\.1\r?\n[^]*?m=audio (\d+) /.exec(call) ??
      [];
    assert.match(port ?? "", /^3000\d$/, "the server's media port");
    const phone = stack.use(await client.act(() => UdpSocket.open("203.0.113.7", 6000)));
    await phone.send({ ip: "203.0.113.1", port: Number(port) }, "RTP");
    const echo = await phone.receive();
    assert.equal(text(echo.data), "RTP");
    assert.deepEqual(echo.from, { ip: "203.0.113.1", port: Number(port) });

    const rules = await recipe.run(server, "nft list table");
    assert.match(rules, /packets 3 bytes \d+ comment "from the phone"/);
    assert.match(rules, /packets 0 bytes 0 comment "from the load balancer"/);
    const counters = await program.stop();
    assert.equal(counters.get("flows_opened"), 2);
    assert.equal(program.all("datagrams_refused").length, 0);
  },
);

const HTTP3 = fileURLToPath(new URL("support/http3.py", import.meta.url));
const aioquic = new Deno.Command("python3", { args: ["-c", "import aioquic"], stderr: "null" });

realPeerTest(
  "recipes: HTTP/3, the server sees the client, and a large answer arrives",
  { ...balancer, aioquic: aioquic.outputSync().success, openssl: installed("openssl") },
  async () => {
    await using recipe = await Recipe.make("quic.md");
    const { client, scratch, server, stack } = recipe;
    await certificate(scratch);
    const files = [`${scratch.path}/cert.pem`, `${scratch.path}/key.pem`];
    await server.act(async () => {
      stack.use(Server.spawn("python3", [HTTP3, "server", "127.0.0.1", "443", ...files]));
      await eventually(() => socketsOf(443).length > 0, "HTTP/3 server");
    });
    const program = await recipe.start();
    await startUdpBalancer(recipe, 443);
    const said = await client.run(`python3 ${HTTP3} client 203.0.113.1 443 40443`);
    assert.equal(said.trim(), "203.0.113.7 40443 100000");
    const counters = await program.stop();
    assert.equal(counters.get("flows_opened"), 1);
    assert.equal(program.all("datagrams_refused").length, 0);
  },
);
