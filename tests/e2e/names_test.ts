/** Host names as upstreams, answered by a DNS server of the test's own. */
import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { concat, v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";
import { UdpService } from "./support/udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const TYPE_A = 1;
/** RFC 1035, 4.1.1. */
const NXDOMAIN = 3;

/** Answers every question for an IPv4 address with `addresses`; without any there is no such name. */
class NameServer implements AsyncDisposable {
  addresses: string[] = [];
  questions = 0;
  isSilent = false;
  #service: UdpService | undefined;

  static async start(ip: string, ...addresses: string[]): Promise<NameServer> {
    const server = new NameServer();
    server.addresses = addresses;
    server.#service = await UdpService.start(({ data }) => server.#answer(data), ip, 53);
    return server;
  }

  #answer(query: Uint8Array): Uint8Array | undefined {
    if (this.isSilent) return undefined;
    this.questions++;
    let end = 12;
    for (let label = query[end]; label !== undefined && label !== 0; label = query[end]) {
      end += label + 1;
    }
    const question = query.subarray(12, end + 5);
    const answers = question.at(-3) === TYPE_A ? this.addresses : [];
    const code = this.addresses.length === 0 ? NXDOMAIN : 0;
    return concat(
      query.subarray(0, 2),
      [0x85, 0x80 | code, 0, 1, 0, answers.length, 0, 0, 0, 0],
      question,
      ...answers.map((ip) =>
        Uint8Array.of(0xc0, 12, 0, TYPE_A, 0, 1, 0, 0, 0, 0, 0, 4, ...ip.split(".").map(Number))
      ),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#service?.[Symbol.asyncDispose]();
  }
}

/** Runs the program where resolv.conf names this server. */
async function resolver(scratch: Scratch, ip: string): Promise<string> {
  const file = await scratch.write(
    "resolv.conf",
    `nameserver ${ip}\noptions timeout:1 attempts:1\n`,
  );
  const nss = await scratch.write("nsswitch.conf", "hosts: files dns\n");
  return `exec unshare --mount sh -ec 'mount --bind ${file} /etc/resolv.conf
    mount --bind ${nss} /etc/nsswitch.conf; exec "$@"' sh "$@"`;
}

/** What the upstream says whose connection it is. */
async function served(port: number): Promise<string> {
  using stream = await Stream.connect(port);
  await stream.send(v2({ ip: "192.0.2.9", port: 0 }, BALANCER));
  return await stream.line();
}

Deno.test("names: resolved at the start, again, and kept while the lookup fails, under the sandbox", async () => {
  await using scratch = await Scratch.make();
  await using server = await NameServer.start("127.0.0.53", "127.0.0.11");
  const to = freePort();
  const tellWhere = (name: string) =>
    new TcpService(
      async (stream) => {
        await stream.send(`${name}\n`);
        await stream.end();
      },
      name,
      to,
    );
  await using _eleven = tellWhere("127.0.0.11");
  await using _twelve = tellWhere("127.0.0.12");
  const port = freePort();
  const file = await scratch.write(
    "m.toml",
    `resolve-interval = 1
[[listener]]
name = "mail"
listen = "127.0.0.1:${port}"
ipv4 = "mail.example:${to}"
`,
  );
  await using program = await Program.start({
    config: file,
    args: ["--sandbox", "on"],
    shell: await resolver(scratch, "127.0.0.53"),
  });
  assert.match(program.all("listening")[0]?.message ?? "", /forwarding to mail\.example:/);
  assert.equal(await served(port), "127.0.0.11");

  // Among several, the one in use stays.
  server.addresses = ["127.0.0.12", "127.0.0.11"];
  const asked = server.questions;
  await eventually(() => server.questions > asked + 1 || undefined, "another question");
  assert.equal(await served(port), "127.0.0.11");

  server.addresses = ["127.0.0.12"];
  const changed = await program.event("name_resolved", ({ message }) => /was/.test(message));
  assert.match(
    changed.message,
    /^Resolved mail\.example to 127\.0\.0\.12, was 127\.0\.0\.11 \(ipv4 of/,
  );
  assert.equal(await served(port), "127.0.0.12");

  server.addresses = [];
  const failed = await program.event("name_unresolved");
  assert.match(failed.message, /127\.0\.0\.12 stays in use until the lookup succeeds$/);
  assert.equal(await served(port), "127.0.0.12");
  // No answer at all is as good, and the relay does not wait for it.
  server.isSilent = true;
  const began = performance.now();
  for (let round = 0; round < 10; round++) {
    assert.equal(await served(port), "127.0.0.12");
    await pause(100);
  }
  assert(performance.now() - began < 4_000);
  assert.equal(program.all("name_unresolved").length, 1, "told once");
  server.isSilent = false;
  server.addresses = ["127.0.0.12"];
  await program.event("name_resolved", ({ message }) => /again/.test(message));

  // Back to itself: a loop is refused, and nothing changes.
  server.addresses = ["127.0.0.11"];
  await program.event("name_resolved", ({ message }) => /to 127\.0\.0\.11, was/.test(message));
  await scratch.write("m.toml", (await Deno.readTextFile(file)).replace(`:${to}"`, `:${port}"`));
  server.addresses = ["127.0.0.1"];
  program.signal("SIGHUP");
  const loop = await program.event("reload_failed");
  assert.match(loop.message, /mmproxy itself listens there/);
  assert.equal(await served(port), "127.0.0.11");
  await program.stop();
});

Deno.test("names: without an answer there is no start, in one line", async () => {
  await using scratch = await Scratch.make();
  await using _server = await NameServer.start("127.0.0.53");
  const shell = await resolver(scratch, "127.0.0.53");
  const { code, stderr } = await runToEnd(["-4", "nobody.example:25"], { shell });
  assert.equal(code, 1);
  assert.match(
    stderr,
    /^mmproxy: Cannot resolve nobody\.example \(ipv4 of listener \S+\): \S.*\n$/,
  );
});

Deno.test("names: flags take them, and SIGHUP asks again", async () => {
  await using scratch = await Scratch.make();
  await using server = await NameServer.start("127.0.0.53", "127.0.0.1");
  await using service = new TcpService(tellAndEcho, "127.0.0.1");
  const to = service.address.split(":")[1];
  await using program = await Program.start({
    args: ["-4", `mail.example:${to}`],
    shell: await resolver(scratch, "127.0.0.53"),
  });
  assert.match(await served(program.listen.port), /^192\.0\.2\.9:/);
  const asked = server.questions;
  program.signal("SIGHUP");
  await eventually(() => server.questions > asked || undefined, "a question");
  assert.match(await served(program.listen.port), /^192\.0\.2\.9:/);
  await program.stop();
});
