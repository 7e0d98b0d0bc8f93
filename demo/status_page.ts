/**
 * The status page under load, in a network of its own: `deno run -A demo/status_page.ts [seconds] [folder]`.
 * With a folder it takes pictures there, as docs/images has them, for which it needs chromium.
 */
import { fileURLToPath } from "node:url";
import { Browser, type View } from "../tests/e2e/support/browser.ts";
import { freePort, show } from "../tests/e2e/support/endpoints.ts";
import { v2 } from "../tests/e2e/support/headers.ts";
import { runInNamespace } from "../tests/e2e/support/namespace.ts";
import { Program } from "../tests/e2e/support/program.ts";
import { Scratch } from "../tests/e2e/support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "../tests/e2e/support/tcp.ts";
import { pause } from "../tests/e2e/support/time.ts";
import { tell, UdpService, UdpSocket } from "../tests/e2e/support/udp.ts";

const INSIDE = "--inside";
const BALANCER = { ip: "198.51.100.1", port: 443 };
const PICTURES: readonly (readonly [name: string, view: View])[] = [
  ["status-page", { width: 1200, height: 1180, scheme: "light" }],
  ["status-page-dark", { width: 1200, height: 1180, scheme: "dark" }],
  ["status-page-phone", { width: 360, height: 1340, scheme: "light" }],
  ["status-page-phone-dark", { width: 360, height: 1340, scheme: "dark" }],
];

if (Deno.args[0] === INSIDE) await perform(Number(Deno.args[1]), Deno.args[2]);
else {
  const [seconds = "60", ...folder] = Deno.args;
  const deno = [Deno.execPath(), "run", "--quiet", "--allow-all", "--cached-only"];
  const self = fileURLToPath(import.meta.url);
  Deno.exit(await runInNamespace([...deno, self, INSIDE, seconds, ...folder]));
}

async function perform(seconds: number, folder: string | undefined): Promise<void> {
  await using scratch = await Scratch.make();
  await using web = new TcpService(tellAndEcho);
  await using dns = await UdpService.start(tell);
  const ports = { web: freePort(), mail: freePort(), dns: freePort(), guarded: freePort() };
  const metrics = show({ ip: "127.0.0.1", port: freePort() });
  const listener = (name: keyof typeof ports, upstream: string, subnet: string, more = "") =>
    `[[listener]]
name = "${name}"
listen = "127.0.0.1:${ports[name]}"
ipv4 = "${upstream}"
allowed-subnets = ["${subnet}"]
${more}
`;
  const file = await scratch.write(
    "mmproxy.toml",
    `metrics-addr = "${metrics}"\n` + [
      listener("web", web.address, "127.0.0.0/8"),
      listener("mail", "127.0.0.1:25", "127.0.0.0/8"),
      listener("dns", dns.address, "127.0.0.0/8", 'protocol = "udp"'),
      listener("guarded", web.address, "192.0.2.0/24"),
    ].join(""),
  );
  await using _program = await Program.start({
    config: file,
    logLevel: "info",
    permissions: [`--allow-net=${metrics}`],
  });
  console.log(`http://${metrics}/ in this network, for ${seconds} s`);
  const ended = new AbortController();
  const load = [
    ...Array.from({ length: 12 }, (_, index) => relay(ports.web, index, ended.signal)),
    ask(ports.dns, ended.signal),
    refuse(ports, ended.signal),
  ];
  if (folder === undefined) await pause(seconds * 1000);
  else await takePictures(`http://${metrics}/`, seconds, folder);
  ended.abort();
  await Promise.allSettled(load);
}

async function takePictures(url: string, seconds: number, folder: string): Promise<void> {
  await using browser = await Browser.start();
  const [[, first] = []] = PICTURES;
  if (!first) return;
  const page = await browser.open(url, first);
  await pause(seconds * 1000);
  for (const [name, view] of PICTURES) {
    await page.look(view);
    await pause(2_500);
    await Deno.writeFile(`${folder}/${name}.png`, await page.screenshot());
  }
  for (const complaint of page.complaints) console.error(complaint);
}

/** Connections of changing length and weight. */
async function relay(port: number, index: number, signal: AbortSignal): Promise<void> {
  for (let round = 0; !signal.aborted; round++) {
    using stream = await Stream.connect(port);
    await stream.send(v2({ ip: `192.0.2.${10 + index}`, port: 20_000 + round }, BALANCER));
    await stream.line();
    const wave = 1 + Math.sin(Date.now() / 9_000 + index / 3);
    for (let turn = 0; turn < 5 && !signal.aborted; turn++) {
      const data = new Uint8Array(Math.ceil(2_000 + 60_000 * wave));
      await stream.send(data);
      await stream.exactly(data.length);
      await pause(40 + 400 * Math.random());
    }
  }
}

async function ask(port: number, signal: AbortSignal): Promise<void> {
  await using peer = await UdpSocket.open();
  for (let round = 0; !signal.aborted; round++) {
    const client = { ip: `203.0.113.${1 + round % 40}`, port: 30_000 };
    await peer.send(
      { ip: "127.0.0.1", port },
      v2(client, BALANCER, { datagram: true }),
      "question",
    );
    await pause(60);
  }
}

async function refuse(ports: Record<string, number>, signal: AbortSignal): Promise<void> {
  const header = v2({ ip: "127.0.0.1", port: 1 }, BALANCER);
  const from = v2({ ip: "192.0.2.200", port: 0 }, BALANCER);
  const attempts: [port: number | undefined, words: Uint8Array | string][] = [
    [ports.web, "GET /index.html HTTP/1.1\r\nHost: www.example.org\r\n\r\n"],
    [ports.web, "PROXY TCP4 192.0.2.1 198.51.100.1 99999 443\r\n"],
    [ports.mail, from],
    [ports.guarded, header],
    [ports.web, "\x16\x03\x01\x02\x00"],
    [ports.web, "<img src=x onerror=alert(1)>\r\n"],
  ];
  for (let round = 0; !signal.aborted; round++) {
    const [port, words] = attempts[round % attempts.length]!;
    using stream = await Stream.connect(port ?? 0);
    await stream.send(words).catch(() => {});
    await stream.end().catch(() => {});
    await pause(100 + 1_500 * Math.random() ** 2);
  }
}
