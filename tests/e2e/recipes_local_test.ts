/** docs/recipes/local-clients.md: clients on the load balancer's host, and on the server. */
import assert from "node:assert/strict";
import { haproxy, startHaproxy } from "./support/haproxy.ts";
import type { Host } from "./support/host.ts";
import { nginx, NginxService } from "./support/nginx.ts";
import { installed, realPeerTest, Server } from "./support/real_peers.ts";
import { Recipe } from "./support/recipe.ts";
import { eventually } from "./support/time.ts";

realPeerTest(
  "recipes: local clients, each row of the table, with HAProxy elsewhere and on the server",
  { haproxy, nginx, curl: installed("curl") },
  async () => {
    await using recipe = await Recipe.make("local-clients.md");
    const { client, balancer, server } = recipe;
    await server.run("ip route add 203.0.113.0/24 via 198.51.100.1");
    const service = recipe.stack.use(
      await server.act(() => NginxService.start(recipe.scratch, 80)),
    );
    const program = await recipe.start();
    await startHaproxy(recipe, 80);
    const config = await recipe.file("cfg");
    recipe.stack.use(
      await server.act(() => Server.start(8000, "haproxy", ["-db", "-f", config])),
    );
    await client.run("ip route add 198.51.100.0/24 via 203.0.113.1");
    await balancer.run("sysctl --quiet --write net.ipv4.ip_forward=1");

    const curl = (host: Host, at: string) =>
      host.run(`curl --silent --show-error --fail --max-time 20 http://${at}/`);
    const sees = async (host: Host, at: string, client: string) => {
      const before = (await service.log()).length;
      await curl(host, at);
      const line = await eventually(async () => (await service.log())[before], "line in the log");
      assert.equal(line.split(" ")[0], client, at);
    };
    // nginx's log has a line before the first client.
    await curl(server, "127.0.0.1:80");
    await eventually(async () => (await service.log())[0] !== "", "log");

    await assert.rejects(curl(balancer, "127.0.0.1:80"));
    await program.event("client_refused", ({ refusal }) => refusal === "client_loopback");
    await sees(balancer, "203.0.113.1:80", "203.0.113.1");
    await sees(balancer, "127.0.0.1:81", "198.51.100.1");
    await assert.rejects(curl(server, "203.0.113.1:80"));
    await program.event("client_refused", ({ refusal }) => refusal === "client_own_address");
    await sees(server, "203.0.113.1:81", "198.51.100.1");
    await sees(server, "127.0.0.1:80", "127.0.0.1");
    await sees(server, "127.0.0.1:8000", "127.0.0.1");
    for (const at of ["203.0.113.1:80", "203.0.113.1:81", "198.51.100.10:8000"]) {
      await sees(client, at, "203.0.113.7");
    }

    const counters = await program.stop();
    assert.equal(program.all("client_refused").length, 2);
    assert.equal(counters.get("connected"), 7);
    assert.equal(counters.get("port_fallbacks"), 1);
  },
);
