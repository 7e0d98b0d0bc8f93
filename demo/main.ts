/**
 * Shows the program at work, as any user: builds the library, enters a network of its own, starts
 * an echo service and the program, and sends real headers (`deno task demo`). Exits with 0 only
 * when the service saw the clients that the headers name.
 */

import { fileURLToPath } from "node:url";
import { type Endpoint, freePort, show } from "../tests/e2e/support/endpoints.ts";
import { text, v1, v2 } from "../tests/e2e/support/headers.ts";
import { runInNamespace } from "../tests/e2e/support/namespace.ts";
import { Program } from "../tests/e2e/support/program.ts";
import { Stream, TcpService, tellAndEcho } from "../tests/e2e/support/tcp.ts";
import { tell, UdpService, UdpSocket } from "../tests/e2e/support/udp.ts";

/** One header to send, and the client that it names. */
interface Scene {
  over: "TCP" | "UDP";
  version: string;
  client: Endpoint;
  header: Uint8Array;
}

/** What became of it. */
interface Outcome {
  /** The sender's own address: what a service sees without the program. */
  sender: string;
  /** What the service saw. */
  seen: string;
  /** Whether the payload came back unchanged. */
  echoed: boolean;
}

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const INSIDE = "--inside";
const PAYLOAD = "hello";
const CLIENT4 = { ip: "192.0.2.10", port: 51_000 };
const CLIENT6 = { ip: "2001:db8::10", port: 52_000 };
const BALANCER4 = { ip: "198.51.100.1", port: 443 };
const BALANCER6 = { ip: "2001:db8:1::1", port: 443 };

const SCENES: Scene[] = [
  { over: "TCP", version: "v1", client: CLIENT4, header: v1(CLIENT4, BALANCER4) },
  { over: "TCP", version: "v2", client: CLIENT6, header: v2(CLIENT6, BALANCER6) },
  {
    over: "UDP",
    version: "v2",
    client: CLIENT4,
    header: v2(CLIENT4, BALANCER4, { datagram: true }),
  },
  {
    over: "UDP",
    version: "v2",
    client: CLIENT6,
    header: v2(CLIENT6, BALANCER6, { datagram: true }),
  },
];

Deno.exit(Deno.args[0] === INSIDE ? await perform() : await prepare());

/** Builds what is missing and continues in a network of its own; returns the exit code. */
async function prepare(): Promise<number> {
  console.log("Building the native core (the first time in about a minute)");
  await run("cargo", ["build", "--release", "--package", "mmproxy-ffi"]);
  // The network that follows reaches no registry.
  console.log("Fetching packages");
  await run(Deno.execPath(), ["cache", "--quiet", "main.ts"]);
  console.log("Starting an upstream and mmproxy in a network namespace");
  const self = fileURLToPath(import.meta.url);
  const deno = [Deno.execPath(), "run", "--quiet", "--allow-all", "--cached-only"];
  return await runInNamespace([...deno, self, INSIDE]);
}

async function run(command: string, args: string[]): Promise<void> {
  const { success, code } = await new Deno.Command(command, { args, cwd: ROOT }).spawn().status;
  if (!success) Deno.exit(code);
}

/** Plays every scene and prints it; returns the exit code. */
async function perform(): Promise<number> {
  const port = freePort();
  await using _tcp4 = new TcpService(tellAndEcho, "127.0.0.1", port);
  await using _tcp6 = new TcpService(tellAndEcho, "::1", port);
  await using _udp4 = await UdpService.start(tell, "127.0.0.1", port);
  await using _udp6 = await UdpService.start(tell, "::1", port);
  await using program = await Program.start({
    args: ["-p", "both", "-4", `127.0.0.1:${port}`, "-6", `[::1]:${port}`],
  });
  console.log(`
mmproxy listens on ${show(program.listen)}, TCP and UDP, in a private network and without root.
Its upstream is an echo server on 127.0.0.1:${port} and [::1]:${port} that does not understand the PROXY protocol.
`);
  console.log(row("header", "client in the header", "sent from", "upstream saw", ""));
  let right = 0;
  for (const { over, version, client, header } of SCENES) {
    const play = over === "TCP" ? playTcp : playUdp;
    const { sender, seen, echoed } = await play(program.listen, header);
    const good = seen === show(client) && echoed;
    if (good) right++;
    const verdict = good ? "correct" : "WRONG";
    console.log(row(`PROXY ${version} over ${over}`, show(client), sender, seen, verdict));
  }
  await program.stop();
  console.log(`
${right} of ${SCENES.length} correct: the upstream saw the client's address, not the proxy's, and the payload came back.
`);
  return right === SCENES.length ? 0 : 1;
}

async function playTcp(to: Endpoint, header: Uint8Array): Promise<Outcome> {
  using connection = await Stream.connect(to.port, to.ip);
  await connection.send(header, PAYLOAD);
  const seen = await connection.line();
  const echoed = text(await connection.exactly(PAYLOAD.length)) === PAYLOAD;
  return { sender: connection.local, seen, echoed };
}

async function playUdp(to: Endpoint, header: Uint8Array): Promise<Outcome> {
  await using socket = await UdpSocket.open();
  await socket.send(to, header, PAYLOAD);
  const [seen = "", payload] = text((await socket.receive()).data).split(" ");
  return { sender: show(socket.local), seen, echoed: payload === PAYLOAD };
}

function row(...cells: string[]): string {
  const widths = [19, 23, 17, 23, 0];
  return `  ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("")}`.trimEnd();
}
