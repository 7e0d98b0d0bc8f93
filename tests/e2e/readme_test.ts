import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { text, v2 } from "./support/headers.ts";
import { ON_PATH } from "./support/program.ts";
import { eventually, pause } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const ADDRESS = "192.0.2.200";

/** The README's example as it is written there, but for the address that it leaves open. */
async function example(): Promise<string> {
  const readme = await Deno.readTextFile(join(ROOT, "README.md"));
  const [, block] =
    /<!-- The end-to-end tests run this block[^\n]*\n```sh\n([^]*?)```/.exec(readme) ?? [];
  assert.ok(block !== undefined && block.includes("address=X.X.X.X"), "the README has its example");
  return block.replace("X.X.X.X", ADDRESS);
}

Deno.test("readme: the example of mmproxy-rs runs as written", async () => {
  await run(["ip", "address", "add", `${ADDRESS}/32`, "dev", "lo"]);
  // Root already, and the routes are those that every test has: only those two lines may fail.
  const shell = `${ON_PATH}\nsudo() { case $1 in ip) "$@" || true ;; *) exec "$@" ;; esac; }\n`;
  const program = new Deno.Command("sh", {
    args: ["-e", "-c", shell + await example()],
    cwd: ROOT,
    stdout: "null",
    stderr: "null",
  }).spawn();
  try {
    await using service = await UdpService.start(tell, "127.0.0.1", 8081);
    await using peer = await UdpSocket.open();
    const client = { ip: "198.51.100.77", port: 40_077 };
    const header = v2(client, { ip: ADDRESS, port: 8080 }, { datagram: true });
    const answer = await eventually(async () => {
      await peer.send({ ip: ADDRESS, port: 8080 }, header, "hello");
      await pause(200);
      return peer.queue.shift();
    }, "an answer through the example");
    assert.equal(text(answer.data), "198.51.100.77:40077 hello");
    assert.ok(service.received.length > 0);
  } finally {
    program.kill("SIGTERM");
    await program.status;
    await run(["ip", "address", "del", `${ADDRESS}/32`, "dev", "lo"]);
  }
});

async function run([command = "", ...args]: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(command, { args }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
}
