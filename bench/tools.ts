/**
 * Loads that other programs make: the set-ups that mmproxy-rs and go-mmproxy publish numbers of.
 * What is not installed is requested by name; nothing of theirs is here.
 */

import { installed, isFile } from "../tests/e2e/support/real_peers.ts";
import { Network } from "./namespace.ts";

/** Each load's name, and the programs that it takes. */
export const TOOLS = {
  tcpkali: ["tcpkali"],
  "iperf-udppp": ["iperf", "udppp"],
} as const;

export type ToolLoad = keyof typeof TOOLS;

/** Where the programs are, by name. */
export type ToolPaths = Readonly<Record<string, string>>;

/** Connections that tcpkali opens, as published, and how fast (its own default is 100). */
const TCPKALI_CONNECTIONS = ["--connections", "50", "--connect-rate", "1000"];
/** As published but for the client's address, which is one for documentation. */
const TCPKALI_HEADER = String.raw`PROXY TCP4 192.0.2.1 127.0.0.1 \{connection.uid} 25578\r\n`;
const TCPKALI_MESSAGE = String.raw`PING\r\n`;

/** Where udppp listens, and the client that sends to it over a cable. */
const UDPPP = { address: "198.51.100.1", port: "7000", client: "198.51.100.2" };
/** How long a program is given to listen. */
const SETTLE = 300;

/**
 * Looks for the programs that some loads take.
 *
 * @param given paths that the command line names.
 * @throws {Error} when one is neither given nor on the PATH.
 */
export function findTools(loads: readonly ToolLoad[], given: ToolPaths): ToolPaths {
  const names = new Set(loads.flatMap((load): readonly string[] => TOOLS[load]));
  return Object.fromEntries([...names].map((name) => {
    const path = name in given ? [given[name] ?? ""].find(isFile) : installed(name);
    if (path !== undefined) return [name, path];
    const where = given[name] ?? "on the PATH";
    throw new Error(`There is no ${name} ${where}: install it, or say --tool ${name}=PATH`);
  }));
}

/** What such a load is made of. */
export interface ToolTask {
  readonly tools: ToolPaths;
  readonly network: Network;
  readonly loadgen: string;
  /** `IP:port` of the program that is measured; undefined without one. */
  readonly proxy: string | undefined;
  /** `IP:port` of the service behind. */
  readonly service: string;
  readonly seconds: number;
}

/** Makes a load and returns what it measured, by the names that the load generator uses. */
export function runTool(load: ToolLoad, task: ToolTask): Promise<Record<string, number>> {
  return load === "tcpkali" ? runTcpkali(task) : runIperf(task);
}

async function runTcpkali(task: ToolTask): Promise<Record<string, number>> {
  const { network, loadgen, service, proxy, seconds, tools } = task;
  const echo = network.command([loadgen, "bpf-echo", "--server", service, "--seconds", "60"], {
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const errors = new Response(echo.stderr).text();
  try {
    const reader = echo.stdout.getReader();
    if ((await reader.read()).done) throw new Error((await errors).trim());
    await reader.cancel();
    const header = proxy === undefined ? [] : ["--first-message", TCPKALI_HEADER];
    return readTcpkali(
      await output(network, [
        ...[tools.tcpkali ?? "tcpkali", ...TCPKALI_CONNECTIONS, "--duration", `${seconds}s`],
        ...["--unescape-message-args", ...header, "--message", TCPKALI_MESSAGE],
        proxy ?? service,
      ]),
    );
  } finally {
    await echo.stdin.close();
    await echo.status;
    await errors;
  }
}

/**
 * Reads tcpkali's report.
 *
 * @throws {Error} when it has no result.
 */
export function readTcpkali(text: string): Record<string, number> {
  const [sent, received] = ["sent", "received"].map((word) =>
    Number(new RegExp(`^Total data ${word}:.*\\((\\d+) bytes\\)`, "m").exec(text)?.[1])
  );
  const seconds = Number(/^Test duration: ([\d.]+) s/m.exec(text)?.[1]);
  if (sent === undefined || received === undefined || !(sent + received + seconds > 0)) {
    throw new Error(`tcpkali: ${text.trim().slice(-300)}`);
  }
  const gigabits = (bytes: number) => bytes * 8e-9 / seconds;
  return {
    up_gbit: gigabits(sent),
    down_gbit: gigabits(received),
    operations: sent + received,
    seconds,
  };
}

async function runIperf(task: ToolTask): Promise<Record<string, number>> {
  const { network, service, proxy, seconds, tools } = task;
  const iperf = tools.iperf ?? "iperf";
  const [host = "", port = ""] = service.split(":");
  const [to = "", toPort = ""] = (proxy ?? service).split(":");
  // In its own network: on the same host, its address and port could not be used a second time.
  await using outside = await Network.open({});
  await network.connect(outside, UDPPP.address, UDPPP.client);
  const server = quietly(network, [iperf, "-s", "-u", "-B", host, "-p", port]);
  const wrapper = quietly(network, [
    ...[tools.udppp ?? "udppp", "-m", "1", "-b", "0.0.0.0", "-l", UDPPP.port],
    ...["-h", to, "-r", toPort, "-s", ...proxy === undefined ? [] : ["-p"]],
  ]);
  try {
    await new Promise((resolve) => setTimeout(resolve, SETTLE));
    return readIperf(
      await output(outside, [
        ...[iperf, "-c", UDPPP.address, "-p", UDPPP.port, "-R", "-u", "-b", "10G"],
        ...["-e", "-f", "m", "-t", `${seconds}`],
      ]),
    );
  } finally {
    for (const child of [server, wrapper]) {
      child.kill("SIGKILL");
      await child.status;
    }
  }
}

/**
 * Reads the report of an iperf 2 client that received datagrams.
 *
 * @throws {Error} when nothing came.
 */
export function readIperf(text: string): Record<string, number> {
  const line = text.trim().split("\n").findLast((line) => line.includes("bits/sec")) ?? "";
  const seconds = Number(/0\.0+-\s*([\d.]+) sec/.exec(line)?.[1]);
  const megabits = Number(/([\d.]+) Mbits\/sec/.exec(line)?.[1]);
  const [lost, all] = (/(\d+)\/\s*(\d+) \(/.exec(line) ?? []).slice(1).map(Number);
  if (lost === undefined || all === undefined || !(megabits > 0) || !(seconds > 0)) {
    throw new Error(`iperf: ${text.trim().slice(-300)}`);
  }
  const operations = all - lost;
  return {
    returned_per_second: operations / seconds,
    returned_gbit: megabits / 1000,
    lost_share: lost / all,
    operations,
    seconds,
  };
}

function quietly(network: Network, command: readonly string[]): Deno.ChildProcess {
  return network.command(command, { stdin: "null", stdout: "null", stderr: "null" }).spawn();
}

async function output(network: Network, command: readonly string[]): Promise<string> {
  const { stdout, stderr } = await network.command(command, { stdin: "null" }).output();
  const decoder = new TextDecoder();
  return decoder.decode(stdout) + decoder.decode(stderr);
}
