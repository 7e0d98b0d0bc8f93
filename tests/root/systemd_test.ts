import assert from "node:assert/strict";
import { join } from "node:path";
import { layOut, ROOT } from "../../deploy/release.ts";
import { freePort, show } from "../e2e/support/endpoints.ts";
import { text, v2Local } from "../e2e/support/headers.ts";
import { realPeerTest, Scratch } from "../e2e/support/real_peers.ts";
import { assertSeenOverTcp, assertSeenOverUdp } from "../e2e/support/seen.ts";
import { Stream, TcpService, tellAndEcho } from "../e2e/support/tcp.ts";
import { eventually, pause } from "../e2e/support/time.ts";
import { tell, UdpService } from "../e2e/support/udp.ts";
import { Container } from "./support/container.ts";
import { Image, NEEDS } from "./support/images.ts";

const CLIENT = { ip: "203.0.113.40", port: 40_040 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

const DEPLOY = join(ROOT, "deploy");
const UNIT = "/etc/systemd/system/mmproxy.service";

/** A machine under systemd that has the release, Deno and the unit where docs/systemd.md puts them. */
class Machine implements AsyncDisposable {
  private constructor(readonly container: Container, readonly scratch: Scratch) {}

  static async start(options: string, dropIns: readonly string[] = []): Promise<Machine> {
    const scratch = await Scratch.make();
    const release = `${scratch.path}/mmproxy`;
    await layOut(release);
    await Deno.mkdir(`${scratch.path}/etc`);
    await scratch.write("etc/options", `MMPROXY_OPTIONS=${options}\n`);
    const mounts = [
      `${release}:/opt/mmproxy:ro`,
      `${Deno.execPath()}:/usr/local/bin/deno:ro`,
      `${scratch.path}/etc:/etc/mmproxy:ro`,
      `${DEPLOY}/mmproxy.service:${UNIT}:ro`,
      ...dropIns.map((name) => `${DEPLOY}/mmproxy.service.d/${name}:${UNIT}.d/${name}:ro`),
      // The kernel's settings are the machine's around it.
      "/dev/null:/etc/systemd/system/systemd-sysctl.service:ro",
    ];
    const container = await Container.start(Image.machine, [
      ...["--systemd=always", "--cap-add=all"],
      ...["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"],
      ...mounts.flatMap((mount) => ["--volume", mount]),
    ], ["/lib/systemd/systemd"]);
    const machine = new Machine(container, scratch);
    await eventually(
      () => machine.systemctl("is-system-running").then(() => true, () => false),
      "start of systemd",
    );
    return machine;
  }

  async systemctl(...args: string[]): Promise<string> {
    return (await this.container.exec("systemctl", ...args)).trim();
  }

  async show(property: string): Promise<string> {
    return await this.systemctl("show", "--value", "--property", property, "mmproxy");
  }

  async journal(...args: string[]): Promise<string> {
    return await this.container.exec("journalctl", "--no-pager", "--unit=mmproxy", ...args);
  }

  /** Lines of the unit that are added or replaced. */
  async override(...lines: string[]): Promise<void> {
    const folder = "/run/systemd/system/mmproxy.service.d";
    const script = `mkdir -p ${folder}; printf '%s\\n' "$@" > ${folder}/test.conf`;
    await this.container.exec("sh", "-ec", script, "sh", "[Service]", ...lines);
    await this.systemctl("daemon-reload");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.container[Symbol.asyncDispose]();
    await this.scratch[Symbol.asyncDispose]();
  }
}

realPeerTest(
  "systemd: the unit serves TCP and UDP as a user of its own, and stops cleanly",
  NEEDS,
  async () => {
    const listen = { ip: "127.0.0.1", port: freePort() };
    await using tcp = new TcpService(tellAndEcho);
    await using _udp = await UdpService.start(tell, "127.0.0.1", tcp.port);
    await using machine = await Machine.start(`-l ${show(listen)} -4 ${tcp.address} -p both`);
    // Type=notify: it returns when connections are served.
    await machine.systemctl("start", "mmproxy");
    await assertSeenOverTcp(listen, CLIENT, BALANCER);
    await assertSeenOverUdp(listen, CLIENT, BALANCER);

    assert.equal(
      await machine.show("StatusText"),
      `Listening on ${show(listen)} (TCP and UDP), forwarding to ${tcp.address}`,
    );
    const pid = await machine.show("MainPID");
    const status = await machine.container.exec("cat", `/proc/${pid}/status`);
    assert.doesNotMatch(status, /^Uid:\t0\t/m);
    for (const set of ["Prm", "Eff", "Bnd"]) {
      assert.match(status, new RegExp(`^Cap${set}:\\t0000000000002000$`, "m"));
    }
    for (const set of ["Inh", "Amb"]) {
      assert.match(status, new RegExp(`^Cap${set}:\\t0000000000000000$`, "m"));
    }
    assert.match(status, /^NoNewPrivs:\t1$/m);
    assert.match(
      await machine.journal(),
      /Sandbox: no new privileges \(already\), no capability except CAP_NET_RAW \(already\), .*system calls filtered$/m,
    );

    await machine.systemctl("stop", "mmproxy");
    assert.equal(await machine.show("Result"), "success");
    assert.match(await machine.journal(), /Deactivated successfully/);
  },
);

realPeerTest(
  "systemd: a program that is killed, or hangs, is started again; a wrong option is not",
  NEEDS,
  async () => {
    const listen = { ip: "127.0.0.1", port: freePort() };
    await using tcp = new TcpService(tellAndEcho);
    await using machine = await Machine.start(`-l ${show(listen)} -4 ${tcp.address}`);
    await machine.override("WatchdogSec=2");
    await machine.systemctl("start", "mmproxy");
    for (const [signal, restarts] of [["KILL", "1"], ["STOP", "2"]] as const) {
      await pause(2500);
      assert.equal(await machine.show("ActiveState"), "active", "the watchdog is content");
      await machine.systemctl("kill", `--signal=${signal}`, "mmproxy");
      await eventually(async () => await machine.show("NRestarts") === restarts, "a restart");
      await eventually(async () => await machine.show("ActiveState") === "active", "its end");
      using stream = await Stream.connect(listen.port);
      await stream.send(v2Local());
      await stream.line();
    }
    assert.match(await machine.journal(), /Watchdog timeout/);

    await machine.override("Environment=MMPROXY_OPTIONS=--nonsense", "EnvironmentFile=");
    await assert.rejects(machine.systemctl("restart", "mmproxy"), /failed because/);
    await pause(1500);
    assert.equal(await machine.show("ActiveState"), "failed");
    assert.match(
      await machine.journal("--priority=err"),
      / mmproxy\[\d+\]: Unknown option '--nonsense'/,
    );

    // Nor is one that lacks a permission, which does not come by itself.
    await machine.override("AmbientCapabilities=", "CapabilityBoundingSet=");
    await assert.rejects(machine.systemctl("restart", "mmproxy"), /failed because/);
    await pause(1500);
    assert.equal(await machine.show("ActiveState"), "failed");
    assert.equal(await machine.show("ExecMainStatus"), "2");
    assert.equal(await machine.show("NRestarts"), "0");
  },
);

realPeerTest(
  "systemd: with the drop-ins it listens on a low port, and has its routes while it runs",
  NEEDS,
  async () => {
    const listen = { ip: "127.0.0.1", port: 843 };
    const rules = async () =>
      text((await new Deno.Command("ip", { args: ["rule"] }).output()).stdout);
    const routed = async () => /from 127\.0\.0\.\S* .*lookup 777/.test(await rules());
    await using tcp = new TcpService(tellAndEcho);
    await using machine = await Machine.start(
      `-l ${show(listen)} -4 ${tcp.address} --table 777`,
      ["low-ports.conf", "routes.conf"],
    );
    await machine.systemctl("start", "mmproxy");
    assert.equal(await routed(), true, await rules());
    await assertSeenOverTcp(listen, CLIENT, BALANCER);
    await machine.systemctl("stop", "mmproxy");
    assert.equal(await routed(), false, await rules());
  },
);

realPeerTest("systemd: nobody is refused during a restart, or after a crash", NEEDS, async () => {
  const listen = { ip: "127.0.0.1", port: freePort() };
  await using tcp = new TcpService(tellAndEcho);
  await using machine = await Machine.start(`-l ${show(listen)} -4 ${tcp.address} --workers 2`);
  await machine.systemctl("start", "mmproxy");
  const stored = () => machine.show("NFileDescriptorStore");
  assert.equal(await stored(), "2", "one socket a worker");
  const during = async (work: () => Promise<void>) => {
    let over = false;
    let connections = 0;
    const clients = async () => {
      do {
        using stream = await Stream.connect(listen.port);
        await stream.send(v2Local());
        await stream.line();
        connections++;
      } while (!over);
    };
    const all = Promise.all(Array.from({ length: 4 }, clients));
    await Promise.all([work().finally(() => over = true), all]);
    return connections;
  };
  const pid = await machine.show("MainPID");
  const connections = await during(async () => void await machine.systemctl("restart", "mmproxy"));
  assert.ok(connections >= 4, `${connections} connections`);
  const restarted = await machine.show("MainPID");
  assert.notEqual(restarted, pid);
  assert.match(
    await machine.journal(),
    /Resumed 2 listening sockets from the service manager's store/,
  );
  assert.equal(await stored(), "2");

  await machine.systemctl("kill", "--signal=KILL", "mmproxy");
  await eventually(async () => await machine.show("MainPID") !== restarted, "its end");
  using waiting = await Stream.connect(listen.port);
  await waiting.send(v2Local());
  await waiting.line();
  assert.equal(await machine.show("NRestarts"), "1");
  await machine.systemctl("stop", "mmproxy");
  await assert.rejects(Stream.connect(listen.port), Deno.errors.ConnectionRefused);
});

realPeerTest("systemd: a reload is taken, and the program goes on", NEEDS, async () => {
  const listen = { ip: "127.0.0.1", port: freePort() };
  await using tcp = new TcpService(tellAndEcho);
  await using machine = await Machine.start(
    `-l ${show(listen)} -4 ${tcp.address} -a /etc/mmproxy/subnets`,
  );
  await machine.scratch.write("etc/subnets", "127.0.0.0/8\n");
  await machine.systemctl("start", "mmproxy");
  const pid = await machine.show("MainPID");
  await machine.scratch.write("etc/subnets", "198.51.100.0/24\n");
  await machine.systemctl("reload", "mmproxy");
  await eventually(async () => {
    using stream = await Stream.connect(listen.port);
    const answer = stream.send(v2Local()).then(() => stream.line());
    return await answer.then(() => false, () => true);
  }, "the new subnets");
  assert.equal(await machine.show("ActiveState"), "active");
  assert.equal(await machine.show("MainPID"), pid);

  await machine.scratch.write("etc/subnets", "198.51.100.0/24\nnonsense\n");
  await assert.rejects(machine.systemctl("reload", "mmproxy"), /Job for mmproxy.service failed/);
  assert.equal(await machine.show("ActiveState"), "active");
  assert.equal(await machine.show("MainPID"), pid);
  // Its priority, its name, and one time alone.
  const grave = await machine.journal("--priority=warning", "--identifier=mmproxy");
  assert.match(grave, /^\w{3} \d\d \S+ \S+ mmproxy\[\d+\]: [^\n]*line 2[^\n]*nonsense/m);
  assert.doesNotMatch(grave, /\dT\d\d:|WARN|ERROR|Listening on/);
});

realPeerTest(
  "systemd: MemoryDenyWriteExecute ends Deno, but for an interpreted one",
  NEEDS,
  async () => {
    const listen = { ip: "127.0.0.1", port: freePort() };
    await using tcp = new TcpService(tellAndEcho);
    await using machine = await Machine.start(`-l ${show(listen)} -4 ${tcp.address}`);
    const deny = "MemoryDenyWriteExecute=yes";
    await machine.override(deny, "Restart=no");
    await assert.rejects(machine.systemctl("start", "mmproxy"), /failed because/);
    await machine.override(
      deny,
      "Environment=DENO_V8_FLAGS=--jitless",
    );
    await machine.systemctl("start", "mmproxy");
    await assertSeenOverTcp(listen, CLIENT, BALANCER);
  },
);
