/** docs/recipes/senders.md: the headers of other load balancers, recorded or sent by themselves. */
import assert from "node:assert/strict";
import { haproxy, startHaproxy } from "./support/haproxy.ts";
import { text } from "./support/headers.ts";
import { nginx, NginxService, startNginx, streamModule } from "./support/nginx.ts";
import { installed, realPeerTest } from "./support/real_peers.ts";
import { blockOf, Recipe, SERVER4 } from "./support/recipe.ts";
import { RECORDED } from "./support/recorded_senders.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const PAGE = "senders.md";

Deno.test("recipes: senders, each recorded header names the client", async () => {
  await using recipe = await Recipe.make(PAGE);
  const { balancer, server, stack } = recipe;
  stack.use(await server.act(() => new TcpService(tellAndEcho, "127.0.0.1", 80)));
  stack.use(await server.act(() => UdpService.start(tell, "127.0.0.1", 80)));
  const program = await recipe.start();
  for (const { sender, header, udp, seen = /^203\.0\.113\.7:40000$/ } of RECORDED) {
    const bytes = Uint8Array.from(header, (character) => character.charCodeAt(0));
    if (udp) {
      await using socket = await balancer.act(() => UdpSocket.open("198.51.100.1"));
      for (const question of ["one", "two"]) {
        await socket.send({ ip: SERVER4, port: 8080 }, bytes, question);
        const [client = "", word] = text((await socket.receive()).data).split(" ");
        assert.match(client, seen, sender);
        assert.equal(word, question, sender);
      }
    } else {
      using stream = await balancer.act(() => Stream.connect(8080, SERVER4));
      await stream.send(bytes, "hello\n");
      assert.match(await stream.line(), seen, sender);
      assert.equal(await stream.line(), "hello", sender);
      // Its address and port are free for the next one before that connects.
      await stream.finish();
      assert.equal(await stream.end(), "closed");
    }
  }
  const counters = await program.stop();
  const count = (version: number) => RECORDED.filter((one) => one.version === version).length;
  assert.equal(counters.get("headers_v1"), count(1));
  assert.equal(counters.get("headers_v2"), count(2));
  assert.equal(program.all("header_refused").length, 0);
});

realPeerTest(
  "recipes: senders, HAProxy and nginx as on the page, nginx over UDP as well",
  { haproxy, nginx, streamModule, curl: installed("curl") },
  async () => {
    await using recipe = await Recipe.make(PAGE);
    const { balancer, client, server, scratch, stack } = recipe;
    const service = stack.use(await server.act(() => NginxService.start(scratch, 80)));
    stack.use(await server.act(() => UdpService.start(tell, "127.0.0.1", 80)));
    const program = await recipe.start();
    const request = async (port: number) => {
      const from = await client.run(
        `curl --silent --show-error --fail --max-time 20 --output /dev/null \
          --write-out %{local_port} http://203.0.113.1:${port}/`,
      );
      await service.logged("203.0.113.7", from);
    };
    const modules = `load_module ${streamModule};`;
    const block = await blockOf(PAGE, "nginx");
    const start = () => startNginx(scratch, "balancer", 80, block, modules);
    const balancing = await balancer.act(start);
    await request(80);
    const player = stack.use(await client.act(() => UdpSocket.open("203.0.113.7", 40_020)));
    for (const move of ["one", "two"]) {
      await player.send({ ip: "203.0.113.1", port: 80 }, move);
      assert.equal(text((await player.receive()).data), `203.0.113.7:40020 ${move}`);
    }
    await balancing[Symbol.asyncDispose]();
    await startHaproxy(recipe, 80);
    await request(80);
    await request(81);
    const counters = await program.stop();
    assert.equal(counters.get("headers_v1"), 3);
    assert.equal(counters.get("headers_v2"), 1);
  },
);
