/** The lines of the benchmark: which load, and what it is judged by. */

import type { Protocol } from "./programs.ts";
import type { Metric } from "./result.ts";
import type { ToolLoad } from "./tools.ts";

/** How a work is measured. */
export type Kind =
  /** One load for this many seconds. */
  | "load"
  /** Memory while many connections are held open. */
  | "idle"
  /** From the program's start to its first connection. */
  | "startup"
  /** The highest rate that is carried nearly without loss, by bisection. */
  | "highest-rate"
  /** Many ports: start, memory, and one load over all of them. */
  | "ports"
  /** One load while other connections are open: what opening and closing costs stays out. */
  | "open"
  /** Memory with one thread, and what a second one adds. */
  | "memory";

export interface Work {
  readonly name: string;
  readonly title: string;
  readonly protocol: Protocol;
  readonly kind: Kind;
  /** Throughput of a few busy connections is requested: peers are configured for that. */
  readonly bulk?: boolean;
  /** The load generator's command and its options. */
  readonly load: readonly string[];
  /** The load is made by programs that are not ours. */
  readonly tool?: ToolLoad;
  /** Measured only when requested by name. */
  readonly byName?: boolean;
  /** How many ports there are, from the first one on; 1, unless said. */
  readonly ports?: number;
  /** One-threaded programs are measured, too. */
  readonly eachCore?: boolean;
  /** Settings of the network that the work requests, by their dotted names. */
  readonly sysctls?: Readonly<Record<string, string>>;
  /** The first is the one that programs are ranked by. */
  readonly metrics: readonly Metric[];
  /** What the processor time is divided by: this many of the load's operations. */
  readonly operationsPerCost: number;
  /** It is part of `--quick`. */
  readonly quick: boolean;
  /** It is measured in no more rounds than these: it takes long, or varies little. */
  readonly mostRounds?: number;
  /**
   * How long a load is measured, in shares of the run's length of a sample (1, unless said); 0 when
   * it ends by itself.
   */
  readonly share?: number;
}

/** The name under which the cost of an operation stands among a sample's numbers. */
export const COST = "cpu_per_operation";

const eachWay: Metric = {
  name: "each_way_gbit",
  label: "each way",
  unit: "Gbit/s",
  better: "more",
};
const perSecond = (unit: string): Metric => ({
  name: "per_second",
  label: "rate",
  unit: `${unit}/s`,
  better: "more",
});
const delivered: Metric = {
  name: "delivered_per_second",
  label: "delivered",
  unit: "datagrams/s",
  better: "more",
};
const returned: Metric = {
  name: "returned_per_second",
  label: "returned",
  unit: "replies/s",
  better: "more",
};
const cost = (unit: string): Metric => ({ name: COST, label: "CPU", unit, better: "less" });
const times: readonly Metric[] = [
  { name: "p50_us", label: "p50", unit: "µs", better: "less" },
  { name: "p99_us", label: "p99", unit: "µs", better: "less" },
  { name: "p999_us", label: "p99.9", unit: "µs", better: "less" },
];

function bulk(connections: number, options: { quick: boolean; copy: boolean }): Work {
  const { quick, copy } = options;
  return {
    name: `bulk-${connections}${copy ? "-copy" : ""}`,
    title: `TCP bulk, ${connections} connections, both directions together` +
      (copy ? ", receivers copy" : ""),
    protocol: "tcp",
    kind: "load",
    load: ["tcp-bulk", "--connections", `${connections}`, ...copy ? ["--copy"] : []],
    bulk: true,
    eachCore: !copy,
    // Windows and buffers take a while to find their sizes, and stalls are rare but long: what a
    // longer sample evens out, a further round does not.
    share: 4,
    mostRounds: 7,
    metrics: [
      eachWay,
      cost("ms/GB"),
      { name: "slowest_tenth", label: "slowest 0.1 s", unit: "of the mean", better: "more" },
    ],
    operationsPerCost: 1e6,
    quick,
  };
}

function connectionRate(atOnce: number): Work {
  const [p50, ...others] = times;
  const rate = perSecond("connections");
  const first = atOnce === 1 && p50 !== undefined ? [p50, rate] : [rate, ...p50 ? [p50] : []];
  return {
    name: `rate-${atOnce}`,
    title: `New TCP connections, ${atOnce} at once`,
    protocol: "tcp",
    kind: "load",
    load: ["tcp-rate", "--at-once", `${atOnce}`],
    metrics: [...first, cost("µs/connection"), ...others],
    operationsPerCost: 1,
    quick: true,
    eachCore: true,
  };
}

function pingPong(connections: number, storm: number, quick: boolean): Work {
  const behind = storm > 0
    ? `, with ${storm.toLocaleString("en-US")} new connections/s beside it`
    : "";
  return {
    name: storm > 0 ? `pingpong-${connections}-storm` : `pingpong-${connections}`,
    title: `TCP ping-pong of 64 bytes, ${count(connections, "connection")}${behind}`,
    protocol: "tcp",
    kind: "load",
    load: ["tcp-pingpong", "--connections", `${connections}`, "--storm", `${storm}`],
    metrics: [perSecond("exchanges"), ...times, ...storm > 0 ? [] : [cost("µs/exchange")]],
    operationsPerCost: 1,
    quick,
    eachCore: true,
  };
}

/** Connections of `open` that exchange; all others are idle. */
const ACTIVE = 10;

/** Whether an event costs more the more connections are open. */
function open(connections: number): Work {
  return {
    name: `open-${connections}`,
    title: `TCP ping-pong of 64 bytes on ${ACTIVE} of ` +
      `${connections.toLocaleString("en-US")} open connections`,
    protocol: "tcp",
    kind: "open",
    load: [
      ...["tcp-pingpong", "--connections", `${ACTIVE}`],
      ...["--held", `${connections - ACTIVE}`],
    ],
    metrics: [perSecond("exchanges"), cost("µs/exchange"), ...times],
    operationsPerCost: 1,
    quick: false,
    mostRounds: 3,
  };
}

/** What a connection costs that was opened a while before: what a program does for established ones counts here. */
function lasting(connections: number): Work {
  return {
    name: `lasting-${connections}`,
    title: `TCP ping-pong of 64 bytes, ${count(connections, "connection")} of two seconds and more`,
    protocol: "tcp",
    kind: "open",
    load: [
      ...["tcp-pingpong", "--connections", `${connections}`],
      ...["--held", "0", "--warm-up", "2"],
    ],
    metrics: [perSecond("exchanges"), cost("µs/exchange"), ...times],
    operationsPerCost: 1,
    quick: false,
    mostRounds: 4,
  };
}

interface UdpOptions {
  readonly clients: number;
  readonly size: number;
  /** Datagrams a second, 0 for as fast as it goes. */
  readonly rate: number;
  readonly quick?: boolean;
  /** The load sends its datagrams one by one, not in segments that the kernel cuts apart. */
  readonly single?: boolean;
}

function udp(mode: "sink" | "echo", options: UdpOptions): Work {
  const { clients, size, rate, quick = false, single = false } = options;
  const pace = rate > 0 ? `at ${rate / 1000},000/s` : "flooded";
  const target = mode === "sink" ? "into a sink" : "echo";
  const name = [`${mode}-${clients}-${size}`];
  if (rate > 0) name.push(`${rate / 1000}k`);
  if (single) name.push("single");
  return {
    name: name.join("-"),
    title: `UDP ${target}, ${pace}, ${size} bytes, ${count(clients, "client")}` +
      (single ? ", sent one by one" : ""),
    protocol: "udp",
    kind: "load",
    load: [
      ...["udp", "--mode", mode, "--clients", `${clients}`, "--size", `${size}`],
      ...["--rate", `${rate}`],
      // A flood must not be limited by its sender; a paced load is to come as from a network.
      ...rate === 0 && !single ? ["--segments"] : [],
    ],
    metrics: [
      mode === "sink" ? delivered : returned,
      cost("µs/datagram"),
      // A flood's replies have stood in full queues: how long says nothing.
      ...rate > 0 ? times : [],
      ...rate > 0
        ? [{ name: "lost_share", label: "lost", unit: "of those sent", better: "less" } as const]
        : [],
    ],
    operationsPerCost: 1,
    quick,
    // The ratios are far from 1: a few rounds show them.
    mostRounds: 3,
  };
}

/** A program at this many ports, all of which lead to the same service. */
function ports(count: number, protocol: Protocol): Work {
  const [load, noun] = protocol === "tcp"
    ? [["tcp-rate", "--at-once", "32"], "connections"]
    : [["udp-flows", "--at-once", "32", "--count", "8000"], "flows"];
  const many = count === 1 ? "1 port" : `${count.toLocaleString("en-US")} ports`;
  return {
    name: protocol === "tcp" ? `ports-${count}` : `ports-${count}-udp`,
    title: `${many}, ${protocol.toUpperCase()}: new ${noun} over all of them, 32 at once`,
    protocol,
    kind: "ports",
    ports: count,
    load: [...load, "--ports", `${count}`],
    metrics: [
      perSecond(noun),
      { name: "listening_ms", label: "start", unit: "ms", better: "less" },
      { name: "mib", label: "memory", unit: "MiB", better: "less" },
    ],
    operationsPerCost: 1,
    quick: false,
    byName: count === 100,
    mostRounds: 2,
    ...protocol === "udp" ? { share: 0 } : {},
  };
}

/** Every line, in the order in which they are measured and shown. */
export const WORKS: readonly Work[] = [
  bulk(50, { quick: true, copy: false }),
  bulk(4, { quick: true, copy: false }),
  bulk(50, { quick: false, copy: true }),
  connectionRate(32),
  connectionRate(1),
  pingPong(32, 0, true),
  pingPong(32, 2000, false),
  pingPong(1, 0, false),
  lasting(32),
  open(10),
  open(1000),
  // Two files for each, and a quarter more for HAProxy's pipes: all that a limit of 20,000 allows.
  open(7000),
  {
    name: "idle",
    title: "5,000 idle TCP connections, memory of all processes",
    protocol: "tcp",
    kind: "idle",
    load: ["tcp-idle", "--connections", "5000"],
    metrics: [{
      name: "kib_per_connection",
      label: "memory",
      unit: "KiB/connection",
      better: "less",
    }],
    operationsPerCost: 1,
    quick: true,
    mostRounds: 2,
  },
  {
    name: "memory",
    title: "Resident memory of all processes after 64 connections, with one and with two threads",
    protocol: "tcp",
    kind: "memory",
    load: ["tcp-idle", "--connections", "64"],
    metrics: [
      { name: "one_mb", label: "one thread", unit: "MB", better: "less" },
      {
        name: "further_mb",
        label: "a second one adds",
        unit: "MB",
        better: "less",
        absolute: true,
      },
    ],
    operationsPerCost: 1,
    quick: false,
    mostRounds: 5,
  },
  {
    name: "startup",
    title: "Start to first accepted connection",
    protocol: "tcp",
    kind: "startup",
    load: ["startup"],
    metrics: [
      { name: "accepted_ms", label: "accepted", unit: "ms", better: "less" },
      { name: "answered_ms", label: "answered", unit: "ms", better: "less" },
    ],
    operationsPerCost: 1,
    quick: true,
  },
  udp("sink", { clients: 1, size: 200, rate: 0 }),
  udp("sink", { clients: 16, size: 200, rate: 0, quick: true }),
  udp("sink", { clients: 512, size: 200, rate: 0 }),
  udp("sink", { clients: 16, size: 64, rate: 0 }),
  udp("sink", { clients: 16, size: 1200, rate: 0 }),
  udp("sink", { clients: 16, size: 200, rate: 0, single: true }),
  udp("echo", { clients: 1, size: 200, rate: 0 }),
  udp("echo", { clients: 16, size: 200, rate: 0, quick: true }),
  udp("echo", { clients: 512, size: 200, rate: 0 }),
  udp("echo", { clients: 16, size: 200, rate: 50_000 }),
  udp("echo", { clients: 16, size: 200, rate: 150_000, quick: true }),
  {
    name: "echo-16-200-highest",
    title: "UDP echo, 200 bytes, 16 clients: highest rate with at most 0.1 % lost",
    protocol: "udp",
    kind: "highest-rate",
    load: ["udp", "--mode", "echo", "--clients", "16", "--size", "200"],
    metrics: [{ name: "highest_rate", label: "carried", unit: "datagrams/s", better: "more" }],
    operationsPerCost: 1,
    quick: false,
    mostRounds: 2,
  },
  {
    name: "flows",
    title: "New UDP flows, 32 at once",
    protocol: "udp",
    kind: "load",
    load: ["udp-flows", "--at-once", "32", "--count", "8000"],
    metrics: [perSecond("flows"), cost("µs/flow"), ...times],
    operationsPerCost: 1,
    quick: false,
    share: 0,
    mostRounds: 3,
  },
  ports(1, "tcp"),
  ports(100, "tcp"),
  ports(1000, "tcp"),
  ports(1, "udp"),
  ports(100, "udp"),
  ports(1000, "udp"),
  {
    name: "tcpkali",
    title: "As published by others: tcpkali, 50 connections, a BPF echo behind",
    protocol: "tcp",
    kind: "load",
    bulk: true,
    load: [],
    tool: "tcpkali",
    byName: true,
    // Segments come back as they are: their timestamps would be the sender's own.
    sysctls: { "net.ipv4.tcp_timestamps": "0" },
    metrics: [
      { name: "up_gbit", label: "up", unit: "Gbit/s", better: "more" },
      { name: "down_gbit", label: "down", unit: "Gbit/s", better: "more" },
      cost("ms/GB"),
    ],
    operationsPerCost: 1e6,
    quick: false,
    share: 2,
  },
  {
    name: "iperf-udppp",
    title: "As published by others: iperf 2, -R -u -b 10G, udppp before",
    protocol: "udp",
    kind: "load",
    load: [],
    tool: "iperf-udppp",
    byName: true,
    metrics: [
      returned,
      { name: "returned_gbit", label: "returned", unit: "Gbit/s", better: "more" },
      cost("µs/datagram"),
    ],
    operationsPerCost: 1,
    quick: false,
    share: 2,
  },
];

function count(number: number, noun: string): string {
  return number === 1 ? `1 ${noun}` : `${number} ${noun}s`;
}
