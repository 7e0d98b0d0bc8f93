/** docs/recipes/health-checks.md: which checks see that the service behind the program is dead. */
import assert from "node:assert/strict";
import { haproxy, startHaproxy } from "./support/haproxy.ts";
import { concat, text, v2Local } from "./support/headers.ts";
import { nginx, NginxService } from "./support/nginx.ts";
import { installed, realPeerTest } from "./support/real_peers.ts";
import { blockOf, Recipe, SERVER4 } from "./support/recipe.ts";
import { Stream } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";

/** The header of an NLB's health check, as https://github.com/kubernetes/kubernetes/issues/57250 has it. */
const NLB_CHECK = v2Local(
  concat([0x03, 0, 4, 0xbc, 0xe5, 0x95, 0x1f, 0x04, 0, 74], new Uint8Array(74)),
  0x11,
);
const PAGE = "health-checks.md";

realPeerTest(
  "recipes: health checks, all but a connect see that the service is dead, and that it is back",
  { haproxy, nginx, curl: installed("curl") },
  async () => {
    await using recipe = await Recipe.make(PAGE);
    const service = recipe.stack.use(
      await recipe.server.act(() => NginxService.start(recipe.scratch, 80)),
    );
    const program = await recipe.start();
    const control = await startHaproxy(recipe, 80);
    const has = (status: string, ...proxies: string[]) =>
      eventually(
        async () => {
          const servers = proxies.map((proxy) => control.server(proxy, "web1"));
          return (await Promise.all(servers)).every((server) => server.status === status);
        },
        `${proxies.join(" and ")} ${status}`,
        30_000,
      );
    const curl = (path: string) =>
      recipe.balancer.run(
        `curl --silent --max-time 2 --write-out ' %{http_code}' http://${SERVER4}${path}`,
      );
    const nlb = async (path: string) => {
      using stream = await recipe.balancer.act(() => Stream.connect(9911, SERVER4));
      await stream.send(NLB_CHECK, `GET ${path} HTTP/1.1\r\nHost: ${SERVER4}:9911\r\n\r\n`);
      return text(await stream.rest());
    };
    const yaml = await blockOf(PAGE, "yaml");
    const [ready, live] = [...yaml.matchAll(/path: (\S+)\n *port: (\d+)/g)]
      .map(([, path, port]) => `:${port}${path}`);
    assert.ok(ready !== undefined && live !== undefined);

    await eventually(
      async () => (await control.server("service", "web1")).check === "L7OK",
      "good check",
    );
    assert.match(await curl(ready), /^ready\s+200$/);
    await has("UP", "readyz", "service", "connect");

    assert.match(await nlb("/readyz/web"), /^HTTP\/1\.1 200 /);

    await service.stop();
    await has("DOWN", "readyz", "service");
    assert.match(
      await curl(ready),
      /^not ready: .* as 203\.0\.113\.77: connection refused .* 503$/s,
    );
    assert.match(await nlb("/readyz/web"), /^HTTP\/1\.1 503 /);
    assert.match(await curl(live), / 200$/);
    // Another check, and more, after those that have decided.
    await pause(1_500);
    assert.deepEqual(await control.server("connect", "web1"), { status: "UP", check: "L4OK" });

    await recipe.server.act(() => service.start());
    await has("UP", "readyz", "service");
    const seen = new Set((await service.log()).map((line) => line.split(" ")[0]));
    assert.deepEqual(seen, new Set(["127.0.0.1"]), "checks come from the proxy's own address");
    await program.stop();
    assert.equal(program.all("header_refused").length, 0);
  },
);
