/** The first blocks of docs/systemd.md and docs/containers.md, as they are printed, behind a real HAProxy. */
import assert from "node:assert/strict";
import { layOut } from "../../deploy/release.ts";
import { blocksOf } from "../e2e/support/page.ts";
import { installed, realPeerTest, Server } from "../e2e/support/real_peers.ts";
import { BALANCER4, Recipe, SERVER4 } from "../e2e/support/recipe.ts";
import { Stream, TcpService, tellAndEcho } from "../e2e/support/tcp.ts";
import { eventually } from "../e2e/support/time.ts";
import { Docker, Image, NEEDS } from "./support/images.ts";
import { startMachine } from "./support/machine.ts";

const TOOLS = { ...NEEDS, haproxy: installed("haproxy") };
/** What the pages have before port 8443. */
const HAPROXY = `
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen edge
  bind ${BALANCER4}:443
  server service ${SERVER4}:8443 send-proxy-v2
`;

/** A client, a balancer with HAProxy, and a server with a service on port 443 that says whom it sees. */
async function makeHosts(page: string): Promise<Recipe> {
  const hosts = await Recipe.make(page);
  hosts.stack.use(
    await hosts.server.act(() => new TcpService(tellAndEcho, "127.0.0.1", 443)),
  );
  const config = await hosts.scratch.write("haproxy.cfg", HAPROXY);
  hosts.stack.use(
    await hosts.balancer.act(() => Server.start(443, "haproxy", ["-db", "-f", config])),
  );
  return hosts;
}

/** Asserts that the service sees a client that connects to the balancer. */
async function assertSeen({ client }: Recipe): Promise<void> {
  using stream = await client.act(() => Stream.connect(443, BALANCER4));
  await stream.send("hello\n");
  assert.equal(await stream.line(), stream.local);
  assert.equal(await stream.line(), "hello");
}

realPeerTest("pages: docs/systemd.md, pasted, shows the service its clients", TOOLS, async () => {
  const [block = ""] = await blocksOf("docs/systemd.md");
  const [, release = ""] = /^(mmproxy-[^/\s]+)\//m.exec(block) ?? [];
  assert.notEqual(release, "", block);
  await using hosts = await makeHosts("systemd.md");
  const unpacked = `${hosts.scratch.path}/${release}`;
  await layOut(unpacked);
  const machine = hosts.stack.use(
    await hosts.server.act(() =>
      startMachine([`${unpacked}:/root/${release}:ro`, `${Deno.execPath()}:/usr/bin/deno:ro`])
    ),
  );
  await machine.exec("sh", "-ec", `cd /root\n${block}`);
  await assertSeen(hosts);
  const journal = await machine.exec("journalctl", "--no-pager", "--unit=mmproxy");
  assert.doesNotMatch(journal, /Clients will get no answer/);
  assert.equal((await machine.exec("systemctl", "is-enabled", "mmproxy")).trim(), "enabled");
  // What the page names as the next commands.
  assert.match(
    await machine.exec("systemctl", "status", "mmproxy"),
    /Listening on 0\.0\.0\.0:8443/,
  );
  const control = ["--control", "/run/mmproxy/control"];
  assert.match(await machine.exec("mmproxy", "status", ...control), /127\.0\.0\.1:443/);
});

realPeerTest(
  "pages: docs/containers.md, pasted, shows the service its clients",
  TOOLS,
  async () => {
    const [, run = "", status = ""] = await blocksOf("docs/containers.md");
    assert.ok(run.includes(Image.mmproxy), run);
    await using hosts = await makeHosts("containers.md");
    const docker = hosts.stack.use(await Docker.make());
    const pasted = (commands: string) =>
      hosts.server.act(() => docker.run(hosts.scratch.path, commands));
    hosts.stack.defer(async () => void await pasted("docker rm --force --time 2 mmproxy"));
    await pasted(run);
    await eventually(
      async () => (await pasted("docker logs mmproxy 2>&1")).includes("Listening on"),
      "the program",
    );
    await assertSeen(hosts);
    assert.doesNotMatch(await pasted("docker logs mmproxy 2>&1"), /WARN/);
    assert.match(await pasted(status), /0\.0\.0\.0:8443/);

    const upgrade = (await blocksOf("docs/upgrade.md")).filter((block) => block.includes("docker"));
    assert.equal(upgrade.length, 1);
    using open = await hosts.client.act(() => Stream.connect(443, BALANCER4));
    assert.equal(await open.line(), open.local);
    hosts.stack.defer(async () => void await pasted("docker rm --force --time 2 mmproxy-new"));
    await pasted(upgrade.join());
    await eventually(
      async () => (await pasted("docker logs mmproxy 2>&1")).includes("Upgraded"),
      "the end of the hand-over",
    );
    await assertSeen(hosts);
    await open.send("still here\n");
    assert.equal(await open.line(), "still here");
    assert.match(await pasted("docker exec mmproxy-new mmproxy status"), /0\.0\.0\.0:8443/);
  },
);
