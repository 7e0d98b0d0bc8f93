/** The programs that are compared: none at all, ours, HAProxy, nginx, and any that a user names. */

import { streamModule } from "../tests/e2e/support/nginx.ts";

export type Protocol = "tcp" | "udp";

/** Where a program listens, where it forwards to, and where it may keep its files. */
export interface Place {
  readonly protocol: Protocol;
  /** It is for bulk throughput, so that peers may be given what they need for it. */
  readonly bulk: boolean;
  readonly listen: string;
  /** How many ports from that one on lead to the same service. */
  readonly ports: number;
  readonly v4: string;
  readonly v6: string;
  /** The one of them that the load serves. */
  readonly service: string;
  /** The load, its clients and the service are on IPv6. */
  readonly ipv6: boolean;
  /** A file with the subnets that may send headers. */
  readonly subnets: string;
  /** A directory of its own. */
  readonly directory: string;
  /** How many threads the work asks for; undefined for the program's own number. */
  readonly threads?: number | undefined;
}

/**
 * Where a program stands: with as many threads as the machine has processors, or with one thread,
 * to compare what each core does.
 */
export type Table = "fair" | "each core";

export interface Program {
  readonly name: string;
  readonly protocols: readonly Protocol[];
  readonly table: Table;
  /** It can be started with any number of threads. */
  readonly takesThreads: boolean;
  /** What it is, for the report: no path of this machine. */
  readonly version: string;
  readonly description: string;
  /** Writes the files that it needs and returns its command; empty for no program at all. */
  command(place: Place): string[];
}

/** Where the release is laid out that is measured. */
export const RELEASE = new URL("../dist/bench", import.meta.url).pathname;

/** Straight from the load to its server: the most that the machine and the load can do. */
export const noProxy: Program = {
  name: "no proxy",
  protocols: ["tcp", "udp"],
  table: "fair",
  takesThreads: false,
  version: "",
  description: "",
  command: () => [],
};

/** Where a program listens that takes a range of ports: `127.0.0.1:8443-9442`. */
function range({ listen, ports }: Place): string {
  return ports > 1 ? `${listen}-${portOf(listen) + ports - 1}` : listen;
}

function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(":") + 1));
}

/**
 * This program. With TCP it has a worker for each processor, with UDP the one that is its default.
 *
 * @param workers how many instead; then it is measured with TCP alone.
 */
export function ours(name = "ours", workers?: number): Program {
  const args = (place: Place) => [
    ...["-l", range(place), "-4", place.v4, "-6", place.v6],
    ...["-p", place.protocol, "-a", place.subnets],
    ...place.protocol === "udp" ? [] : ["--workers", `${place.threads ?? workers ?? "auto"}`],
  ];
  return {
    name,
    protocols: workers === undefined ? ["tcp", "udp"] : ["tcp"],
    table: tableOf(workers),
    takesThreads: true,
    version: `Deno ${Deno.version.deno}`,
    description: ["mmproxy", ...args(DESCRIBED)].join(" "),
    command: (
      place,
    ) => ["env", `MMPROXY_DENO=${Deno.execPath()}`, `${RELEASE}/bin/mmproxy`, ...args(place)],
  };
}

function tableOf(threads: number | undefined): Table {
  return threads === 1 ? "each core" : "fair";
}

/** A place whose names stand for themselves, for descriptions. */
const DESCRIBED: Place = {
  protocol: "{protocol}" as Protocol,
  bulk: false,
  listen: "{listen}",
  ports: 1,
  v4: "{v4}",
  v6: "{v6}",
  service: "{service}",
  ipv6: false,
  subnets: "{subnets}",
  directory: "{directory}",
};

/** The buffers of HAProxy and nginx: 64 KiB double their bulk throughput; else their own default. */
const BUFFER = { bulk: 65_536, other: 16_384 };

/** What HAProxy and nginx are configured with at a work. */
function tuning(place: Place, own: number | undefined): { threads: number; buffer: number } {
  return {
    threads: place.threads ?? own ?? navigator.hardwareConcurrency,
    buffer: place.bulk ? BUFFER.bulk : BUFFER.other,
  };
}

/**
 * HAProxy; undefined when it is not installed.
 *
 * @param threads how many, or undefined for one on each processor.
 */
export async function haproxy(name: string, threads?: number): Promise<Program | undefined> {
  const version = await firstLine(["haproxy", "-v"], /version (\S+)/);
  if (version === undefined) return undefined;
  const configuration = (place: Place) => {
    const tuned = tuning(place, threads);
    return `
global
  nbthread ${tuned.threads}
  maxconn 7500
  tune.bufsize ${tuned.buffer}
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option splice-auto
listen bench
  bind ${range(place)} accept-proxy
  server service ${place.service} source ${place.ipv6 ? "[::]" : "0.0.0.0"} usesrc clientip
`;
  };
  return configured({
    name,
    version,
    table: tableOf(threads),
    configuration,
    command: (path) => ["haproxy", "-db", "-f", path],
  });
}

/**
 * nginx's stream module; undefined when it is not installed.
 *
 * @param workers how many, or undefined for one on each processor.
 */
export async function nginx(name: string, workers?: number): Promise<Program | undefined> {
  const version = await firstLine(["nginx", "-v"], /nginx\/(\S+)/);
  if (version === undefined) return undefined;
  const load = streamModule === undefined ? "" : `load_module ${streamModule};`;
  const configuration = (place: Place) => {
    const tuned = tuning(place, workers);
    return `
daemon off;
user root;
worker_processes ${tuned.threads};
error_log stderr error;
pid ${place.directory}/nginx.pid;
events { worker_connections 20000; }
stream {
  proxy_buffer_size ${tuned.buffer};
  server {
    listen ${range(place)} proxy_protocol${tuned.threads > 1 ? " reuseport" : ""};
    proxy_bind $proxy_protocol_addr transparent;
    proxy_pass ${place.service};
    proxy_half_close on;
  }
}
`;
  };
  return configured({
    name,
    version,
    table: tableOf(workers),
    configuration,
    machine: load,
    command: (path, { directory }) => ["nginx", "-p", directory, "-e", "stderr", "-c", path],
  });
}

interface Configured {
  readonly name: string;
  readonly version: string;
  readonly table: Table;
  configuration(place: Place): string;
  /** What goes before the configuration on this machine, and not into its description. */
  readonly machine?: string;
  command(path: string, place: Place): string[];
}

/** A TCP program that is started with a file. */
function configured(program: Configured): Program {
  const { name, version, table, configuration, machine = "", command } = program;
  return {
    name,
    version,
    table,
    takesThreads: true,
    protocols: ["tcp"],
    description: describeBoth(configuration),
    command: (place) => {
      const path = `${place.directory}/configuration`;
      Deno.writeTextFileSync(path, `${machine}${configuration(place)}`);
      return command(path, place);
    },
  };
}

/** The two configurations that a peer is run with. */
function describeBoth(configuration: (place: Place) => string): string {
  const [bulk, other] = [true, false].map((bulk) => configuration({ ...DESCRIBED, bulk }).trim());
  return `Bulk:\n${bulk}\n\nOthers:\n${other}`;
}

/**
 * A program from `--peer name=command`.
 *
 * @param text the command's words are separated by spaces; `{listen}`, `{v4}`, `{v6}`, `{subnets}`
 *   and `{protocol}` stand for their values. Without `{protocol}` it serves TCP alone, or the
 *   protocol that the name ends with: `name/udp=command`.
 * @throws {Error} when it is not of that form.
 */
export function customPeer(text: string): Program {
  const match = /^([^=/]+)(?:\/(tcp|udp))?=(.+)$/s.exec(text);
  const [, name, protocol, template] = match ?? [];
  if (name === undefined || template === undefined) {
    throw new Error(`Peer ${JSON.stringify(text)} is not of the form name='command {listen} ...'`);
  }
  const words = template.trim().split(/\s+/);
  const protocols: Protocol[] = protocol === "tcp" || protocol === "udp"
    ? [protocol]
    : template.includes("{protocol}")
    ? ["tcp", "udp"]
    : ["tcp"];
  const [program = "", ...rest] = words;
  return {
    name,
    protocols,
    table: "fair",
    takesThreads: false,
    version: "",
    description: [program.slice(program.lastIndexOf("/") + 1), ...rest].join(" "),
    command: (place) =>
      place.ports === 1 ? words.map((word) => fill(word, place)) : forEachPort(words, place),
  };
}

/** A program with one port is started once for each of them, by a shell that waits for all. */
function forEachPort(words: readonly string[], place: Place): string[] {
  const { listen, ports, directory } = place;
  const host = listen.slice(0, listen.lastIndexOf(":"));
  const quoted = (word: string) => `'${word.replaceAll("'", "'\\''")}'`;
  const lines = Array.from({ length: ports }, (_, index) => {
    const one = { ...place, listen: `${host}:${portOf(listen) + index}` };
    return `${words.map((word) => quoted(fill(word, one))).join(" ")} &`;
  });
  const path = `${directory}/start.sh`;
  Deno.writeTextFileSync(path, [...lines, "wait", ""].join("\n"));
  return ["sh", path];
}

function fill(word: string, place: Place): string {
  const { listen, v4, v6, subnets, protocol } = place;
  const values: Record<string, string> = { listen, v4, v6, subnets, protocol };
  return word.replaceAll(/\{(\w+)\}/g, (placeholder, name: string) => values[name] ?? placeholder);
}

async function firstLine(command: string[], pattern: RegExp): Promise<string | undefined> {
  const output = await outputOf(command);
  return output === undefined ? undefined : pattern.exec(output)?.[1] ?? "unknown";
}

/** Both outputs of a command; undefined when there is no such command. */
async function outputOf([program = "", ...args]: string[]): Promise<string | undefined> {
  try {
    const { stdout, stderr } = await new Deno.Command(program, { args }).output();
    const decoder = new TextDecoder();
    return decoder.decode(stdout) + decoder.decode(stderr);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
