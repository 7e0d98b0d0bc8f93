/** `deploy/install.sh`: beside what is there, never over it. */
import assert from "node:assert/strict";
import { layOut } from "../../deploy/release.ts";
import { freePort } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { runTool, Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";

const CLIENT = { ip: "203.0.113.82", port: 40_084 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** Releases of several versions, and if they are installed. */
class Host implements AsyncDisposable {
  private constructor(readonly scratch: Scratch) {}

  static async make(): Promise<Host> {
    const host = new Host(await Scratch.make());
    await layOut(host.release("1.0.0"));
    await host.#rename("1.0.0");
    await runTool("cp", ["-a", host.release("1.0.0"), host.release("1.1.0")]);
    await host.#rename("1.1.0");
    return host;
  }

  release(version: string): string {
    return `${this.scratch.path}/mmproxy-${version}`;
  }

  /** What is below the prefix. */
  path(name: string): string {
    return `${this.scratch.path}/opt/${name}`;
  }

  flags(): string[] {
    return ["--prefix", `${this.scratch.path}/opt`, "--bin", `${this.scratch.path}/bin`];
  }

  async install(version: string): Promise<string> {
    return await runTool(`${this.release(version)}/deploy/install.sh`, this.flags());
  }

  async #rename(version: string): Promise<void> {
    const path = `${this.release(version)}/deno.json`;
    const settings = JSON.parse(await Deno.readTextFile(path));
    await Deno.writeTextFile(path, JSON.stringify({ ...settings, version }, null, 2));
    const main = `${this.release(version)}/lib/main.js`;
    const bundled = await Deno.readTextFile(main);
    const named = `version: "${settings.version}"`;
    assert.ok(bundled.includes(named), `${main} has no ${named}`);
    await Deno.writeTextFile(main, bundled.replace(named, `version: "${version}"`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.scratch[Symbol.asyncDispose]();
  }
}

/** The version that is installed. */
async function versionOf(host: Host): Promise<string> {
  const deno = `MMPROXY_DENO=${Deno.execPath()}`;
  return (await runTool("env", [deno, `${host.scratch.path}/bin/mmproxy`, "--version"])).trim();
}

async function namesIn(folder: string): Promise<string[]> {
  return (await Array.fromAsync(Deno.readDir(folder), ({ name }) => name)).sort();
}

Deno.test("install: a new release replaces the old one, which continues to run", async () => {
  await using host = await Host.make();
  await host.install("1.0.0");
  assert.equal(await versionOf(host), "mmproxy 1.0.0");
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    root: host.path("mmproxy"),
    listen: { ip: "127.0.0.1", port: freePort() },
    args: ["-4", service.address],
  });
  using client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  await client.line();
  const core = `libmmproxy-${Deno.build.arch}.so`;
  const before = await Deno.stat(`${host.path("mmproxy")}/${core}`);

  assert.match(await host.install("1.1.0"), /A running program uses that until it is restarted/);
  assert.equal(await versionOf(host), "mmproxy 1.1.0");
  // Nothing of the old one was touched, and it relays: that connection, and new ones.
  const after = await Deno.stat(`${host.path("mmproxy-1.0.0")}/${core}`);
  assert.deepEqual([after.ino, after.mtime], [before.ino, before.mtime]);
  await client.send("still here\n");
  assert.equal(await client.line(), "still here");
  using another = await Stream.connect(program.listen.port);
  await another.send(v2({ ...CLIENT, port: 40_085 }, BALANCER));
  await another.line();
  await program.stop();

  // Back again, and nothing was nested or left over.
  await runTool(`${host.path("mmproxy-1.0.0")}/deploy/install.sh`, host.flags());
  assert.equal(await versionOf(host), "mmproxy 1.0.0");
  assert.deepEqual(await namesIn(host.path("")), ["mmproxy", "mmproxy-1.0.0", "mmproxy-1.1.0"]);
  const inside = await namesIn(host.path("mmproxy"));
  assert.ok(!inside.some((name) => name.startsWith("mmproxy")), inside.join());
  await host.install("1.1.0");
  assert.ok((await namesIn(host.path(""))).includes("mmproxy-1.0.0.2"));
});

Deno.test("install: the same release twice changes nothing", async () => {
  await using host = await Host.make();
  await host.install("1.0.0");
  const { ino } = await Deno.stat(host.path("mmproxy"));
  assert.match(await host.install("1.0.0"), /is this release already/);
  assert.equal((await Deno.stat(host.path("mmproxy"))).ino, ino);
  assert.deepEqual(await namesIn(host.path("")), ["mmproxy"]);
});

Deno.test("install: something other than a release is not installed", async () => {
  await using host = await Host.make();
  await Deno.remove(`${host.release("1.0.0")}/node_modules`, { recursive: true });
  await assert.rejects(host.install("1.0.0"), /is not a release; unpack one/);
  await assert.rejects(Deno.stat(host.path("")), Deno.errors.NotFound);
});
