/** Recipes for services over UDP, with nginx as the load balancer. */
import assert from "node:assert/strict";
import { nginx, startUdpBalancer, streamModule } from "./support/nginx.ts";
import { installed, realPeerTest, Server } from "./support/real_peers.ts";
import { blockOf, Recipe } from "./support/recipe.ts";
import { eventually } from "./support/time.ts";

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
        await client.run(`logger --server ${to} --port 514 --${transport} --tag app one`);
        lines.push(`${from} im${transport} app: one`);
        await eventually(
          async () => (await file()).length === lines.length,
          `line ${lines.length}`,
        );
      }
    }
    assert.deepEqual(await file(), lines);
    const counters = await program.stop();
    assert.equal(counters.get("headers_v1"), 4);
    assert.equal(program.all("header_refused").length, 0);
  },
);
