import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { blocksOf } from "../e2e/support/page.ts";
import { realPeerTest } from "../e2e/support/real_peers.ts";
import { eventually } from "../e2e/support/time.ts";
import { Container } from "./support/container.ts";
import { Docker, Image, NEEDS } from "./support/images.ts";

const SCRIPT = join(dirname(fileURLToPath(import.meta.url)), "support/pod.ts");
const DENO = ["/usr/local/bin/deno", "run", "--quiet", "--no-config", "--allow-net", "/pod.ts"];
const RAW_ALONE = ["--cap-drop=all", "--cap-add=NET_RAW", "--read-only"];
const HEADER = "PROXY TCP4 203.0.113.41 198.51.100.1 40041 443";

/** What a client that sends the header gets through the proxy. */
async function ask(service: Container): Promise<string> {
  return (await service.exec(...DENO, "ask", "8443", HEADER)).trim();
}

realPeerTest(
  "pod: three containers, as compose.yaml and the sidecar have them, show the client",
  NEEDS,
  async () => {
    // The pod's network is the service's: it has a loopback interface and nothing else.
    await using service = await Container.start(Image.mmproxy, [
      ...["--name=web", "--network=none", "--volume", `${SCRIPT}:/pod.ts:ro`],
      ...["--user=0", "--entrypoint", JSON.stringify([...DENO, "serve", "80"])],
    ], []);
    const inPod = [`--network=container:${service.id}`];
    await using proxy = await Container.start(Image.mmproxy, [...inPod, ...RAW_ALONE], [
      ...["-l", "0.0.0.0:8443", "-4", "127.0.0.1:80", "--connect-timeout", "1"],
    ]);
    await eventually(async () => (await proxy.log()).includes("Listening on"), "the proxy");
    assert.equal(await ask(service), "", "without routes the service's replies are lost");

    const routes = (await blocksOf("docs/containers.md")).filter((block) =>
      block.includes("--network=container:web")
    );
    assert.equal(routes.length, 1);
    await using docker = await Docker.make();
    await docker.run(docker.scratch.path, routes.join());
    assert.equal(await ask(service), "203.0.113.41:40041", await proxy.log());
    assert.equal(await proxy.stop(), 0);
  },
);
