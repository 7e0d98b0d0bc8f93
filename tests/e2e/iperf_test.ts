import assert from "node:assert/strict";
import { type Endpoint, freePort, show, socketsOf } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { installed, realPeerTest, runTool, Server } from "./support/real_peers.ts";
import { eventually } from "./support/time.ts";
import { UdpSocket } from "./support/udp.ts";

/** A balancer: puts a v2 header before each datagram of its one client, hands replies back bare. */
class Sender implements AsyncDisposable {
  #client: Endpoint | undefined;
  #working: Promise<void>;
  #stopped = false;

  private constructor(readonly front: UdpSocket, readonly back: UdpSocket) {
    this.#working = Promise.resolve();
  }

  /** @param source the client's address and port that the headers name. */
  static async start(source: Endpoint, program: Endpoint): Promise<Sender> {
    const sender = new Sender(await UdpSocket.open(), await UdpSocket.open());
    const head = v2(source, sender.front.local, { datagram: true });
    sender.#working = sender.#work(head, program);
    return sender;
  }

  async #work(head: Uint8Array, program: Endpoint): Promise<void> {
    while (!this.#stopped) {
      for (
        let next = this.front.queue.shift();
        next !== undefined;
        next = this.front.queue.shift()
      ) {
        this.#client = next.from;
        await this.back.send(program, head, next.data);
      }
      for (let next = this.back.queue.shift(); next !== undefined; next = this.back.queue.shift()) {
        if (this.#client !== undefined) await this.front.send(this.#client, next.data);
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    await this.#working;
    await this.front[Symbol.asyncDispose]();
    await this.back[Symbol.asyncDispose]();
  }
}

realPeerTest(
  "iperf: over UDP behind a sender of v2 headers, the server sees the client and gets its datagrams",
  { iperf: installed("iperf") },
  async () => {
    const client = { ip: "192.0.2.88", port: 40_888 };
    const servicePort = freePort();
    await using server = Server.spawn("iperf", [
      ...["--server", "--udp", "--bind", "127.0.0.1", "--port", String(servicePort)],
    ]);
    await eventually(() => socketsOf(servicePort).length > 0, "iperf listening");
    await using program = await Program.start({
      args: ["-p", "udp", "-4", `127.0.0.1:${servicePort}`],
    });
    await using sender = await Sender.start(client, program.listen);
    const report = await runTool("iperf", [
      ...["--client", "127.0.0.1", "--port", String(sender.front.local.port)],
      ...["--udp", "--time", "3", "--bandwidth", "10M"],
    ]);
    // What the server counted, which it sends back to the client at the end.
    const [, lost, total] = /Server Report:[^]* (\d+)\/ *(\d+) \(/.exec(report) ?? [];
    assert.ok(Number(total) > 2000, report);
    assert.ok(Number(lost) <= Number(total) / 100, report);
    const counters = await program.stop();
    assert.ok(counters.get("datagrams_up") > 2000, JSON.stringify(counters.values));
    assert.ok(counters.get("datagrams_down") >= 1);
    assert.equal(counters.get("flows_opened"), 1);
    await server[Symbol.asyncDispose]();
    assert.match(
      await server.output(),
      new RegExp(`connected with ${client.ip} port ${client.port}`),
    );
    assert.equal(show(client), program.all("flow_opened")[0]?.client);
  },
);
