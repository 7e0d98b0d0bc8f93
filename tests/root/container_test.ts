import assert from "node:assert/strict";
import { freePort, show, tcpListens } from "../e2e/support/endpoints.ts";
import { v2 } from "../e2e/support/headers.ts";
import { realPeerTest, Scratch } from "../e2e/support/real_peers.ts";
import { assertSeenOverTcp, assertSeenOverUdp } from "../e2e/support/seen.ts";
import { Stream, TcpService, tellAndEcho } from "../e2e/support/tcp.ts";
import { eventually } from "../e2e/support/time.ts";
import { tell, UdpService } from "../e2e/support/udp.ts";
import { Bundle } from "./support/bundle.ts";
import { Container } from "./support/container.ts";
import { Image, NEEDS } from "./support/images.ts";

const CLIENT = { ip: "203.0.113.39", port: 40_039 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
/** As docs/containers.md has it. */
const RAW_ALONE = ["--cap-drop=all", "--cap-add=NET_RAW"];

/** Waits until the program in the container says something. */
async function said(container: Container, line: RegExp): Promise<void> {
  await eventually(async () => line.test(await container.log()), `${line} in the log`);
}

const FLAGS: [how: string, flags: string[], user: number][] = [
  ["as it is", [], 65_532],
  ["with no way to more privileges", ["--security-opt=no-new-privileges"], 65_532],
  ["with nothing to write to", ["--read-only", "--read-only-tmpfs=false"], 65_532],
  ["as root", ["--user=0"], 0],
];

for (const [how, flags, user] of FLAGS) {
  realPeerTest(
    `container: with CAP_NET_RAW alone, ${how}, the service sees the client`,
    NEEDS,
    async () => {
      const listen = { ip: "127.0.0.1", port: freePort() };
      await using tcp = new TcpService(tellAndEcho);
      await using _udp = await UdpService.start(tell, "127.0.0.1", tcp.port);
      await using scratch = await Scratch.make();
      const subnets = await scratch.write("subnets", "127.0.0.0/8\n");
      const mount = ["--volume", `${subnets}:/etc/mmproxy/subnets:ro`];
      await using container = await Container.start(
        Image.mmproxy,
        [...RAW_ALONE, ...mount, ...flags],
        ["-l", show(listen), "-4", tcp.address, "-p", "both", "-a", "/etc/mmproxy/subnets"],
      );
      await said(container, /Listening on/);
      const status = await container.status();
      assert.match(status, new RegExp(`^Uid:(\\t${user}){4}$`, "m"));
      assert.match(status, /^CapEff:\t0000000000002000$/m);
      assert.match(status, /^CapBnd:\t0000000000002000$/m);

      await assertSeenOverTcp(listen, CLIENT, BALANCER);
      await assertSeenOverUdp(listen, CLIENT, BALANCER);
      assert.equal(await container.health(), true);
      // The commands that the doctor and the log print.
      assert.ok((await container.exec("mmproxy", "status")).includes(show(listen)));
      assert.match(await container.exec("mmproxy", "--version"), /^mmproxy \d/);
      assert.equal(await container.stop(), 0, await container.log());
    },
  );
}

for (const noNewPrivileges of [false, true]) {
  const privileges = noNewPrivileges ? "no new privileges" : "new privileges allowed";
  realPeerTest(
    `container: as Docker and containerd start it, ${privileges}, the service sees the client`,
    NEEDS,
    async () => {
      const port = freePort();
      await using service = new TcpService(tellAndEcho);
      await using _container = await Bundle.start(
        ["-l", `127.0.0.1:${port}`, "-4", service.address],
        ["CAP_NET_RAW"],
        noNewPrivileges,
      );
      await eventually(() => tcpListens(port), "the program's port");
      await assertSeenOverTcp({ ip: "127.0.0.1", port }, CLIENT, BALANCER);
    },
  );

  realPeerTest(
    `container: NET_BIND_SERVICE gives the image's user ports below 1024, ${privileges}`,
    NEEDS,
    async () => {
      const listen = { ip: "127.0.0.1", port: 844 };
      await using service = new TcpService(tellAndEcho);
      await using _container = await Bundle.start(
        ["-l", show(listen), "-4", service.address],
        ["CAP_NET_RAW", "CAP_NET_BIND_SERVICE"],
        noNewPrivileges,
      );
      await eventually(() => tcpListens(listen.port), "the program's port");
      // A client's own port below 1024 is kept, too.
      await assertSeenOverTcp(listen, { ...CLIENT, port: 845 }, BALANCER);
    },
  );
}

realPeerTest("container: is unhealthy where no program answers", NEEDS, async () => {
  const forever = ["/usr/local/bin/deno", "eval", "setInterval(() => {}, 1000)"];
  await using container = await Container.start(Image.mmproxy, [
    ...RAW_ALONE,
    `--entrypoint=${JSON.stringify(forever)}`,
  ], []);
  assert.equal(await container.health(), false);
});

realPeerTest(
  "container: a connection that stays open does not get it killed by docker stop",
  NEEDS,
  async () => {
    const listen = { ip: "127.0.0.1", port: freePort() };
    await using tcp = new TcpService(tellAndEcho);
    await using container = await Container.start(Image.mmproxy, RAW_ALONE, [
      ...["-l", show(listen), "-4", tcp.address],
    ]);
    await said(container, /Listening on/);
    using client = await Stream.connect(listen.port);
    await client.send(v2(CLIENT, BALANCER));
    assert.equal(await client.line(), show(CLIENT));
    assert.equal(await container.stopAsDocker(), 0, await container.log());
    assert.match(await container.log(), /1 connection has 8 s to finish[^]* Stopped/);
  },
);

realPeerTest(
  "container: without CAP_NET_RAW it does not start, and says why",
  NEEDS,
  async () => {
    await using container = await Container.start(Image.mmproxy, ["--cap-drop=all"], []);
    assert.equal(await container.ended(), 2);
    assert.match(
      await container.log(),
      /^mmproxy: Cannot use the clients' addresses: [^\n]*CAP_NET_RAW[^\n]*$/m,
    );
  },
);

realPeerTest(
  "container: prints its version, and has no programs but Deno and the launcher's shell",
  NEEDS,
  async () => {
    await using container = await Container.start(Image.mmproxy, RAW_ALONE, ["--version"]);
    assert.equal(await container.ended(), 0);
    assert.match(await container.log(), /^mmproxy \d+\.\d+\.\d+$/m);
    await using shell = await Container.start(
      Image.mmproxy,
      [...RAW_ALONE, "--entrypoint=/bin/sh"],
      [
        "-c",
        'for name in /bin/* /usr/bin/* /usr/local/bin/* /sbin/*; do [ -e "$name" ] && echo "$name"; done',
      ],
    );
    await shell.ended();
    assert.deepEqual((await shell.log()).trim().split("\n"), ["/bin/sh", "/usr/local/bin/deno"]);
  },
);

realPeerTest(
  "container: two on one network both start, and flags come from the environment",
  NEEDS,
  async () => {
    const ends = [1, 2].map(() => ({ ip: "127.0.0.1", port: freePort() }));
    await using tcp = new TcpService(tellAndEcho);
    const start = (listen: { ip: string; port: number }) =>
      Container.start(Image.mmproxy, [
        ...RAW_ALONE,
        `--env=MMPROXY_LISTEN_ADDR=${show(listen)}`,
        `--env=MMPROXY_IPV4=${tcp.address}`,
      ], []);
    await using one = await start(ends[0]!);
    await using other = await start(ends[1]!);
    for (const [index, container] of [one, other].entries()) {
      await said(container, /Listening on/);
      await assertSeenOverTcp(ends[index]!, CLIENT, BALANCER);
    }
  },
);
