/** The configurations of docs/recipes, as they are printed, on hosts with the addresses of the pages. */
import assert from "node:assert/strict";
import { show } from "./support/endpoints.ts";
import { haproxy, startHaproxy } from "./support/haproxy.ts";
import { text, v2 } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { nginx, NginxService } from "./support/nginx.ts";
import { installed, realPeerTest, Server } from "./support/real_peers.ts";
import {
  BALANCER4,
  BALANCER6,
  CLIENT4,
  CLIENT6,
  Recipe,
  SERVER4,
  SERVER6,
} from "./support/recipe.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const MAIL_PORTS = [25, 465, 587, 143, 993];

realPeerTest(
  "recipes: a mail host, behind HAProxy every server sees each client on five ports and both families",
  { haproxy },
  async () => {
    await using recipe = await Recipe.make("mail-host.md");
    for (const port of MAIL_PORTS) {
      for (const ip of ["127.0.0.1", "::1"]) {
        recipe.stack.use(await recipe.server.act(() => new TcpService(tellAndEcho, ip, port)));
      }
    }
    const program = await recipe.start();
    await startHaproxy(recipe, 25);
    for (const port of MAIL_PORTS) {
      for (const [client, balancer] of [[CLIENT4, BALANCER4], [CLIENT6, BALANCER6]]) {
        using stream = await recipe.client.act(() => Stream.connect(port, balancer));
        // The server sends first, as mail servers do.
        assert.equal(await stream.line(), stream.local);
        assert.ok(stream.local.includes(client ?? ""));
        await stream.send("EHLO client.example\r\n");
        assert.equal(await stream.line(), "EHLO client.example\r");
      }
    }
    const counters = await program.stop();
    assert.equal(counters.get("headers_v2"), 10);
    assert.equal(counters.get("connected"), 10);
    assert.equal(program.all("header_refused").length, 0);
  },
);

realPeerTest(
  "recipes: DNS, unbound behind dnsdist sees each client over UDP and TCP and both families",
  { dnsdist: installed("dnsdist"), dig: installed("dig"), unbound: installed("unbound") },
  async () => {
    await using recipe = await Recipe.make("dns.md");
    const log = `${recipe.scratch.path}/unbound.log`;
    // What a resolver has from its host or the internet.
    const unbound = await recipe.file(
      "unbound",
      `  local-zone: "example." static
  local-data: "www.example. A 192.0.2.80"
  logfile: "${log}"
  chroot: ""
  username: ""
  directory: "${recipe.scratch.path}"
  pidfile: ""
remote-control:
  control-enable: no
`,
    );
    const startUnbound = () => Server.start(5353, "unbound", ["-d", "-c", unbound]);
    recipe.stack.use(await recipe.server.act(startUnbound));
    const program = await recipe.start();
    const dnsdist = await recipe.file("lua");
    const startDnsdist = () =>
      Server.start(53, "dnsdist", ["--supervised", "--disable-syslog", "--config", dnsdist]);
    recipe.stack.use(await recipe.balancer.act(startDnsdist));
    const queries = async () => (await Deno.readTextFile(log)).split("\n");
    // A good health check first: dnsdist sends no query to a server that it takes to be down.
    await eventually(
      async () => (await queries()).some((line) => line.endsWith(" 127.0.0.1 www.example. A IN")),
      "health check in unbound's log",
    );
    const dig = (server: string, client: string, transport: string) =>
      recipe.client.run(
        `dig -b ${client} @${server} ${transport} +tries=3 +time=5 A www.example`,
      );
    // The page's access list refuses this one.
    const refused = "203.0.113.9";
    await recipe.client.run(`ip address add ${refused}/24 dev out`);
    for (const transport of ["+notcp", "+tcp"]) {
      for (const [client, server] of [[CLIENT4, BALANCER4], [CLIENT6, BALANCER6]] as const) {
        assert.match(await dig(server, client, transport), /\b192\.0\.2\.80\b/);
      }
      assert.match(await dig(BALANCER4, refused, transport), /status: REFUSED/);
    }
    for (const client of [CLIENT4, CLIENT6]) {
      const asked = (await queries()).filter((line) =>
        line.endsWith(` ${client} www.example. A IN`)
      );
      assert.equal(asked.length, 2, client);
    }
    const counters = await program.stop();
    assert.equal(counters.get("flows_opened") > 2, true);
    assert.equal(program.all("datagrams_refused").length, 0);
  },
);

Deno.test("recipes: a game host, each player is seen at its own server of the range", async () => {
  await using recipe = await Recipe.make("game-server.md");
  const ports = [30_000, 30_050, 30_099];
  for (const port of ports) {
    for (const ip of ["127.0.0.1", "::1"]) {
      recipe.stack.use(await recipe.server.act(() => UdpService.start(tell, ip, port)));
    }
  }
  const program = await recipe.start();
  for (const [ip, server] of [["203.0.113.", SERVER4], ["2001:db8:203::", SERVER6]] as const) {
    const from = server === SERVER4 ? "198.51.100.1" : "2001:db8:51::1";
    const peer = recipe.stack.use(await recipe.balancer.act(() => UdpSocket.open(from)));
    for (const [index, port] of ports.entries()) {
      for (const player of [7, 8, 9]) {
        // The same for all players, as a game's own port often is.
        const client = { ip: `${ip}${player}`, port: 34_910 + index };
        const header = v2(client, { ip: server, port }, { datagram: true });
        for (const move of ["join", "move"]) {
          await peer.send({ ip: server, port }, header, `${move} ${port}`);
          const { data, from } = await peer.receive();
          assert.equal(text(data), `${show(client)} ${move} ${port}`);
          assert.deepEqual(from, { ip: server, port });
        }
      }
    }
  }
  const counters = await program.stop();
  assert.equal(counters.get("flows_opened"), 18);
  assert.equal(counters.get("datagrams_up"), 36);
});

realPeerTest(
  "recipes: a mixed port, with, with or without, and without a header the server sees the client",
  { haproxy, nginx, curl: installed("curl") },
  async () => {
    await using recipe = await Recipe.make("mixed-port.md");
    const office = recipe.stack.use(await Host.make());
    await office.connect("out", recipe.server, "office");
    await recipe.server.run("ip address add 192.0.2.1/24 dev office");
    await office.run(
      `ip address add 192.0.2.7/24 dev out
       ip address add 192.0.2.53/24 dev out
       ip route add ${SERVER4} via 192.0.2.1`,
    );
    const service = recipe.stack.use(
      await recipe.server.act(() => NginxService.start(recipe.scratch, 80)),
    );
    const program = await recipe.start("access");
    await startHaproxy(recipe, 80);
    const curl = (host: Host, url: string, ...flags: string[]) =>
      host.run(
        `curl --silent --show-error --fail --max-time 20 --output /dev/null \
          --write-out %{local_port} ${flags.join(" ")} ${url}`,
      );
    const through: [Host, client: string, url: string, flags: string[]][] = [
      [recipe.client, CLIENT4, `http://${BALANCER4}/`, []],
      [recipe.client, CLIENT6, `http://[${BALANCER6}]/`, []],
      [office, "192.0.2.7", `http://${SERVER4}:8080/`, ["--interface 192.0.2.7"]],
      [office, "192.0.2.53", `http://${SERVER4}:8080/`, ["--interface 192.0.2.53"]],
      // A header that names the sender itself, as curl writes it.
      [office, "192.0.2.7", `http://${SERVER4}:8080/`, [
        "--interface 192.0.2.7",
        "--haproxy-protocol",
      ]],
    ];
    for (const [host, client, url, flags] of through) {
      await service.logged(client, await curl(host, url, ...flags));
    }
    // Monitoring's header is not treated as a header, but as a line that no web server accepts.
    const skipped = curl(
      office,
      `http://${SERVER4}:8080/`,
      "--interface 192.0.2.53",
      "--haproxy-protocol",
    );
    await assert.rejects(skipped, /400/);
    // The balancer may not leave its header out, and no rule names the rest.
    await assert.rejects(curl(recipe.balancer, `http://${SERVER4}:8080/`));
    await recipe.balancer.run("ip address add 198.51.100.2/24 dev servers");
    await assert.rejects(
      curl(recipe.balancer, `http://${SERVER4}:8080/`, "--interface 198.51.100.2"),
    );
    const counters = await program.stop();
    assert.equal(counters.get("headers_v2"), 2);
    assert.equal(counters.get("headers_v1"), 1);
    assert.equal(counters.get("headers_none"), 3);
    assert.equal(counters.get("refused_not_proxy"), 1);
    assert.equal(counters.get("refused_peer_not_allowed"), 1);
  },
);
