import assert from "node:assert/strict";
import { type Endpoint, show } from "./support/endpoints.ts";
import { text, v2 } from "./support/headers.ts";
import { Host } from "./support/host.ts";
import { type Ended, Program, runToEnd } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const CLIENT4 = "203.0.113.77";
const CLIENT6 = "2001:db8:77::77";
const BALANCER4 = { ip: "198.51.100.1", port: 443 };
const BALANCER6 = { ip: "2001:db8:1::1", port: 443 };
/** Addresses of the proxy's host towards others. */
const HERE4 = "192.0.2.1";
const HERE6 = "2001:db8:2::1";
const THERE4 = "192.0.2.2";
const THERE6 = "2001:db8:2::2";
const LOCAL4 = "198.51.100.50";
const LOCAL6 = "2001:db8:50::50";

/** A host as they are: packets to clients leave it by a default route, if nothing else is set. */
async function makeHost(): Promise<Host> {
  const host = await Host.make();
  await host.run(
    `ip link add out type veth peer name nobody
     ip link set nobody up
     ip link set out up
     ip neighbour add 203.0.113.2 lladdr 02:00:00:00:00:99 dev out
     ip -6 neighbour add 2001:db8:3::2 lladdr 02:00:00:00:00:99 dev out
     ip address add 203.0.113.1/30 dev out
     ip -6 address add 2001:db8:3::1/64 dev out nodad
     ip address add ${LOCAL4}/32 dev out
     ip -6 address add ${LOCAL6}/128 dev out nodad
     ip route add default via 203.0.113.2
     ip -6 route add default via 2001:db8:3::2
     echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter`,
  );
  return host;
}

/** Runs `routes`, and fails unless it ends with 0; what it printed. */
async function routes(action: string, flags: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await runToEnd(["routes", action, ...flags]);
  assert.equal(code, 0, stderr + stdout);
  assert.equal(stderr, "");
  return stdout;
}

/** All that routes up may change on the host. */
async function routing(host: Host): Promise<string> {
  return await host.run(
    `for family in -4 -6; do
       ip $family rule
       ip $family route show table all | grep -v "table local"
     done
     cd /proc/sys/net
     grep . ipv4/tcp_fwmark_accept ipv4/fwmark_reflect ipv6/fwmark_reflect`,
  );
}

interface Recipe {
  name: string;
  /** Where the service listens, and where the program is told that it is. */
  bound: string;
  named: string;
  transport: "tcp" | "udp";
  flags?: string[];
  /** The service's host, and what it needs. */
  elsewhere?: "told" | "by default";
}

const RECIPES: Recipe[] = [
  { name: "a loopback service", bound: "127.0.0.1", named: "127.0.0.1", transport: "tcp" },
  { name: "a loopback service", bound: "::1", named: "::1", transport: "tcp" },
  { name: "a loopback service", bound: "127.0.0.1", named: "127.0.0.1", transport: "udp" },
  { name: "a loopback service", bound: "::1", named: "::1", transport: "udp" },
  { name: "a wildcard service", bound: "0.0.0.0", named: "127.0.0.1", transport: "tcp" },
  { name: "a wildcard service", bound: "0.0.0.0", named: "127.0.0.1", transport: "udp" },
  { name: "a wildcard service", bound: "::", named: "::1", transport: "udp" },
  { name: "a wildcard service's other address", bound: "0.0.0.0", named: LOCAL4, transport: "udp" },
  { name: "a wildcard service's other address", bound: "::", named: LOCAL6, transport: "udp" },
  { name: "a service on another address", bound: LOCAL4, named: LOCAL4, transport: "tcp" },
  { name: "a service on another address", bound: LOCAL6, named: LOCAL6, transport: "tcp" },
  { name: "a service on another address", bound: LOCAL4, named: LOCAL4, transport: "udp" },
  { name: "a service on another address", bound: LOCAL6, named: LOCAL6, transport: "udp" },
  ...([LOCAL4, LOCAL6].map((ip): Recipe => ({
    name: "a service on another address, with a mark",
    bound: ip,
    named: ip,
    transport: "tcp",
    flags: ["--mark", "7"],
  }))),
  ...(["told", "by default"] as const).flatMap((elsewhere): Recipe[] => {
    const name = elsewhere === "told"
      ? "a service on another host, with the commands that it prints"
      : "a service on another host, which has this one as its gateway";
    return [
      { name, bound: THERE4, named: THERE4, transport: "tcp", elsewhere },
      { name, bound: THERE6, named: THERE6, transport: "tcp", elsewhere },
      { name, bound: THERE4, named: THERE4, transport: "udp", elsewhere },
      { name, bound: THERE6, named: THERE6, transport: "udp", elsewhere },
    ];
  }),
  {
    name: "a wildcard service on another host, with the commands that it prints",
    bound: "0.0.0.0",
    named: THERE4,
    transport: "udp",
    elsewhere: "told",
  },
];

for (const recipe of RECIPES) {
  const { name, named, transport } = recipe;
  const title = `routes up: ${name} (${transport}, ${named}) sees clients`;
  Deno.test(`${title}, neither before nor after routes down`, () => serves(recipe));
}

async function serves({ bound, named, transport, flags = [], elsewhere }: Recipe): Promise<void> {
  using host = await makeHost();
  using other = await makeHost();
  if (elsewhere) await join(host, other, elsewhere);
  await using service = await (elsewhere ? other : host).act(() => start(transport, bound));
  const upstream: Endpoint = { ip: named, port: service.port };
  await host.act(async () => {
    const all = [named.includes(":") ? "-6" : "-4", show(upstream), "-p", transport, ...flags];
    const before = await routing(host);
    await using program = await Program.start({ args: [...all, "--connect-timeout", "1"] });
    await assertNotServed(program, transport, named);

    const printed = await routes("up", all);
    if (elsewhere === "told") {
      const commands = printed.split("\n").filter((line) => line.startsWith("  "));
      await other.run(commands.join("\n"));
    }
    await assertServed(program, transport, named);
    const after = await routing(host);
    assert.notEqual(after, before);
    await routes("up", all);
    assert.equal(await routing(host), after, "a second routes up changes nothing");
    await routes("show", all);

    await routes("down", []);
    // Parameters of the kernel stay: another program may need them by now.
    assert.equal(onlyRoutes(await routing(host)), onlyRoutes(before));
    await assertNotServed(program, transport, named);
    assert.match(await routes("down", []), /Nothing to remove/);
    assert.equal((await runToEnd(["routes", "show", ...all])).code, 1);
  });
}

function onlyRoutes(routing: string): string {
  return routing.replace(/^ipv\d\/.*$/gm, "");
}

async function join(host: Host, other: Host, how: "told" | "by default"): Promise<void> {
  await host.connect("wire", other, "wire");
  await host.run(
    `ip address add ${HERE4}/24 dev wire; ip address add ${HERE6}/64 dev wire nodad`,
  );
  await other.run(
    `ip address add ${THERE4}/24 dev wire; ip address add ${THERE6}/64 dev wire nodad`,
  );
  if (how === "told") return;
  await other.run(
    `ip route replace default via ${HERE4}; ip -6 route replace default via ${HERE6}`,
  );
}

async function start(transport: "tcp" | "udp", ip: string) {
  if (transport === "tcp") return new TcpService(tellAndEcho, ip);
  const service = await UdpService.start(tell, ip);
  return Object.assign(service, { port: service.local.port });
}

let lastPort = 41_000;

/** A client of the service's family, each time with another port: the last one may linger. */
function nextClient(named: string): Endpoint {
  return { ip: named.includes(":") ? CLIENT6 : CLIENT4, port: ++lastPort };
}

function header(client: Endpoint, transport: "tcp" | "udp"): Uint8Array {
  const balancer = client.ip.includes(":") ? BALANCER6 : BALANCER4;
  return v2(client, balancer, { datagram: transport === "udp" });
}

async function assertServed(program: Program, transport: "tcp" | "udp", named: string) {
  const client = nextClient(named);
  if (transport === "tcp") {
    using stream = await Stream.connect(program.listen.port);
    await stream.send(header(client, transport), "hello");
    assert.equal(await stream.line(), show(client));
    assert.equal(text(await stream.exactly(5)), "hello");
    return;
  }
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(client, transport), "hello");
  assert.equal(text((await peer.receive()).data), `${show(client)} hello`);
}

async function assertNotServed(program: Program, transport: "tcp" | "udp", named: string) {
  const client = nextClient(named);
  const failures = () => program.all("connect_failed").length;
  const before = failures();
  if (transport === "tcp") {
    using stream = await Stream.connect(program.listen.port);
    await stream.send(header(client, transport), "hello");
    await stream.end();
    await eventually(() => failures() > before, "a failure to connect");
    return;
  }
  await using peer = await UdpSocket.open();
  await peer.send(program.listen, header(client, transport), "hello");
  await peer.silence();
}
