import assert from "node:assert/strict";
import { join } from "node:path";
import { show } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { Resettable, Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const CONNECTIONS = 1000;

/** A subnet file that a test rewrites. */
class SubnetFile implements AsyncDisposable {
  readonly path: string;

  private constructor(readonly directory: string) {
    this.path = join(directory, "subnets.txt");
  }

  static async make(content: string): Promise<SubnetFile> {
    const file = new SubnetFile(await Deno.makeTempDir({ prefix: "mmproxy-reload-" }));
    await file.write(content);
    return file;
  }

  async write(content: string): Promise<void> {
    await Deno.writeTextFile(this.path, content);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.directory, { recursive: true });
  }
}

/** What a peer at this address reads first; nothing when it is turned away. */
async function served(program: Program, peer: string, client: number): Promise<string> {
  await using connection = await Resettable.connect(program.listen.port, peer);
  const answer = connection.next();
  connection.send(v2({ ip: "192.0.2.9", port: client }, BALANCER));
  return await Promise.race([answer.then(text), connection.end().then(() => "")]);
}

Deno.test("reload: SIGHUP under 1,000 open connections drops none and decides about new ones", async () => {
  await using subnets = await SubnetFile.make("127.0.0.1\n");
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "-a", subnets.path, "--listeners", "2"],
    logLevel: "info",
  });
  assert.equal(await served(program, "127.0.0.7", 20_001), "");

  const clients: Stream[] = [];
  try {
    for (let index = 0; index < CONNECTIONS; index++) {
      const client = await Stream.connect(program.listen.port);
      clients.push(client);
      await client.send(v2({ ip: "192.0.2.8", port: 20_000 + index }, BALANCER));
      assert.equal(await client.line(), `192.0.2.8:${20_000 + index}`);
    }

    await subnets.write("127.0.0.7 # the new balancer\n");
    program.signal("SIGHUP");
    assert.equal((await program.event("subnets_reloaded")).value, 1);

    // Both listeners: the kernel picks one by the source port.
    for (let port = 20_100; port < 20_116; port++) {
      assert.equal(await served(program, "127.0.0.7", port), `192.0.2.9:${port}\n`);
      assert.equal(await served(program, "127.0.0.1", port), "");
    }

    await subnets.write("not a subnet\n");
    program.signal("SIGHUP");
    const failed = await program.event("reload_failed");
    assert.equal(failed.level, "error");
    assert.match(failed.message, /subnets\.txt, line 1: "not a subnet" is not an IP address/);
    assert.equal(await served(program, "127.0.0.7", 20_200), "192.0.2.9:20200\n");
    assert.equal(await served(program, "127.0.0.1", 20_201), "");

    for (const [index, client] of clients.entries()) {
      await client.send(`still ${index}`);
      assert.equal(text(await client.exactly(`still ${index}`.length)), `still ${index}`);
    }
  } finally {
    for (const client of clients) client[Symbol.dispose]();
  }
  await program.stop();
});

Deno.test("reload: the UDP route of a peer that is no longer allowed ends", async () => {
  await using subnets = await SubnetFile.make("127.0.0.1\n");
  await using service = await UdpService.start(tell);
  await using program = await Program.start({
    args: ["-4", service.address, "-a", subnets.path, "-p", "udp"],
  });
  await using peer = await UdpSocket.open();
  const header = v2({ ip: "192.0.2.9", port: 20_300 }, BALANCER, { datagram: true });
  await peer.send(program.listen, header, "one");
  assert.equal(text((await peer.receive()).data), "192.0.2.9:20300 one");

  await subnets.write("127.0.0.7\n");
  program.signal("SIGHUP");
  await program.event("subnets_reloaded");
  await peer.send(program.listen, header, "two");
  await program.event("datagrams_refused", ({ refusal }) => refusal === "peer_not_allowed");
  await peer.silence();
});

Deno.test("reload: the header of a UDP session is counted once", async () => {
  const allowed = ["127.0.0.1"];
  await using subnets = await SubnetFile.make(allowed.join("\n"));
  await using service = await UdpService.start(tell);
  await using program = await Program.start({
    args: ["-4", service.address, "-a", subnets.path, "-p", "udp", "--udp-header", "session"],
  });
  await using peer = await UdpSocket.open();
  const client = { ip: "192.0.2.9", port: 20_301 };
  await peer.send(program.listen, v2(client, BALANCER, { datagram: true }), "0");
  for (const index of [0, 1, 2]) {
    assert.equal(text((await peer.receive()).data), `${show(client)} ${index}`);
    // The header is decoded again after each change.
    allowed.push(`127.0.0.${index + 2}`);
    await subnets.write(allowed.join("\n"));
    program.signal("SIGHUP");
    await program.event("subnets_reloaded", ({ value }) => value === allowed.length);
    await peer.send(program.listen, `${index + 1}`);
  }
  await peer.receive();
  assert.equal((await program.stop()).get("headers_v2"), 1, program.transcript());
});

Deno.test("reload: SIGHUP without a subnet file says that there is nothing to reload", async () => {
  await using program = await Program.start();
  program.signal("SIGHUP");
  const line = await program.event("nothing_to_reload");
  assert.match(line.message, /--allowed-subnets/);
  await program.stop();
});
