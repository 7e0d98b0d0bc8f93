/**
 * --offload: connections that were handed over outlive the program, by files in a BPF file system. The tests have one of
 * their own.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { type Endpoint, freePort, show } from "../e2e/support/endpoints.ts";
import { v2 } from "../e2e/support/headers.ts";
import { killAtEnd, type LogEvent, Program } from "../e2e/support/program.ts";
import { ProgramCopy } from "../e2e/support/program_copy.ts";
import { runTool } from "../e2e/support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "../e2e/support/tcp.ts";
import { eventually, pause } from "../e2e/support/time.ts";

const FAMILIES = [
  {
    name: "IPv4",
    loopback: "127.0.0.1",
    upstream: "-4",
    client: { ip: "192.0.2.44", port: 40_321 },
    balancer: { ip: "198.51.100.1", port: 443 },
  },
  {
    name: "IPv6",
    loopback: "::1",
    upstream: "-6",
    client: { ip: "2001:db8::44", port: 40_321 },
    balancer: { ip: "2001:db8:1::1", port: 443 },
  },
] as const;
const [IPV4] = FAMILIES;
type Family = typeof FAMILIES[number];

/** What a connection's line in the log says of --offload. */
type Said = LogEvent & { offload?: string; reason?: string };

/** A host with a BPF file system of its own, and the programs on it. */
class Site implements AsyncDisposable {
  readonly service: TcpService;
  readonly listen: Endpoint;

  private constructor(
    readonly family: Family,
    readonly copy: ProgramCopy,
    readonly mounts: Deno.ChildProcess,
  ) {
    this.service = new TcpService(tellAndEcho, family.loopback);
    this.listen = { ip: family.loopback, port: freePort() };
  }

  static async make(family: Family = IPV4): Promise<Site> {
    const copy = await ProgramCopy.make();
    await copy.addFaultyLibrary();
    const script = "mount -t bpf bpf /sys/fs/bpf && echo up && exec sleep 600";
    const mounts = new Deno.Command("unshare", {
      args: ["--mount", "sh", "-c", script],
      stdout: "piped",
    }).spawn();
    const reader = mounts.stdout.getReader();
    const { value } = await reader.read();
    assert.equal(new TextDecoder().decode(value), "up\n");
    await reader.cancel();
    return new Site(family, copy, mounts);
  }

  get #enter(): string[] {
    return ["nsenter", `--mount=/proc/${this.mounts.pid}/ns/mnt`];
  }

  /** A program, by default at the one address that the balancer knows. */
  async start(listen = this.listen, args: string[] = []): Promise<Program> {
    return await Program.start({
      root: this.copy.root,
      listen,
      args: [this.family.upstream, this.service.address, "--offload", "auto", ...args],
      logLevel: "info",
      shell: `exec ${this.#enter.join(" ")} --wd="$PWD" "$@"`,
    });
  }

  /** Runs a command where the file system is. */
  async run(...command: string[]): Promise<string> {
    const [program = "", ...args] = [...this.#enter, ...command];
    return await runTool(program, args);
  }

  /** The directories of programs, those of earlier ones as well. */
  async directories(): Promise<string[]> {
    return (await this.run("ls", "/sys/fs/bpf/mmproxy")).split("\n").filter((name) => name !== "");
  }

  /** A connection that the kernel has. */
  async handedOver(program: Program, client: Endpoint = this.family.client): Promise<Stream> {
    const { stream, seen } = await this.connect(program, client);
    assert.equal(seen, show(client));
    // Until its sockets are closed: each round is another chance.
    const { port } = stream.conn.localAddr;
    const socket = `sport = :${program.listen.port} and dport = :${port}`;
    for (
      const until = performance.now() + 20_000;
      (await runTool("ss", ["-tanH", socket])) !== "";
    ) {
      assert(performance.now() < until, "the hand-over is not complete");
      await exchange(stream, 4);
      await pause(20);
    }
    return stream;
  }

  /** A connection, and the client that the service sees. */
  async connect({ listen }: Program, client: Endpoint): Promise<{ stream: Stream; seen: string }> {
    const stream = await Stream.connect(listen.port, listen.ip);
    await stream.send(v2(client, this.family.balancer));
    return { stream, seen: await stream.line() };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    using _mounts = killAtEnd(this.mounts);
    await this.service[Symbol.asyncDispose]();
    await this.copy[Symbol.asyncDispose]();
  }
}

/** Bytes there and back, by SHA-256. */
async function exchange(stream: Stream, length: number): Promise<void> {
  const sent = new Uint8Array(randomBytes(length));
  const [back] = await Promise.all([stream.exactly(length), stream.send(sent)]);
  const hash = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
  assert.equal(hash(back), hash(sent));
}

/** Both ends close. */
async function close(stream: Stream): Promise<void> {
  await stream.finish();
  assert.equal(await stream.end(), "closed");
  stream[Symbol.dispose]();
}

async function kill(program: Program): Promise<void> {
  program.signal("SIGKILL");
  assert.equal(await program.ended(), 137);
}

/** How many connections a program has said that it adopted; those that it has ended. */
function adopted(program: Program): [number, number] {
  const all = program.all("offload") as (Said & { ended?: number })[];
  const line = all.find(({ offload }) => offload === "adopted");
  return [line?.value ?? 0, line?.ended ?? 0];
}

for (const family of FAMILIES) {
  Deno.test(`offload: ${family.name} connections outlive a killed mmproxy, and the next one adopts them`, async () => {
    await using site = await Site.make(family);
    await using first = await site.start();
    using stream = await site.handedOver(first);
    await kill(first);
    await exchange(stream, 4 << 20);

    await using second = await site.start(site.listen, ["--sandbox", "on"]);
    assert.deepEqual(adopted(second), [1, 0]);
    await exchange(stream, 1 << 20);
    // Its port is in use, though no socket has it.
    const again = await site.connect(second, family.client);
    assert.notEqual(again.seen, show(family.client));
    await exchange(again.stream, 1000);
    await exchange(stream, 1000);
    await close(again.stream);

    await close(stream);
    // Until it was looked at twice.
    await pause(3_000);
    const third = await site.connect(second, family.client);
    assert.equal(third.seen, show(family.client));
    await close(third.stream);
    assert.equal((await site.directories()).length, 2);
    await second.stop();
    await using last = await site.start();
    assert.deepEqual(adopted(last), [0, 0]);
    assert.equal((await site.directories()).length, 1);
    await last.stop();
  });
}

Deno.test("offload: a stop waits for no connection that the kernel has, and leaves it alive", async () => {
  await using site = await Site.make();
  await using first = await site.start();
  using stream = await site.handedOver(first);
  const began = performance.now();
  const counters = await first.stop();
  assert(performance.now() - began < 5_000, "it has waited");
  assert.equal(counters.get("offloaded"), 1);
  assert.deepEqual((first.all("offload") as Said[]).map(({ offload }) => offload), ["on", "left"]);
  await exchange(stream, 1 << 20);
  await using second = await site.start();
  assert.deepEqual(adopted(second), [1, 0]);
  await exchange(stream, 1 << 20);
  // It goes on for as long as there is an end to it.
  await second.stop();
  await exchange(stream, 1000);
  await using third = await site.start();
  assert.deepEqual(adopted(third), [1, 0]);
  await close(stream);
  await pause(3_000);
  await third.stop();
  assert.deepEqual((third.all("offload") as Said[]).map(({ offload }) => offload), [
    "on",
    "adopted",
  ]);
});

Deno.test("offload: programs beside each other leave each other's connections alone, until one ends", async () => {
  await using site = await Site.make();
  await using one = await site.start();
  using stream = await site.handedOver(one);
  await using other = await site.start({ ip: "127.0.0.1", port: freePort() });
  assert.deepEqual(adopted(other), [0, 0]);
  // The other one's port is in use as well.
  const beside = await site.connect(other, IPV4.client);
  assert.notEqual(beside.seen, show(IPV4.client));
  await close(beside.stream);
  await exchange(stream, 1 << 20);
  await kill(one);
  await exchange(stream, 1 << 20);
  // By now it is the other one's.
  await pause(3_000);
  await using next = await site.start();
  assert.deepEqual(adopted(next), [0, 0]);
  await kill(other);
  await pause(3_000);
  await exchange(stream, 1 << 20);
  await close(stream);
  await pause(3_000);
  const again = await site.connect(next, IPV4.client);
  assert.equal(again.seen, show(IPV4.client));
  await close(again.stream);
  await next.stop();
  await using last = await site.start();
  assert.equal((await site.directories()).length, 1);
  await last.stop();
});

Deno.test("offload: a program that is killed at any moment leaves no connection that stands still", async () => {
  await using site = await Site.make();
  for (let round = 0; round < 8; round++) {
    const program = await site.start();
    const streams = await Promise.all(
      Array.from(
        { length: 12 },
        (_, index) =>
          site.connect(program, { ip: "192.0.2.45", port: 41_000 + round * 100 + index }),
      ),
    );
    // Endless, until something is amiss with the connection; wrong bytes fail.
    const ends = streams.map(async ({ stream }) => {
      let rounds = 0;
      try {
        for (; rounds < 400; rounds++) await exchange(stream, 20_000);
        return { rounds, error: undefined };
      } catch (error) {
        if (error instanceof assert.AssertionError) throw error;
        return { rounds, error: String(error) };
      } finally {
        stream[Symbol.dispose]();
      }
    });
    await pause(20 * round);
    await kill(program);
    await using next = await site.start();
    for (const { error } of await Promise.all(ends)) {
      assert.doesNotMatch(error ?? "", /No |within|time/i);
    }
    await pause(2_500);
    await next.stop();
  }
  await using last = await site.start();
  assert.equal((await site.directories()).length, 1);
  await last.stop();
});

Deno.test("offload: a directory that is not ours is not used, and the log says so", async () => {
  await using site = await Site.make();
  await site.run("sh", "-ec", "mkdir -m 700 /sys/fs/bpf/mmproxy; chown 12345 /sys/fs/bpf/mmproxy");
  await using program = await site.start();
  const [said] = program.all("offload") as Said[];
  assert.equal(said?.reason, "/sys/fs/bpf/mmproxy is not this user's alone");
  using stream = await site.handedOver(program);
  await program.stop();
  assert.equal(await stream.end(), "reset");
  assert.deepEqual(await site.directories(), []);
});

Deno.test("offload: what nobody can use is removed at the next start", async () => {
  await using site = await Site.make();
  await using host = await site.start();
  await kill(host);
  // Of another version, one that was never complete, and names of somebody else's.
  await site.run(
    "sh",
    "-ec",
    `cd /sys/fs/bpf/mmproxy; n=$(ls); mkdir 1-99999-0 keep 1-x-2
    mkdir "99-\${n#*-}" && mv "$n"/* "99-\${n#*-}"`,
  );
  await using next = await site.start();
  const said = next.all("offload") as Said[];
  assert.deepEqual(said.map(({ offload }) => offload), ["on", "unreadable"]);
  const names = await site.directories();
  assert.equal(names.length, 3, names.join());
  assert(names.includes("keep") && names.includes("1-x-2"));
  await next.stop();
  await eventually(() => next.all("stopped")[0], "its end");
});
