/** docs/recipes/marking.md: a DSCP that the load balancer sets reaches the upstream and comes back. */
import assert from "node:assert/strict";
import { haproxy, startHaproxy } from "./support/haproxy.ts";
import { text, v2 } from "./support/headers.ts";
import type { Host } from "./support/host.ts";
import { nginx, NginxService } from "./support/nginx.ts";
import { installed, realPeerTest } from "./support/real_peers.ts";
import { Recipe, SERVER4 } from "./support/recipe.ts";
import { eventually, pause } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

realPeerTest(
  "recipes: DSCP, nftables on both hosts count the marked packets of TCP and UDP and no others",
  { haproxy, nginx, curl: installed("curl"), nft: installed("nft") },
  async () => {
    await using recipe = await Recipe.make("marking.md");
    const { balancer, client, server } = recipe;
    recipe.stack.use(await server.act(() => NginxService.start(recipe.scratch, 80)));
    recipe.stack.use(await server.act(() => UdpService.start(tell, "127.0.0.1", 80)));
    const program = await recipe.start();
    await startHaproxy(recipe, 8080);
    await recipe.run(balancer, "ip dscp set ef");
    await recipe.run(server, 'iifname "in"');
    const packets = async (host: Host) => {
      const rules = await recipe.run(host, "nft list table");
      const counters = rules.matchAll(/counter packets (\d+) bytes \d+ comment "([^"]+)"/g);
      const counts = new Map([...counters].map(([, count, name]) => [name, Number(count)]));
      return (name: string) => {
        const count = counts.get(name);
        assert.ok(count !== undefined, `a counter ${name}`);
        return count;
      };
    };
    const request = (port: number) =>
      client.run(`curl --silent --show-error --fail --max-time 20 http://203.0.113.1:${port}/`);

    await request(8081);
    await program.event("connection");
    await pause(100);
    const before = await packets(server);
    assert.equal(before("to the upstream, TCP"), 0);
    assert.ok(before("to the upstream, unmarked") >= 3);

    await request(8080);
    // A segment may carry an answer, an acknowledgement and the FIN: SYN and one more are certain.
    await eventually(async () => (await packets(balancer))("replies, TCP") >= 2, "replies");
    const after = await packets(server);
    assert.ok(after("from the load balancer, TCP") >= 3);
    assert.ok(after("to the upstream, TCP") >= 3, "with the SYN");
    assert.equal(after("to the upstream, UDP"), 0);

    const sender = recipe.stack.use(await balancer.act(() => UdpSocket.open("198.51.100.1")));
    const [player, destination] = [{ ip: "203.0.113.7", port: 4_000 }, { ip: SERVER4, port: 8080 }];
    await sender.send(destination, v2(player, destination, { datagram: true }), "hello");
    assert.equal(text((await sender.receive()).data), "203.0.113.7:4000 hello");
    assert.equal((await packets(server))("to the upstream, UDP"), 1);
    const back = await packets(balancer);
    assert.equal(back("replies, UDP"), 0, "the upstream sets no DSCP");
    assert.equal(back("replies of the other port"), 0);
    await program.stop();
    assert.equal(
      (await packets(server))("to the upstream, unmarked"),
      before("to the upstream, unmarked"),
    );
  },
);
