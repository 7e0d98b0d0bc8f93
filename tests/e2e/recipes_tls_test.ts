/** docs/recipes/nlb-tls.md: a load balancer that terminates TLS, silent and idle connections. */
import assert from "node:assert/strict";
import { certificate, haproxy, startHaproxy } from "./support/haproxy.ts";
import { text, v2 } from "./support/headers.ts";
import { nginx, NginxService } from "./support/nginx.ts";
import { installed, realPeerTest } from "./support/real_peers.ts";
import { Recipe, SERVER4 } from "./support/recipe.ts";
import { Stream } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";

realPeerTest(
  "recipes: TLS, the client behind HAProxy is seen, a silent one may wait, an idle one is probed",
  { haproxy, nginx, curl: installed("curl"), openssl: installed("openssl") },
  async () => {
    await using recipe = await Recipe.make("nlb-tls.md");
    const { balancer, client, server } = recipe;
    await certificate(recipe.scratch);
    const service = recipe.stack.use(
      await server.act(() => NginxService.start(recipe.scratch, 8080)),
    );
    const program = await recipe.start("access");
    await startHaproxy(recipe, 443);

    // As an NLB does: the connection first, the header with the client's first bytes.
    using silent = await balancer.act(() => Stream.connect(8443, SERVER4));
    // And one that has sent all that it has to send.
    using idle = await balancer.act(() => Stream.connect(8443, SERVER4));
    const began = performance.now();
    const header = (ip: string) => v2({ ip, port: 41_234 }, { ip: "203.0.113.1", port: 443 });
    await idle.send(header("203.0.113.9"));

    const port = await client.run(
      `curl --silent --show-error --fail --insecure --max-time 20 --output /dev/null \
        --write-out %{local_port} --resolve www.example.org:443:203.0.113.1 https://www.example.org/`,
    );
    await service.logged("203.0.113.7", port);
    const { message } = await program.event("connection");
    assert.match(message, new RegExp(`client=203\\.0\\.113\\.7:${port} `));
    assert.match(message, / authority=www\.example\.org .*alpn=http\/1\.1 .*tls=TLSv1\.3/);

    // The default of 10 s would have closed the silent one; probes of the idle one begin after 15.
    const probed = await eventually(
      async () => {
        await pause(500);
        const sockets = await server.run("ss -tno state established 'sport = :8443'");
        const { port } = idle.conn.localAddr;
        return new RegExp(`198\\.51\\.100\\.1:${port} +timer:\\(keepalive,`).test(sockets) &&
          performance.now();
      },
      "keepalive timer",
      25_000,
    );
    assert.ok(probed - began > 11_000);
    await silent.send(header("203.0.113.8"), "GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n");
    assert.match(text(await silent.read() ?? new Uint8Array()), /^HTTP\/1\.1 200 /);
    await service.logged("203.0.113.8", "41234");
    for (const stream of [silent, idle]) stream[Symbol.dispose]();
    const counters = await program.stop();
    assert.equal(program.all("header_refused").length, 0);
    assert.equal(counters.get("connected"), 3);
  },
);
