/** The command line of the benchmark. */

import { Command, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import { type ToolPaths, TOOLS } from "./tools.ts";
import { type Work, WORKS } from "./works.ts";

export interface Options {
  readonly mode: "quick" | "full";
  readonly rounds: number;
  /** How long all of it may take; undefined when `seconds` is given. */
  readonly budgetMinutes: number;
  /** Measured time of each sample; undefined to have it follow from the budget. */
  readonly seconds: number | undefined;
  /** Names of works; undefined for all of the mode. */
  readonly only: readonly string[] | undefined;
  /** `none`, `ours`, `haproxy`, `nginx`, the latter three also with `-N` for N threads. */
  readonly programs: readonly string[];
  /** `name=command`, see `customPeer`. */
  readonly peers: readonly string[];
  /** Paths of programs that make loads of their own, by name. */
  readonly tools: ToolPaths;
  /** Network settings of the namespaces, by their dotted names. */
  readonly sysctls: Readonly<Record<string, string>>;
  readonly tcpHeader: "v1" | "v2";
  /** The load, its clients and the service are on IPv6. */
  readonly ipv6: boolean;
  /** Where the result goes; undefined for a name with the date in `bench/results/`. */
  readonly output: string | undefined;
}

/** Measured rounds and minutes of either mode. */
const MODES = {
  full: {
    rounds: 17,
    budgetMinutes: 28,
    programs: ["none", "ours", "ours-1", "haproxy", "haproxy-1", "nginx", "nginx-1"],
  },
  quick: { rounds: 3, budgetMinutes: 2.7, programs: ["none", "ours", "haproxy", "nginx"] },
} as const;

/**
 * Reads the command line; a wrong one, or a request for help, ends the process.
 *
 * @param args without the program's own name.
 */
export function parseOptions(args: readonly string[]): Options {
  const { full, quick } = MODES;
  const command = new Command("bench")
    .description("Measures this program against no proxy and against others, round by round.")
    .option("--quick", "a few short rounds of the main workloads, in under three minutes")
    .option(
      "--rounds <n>",
      `number of samples of each kind (${full.rounds}; quick: ${quick.rounds})`,
      positive,
    )
    .option(
      "--budget <minutes>",
      `time for the complete run (${full.budgetMinutes}; quick: ${quick.budgetMinutes})`,
      positive,
    )
    .option("--seconds <s>", "measured time of each sample, instead of a budget", positive)
    .option("--only <works>", "names of workloads, separated by commas", words)
    .option(
      "--programs <names>",
      "none, and ours, haproxy, nginx with a thread for each processor, or ours-1, haproxy-1, " +
        `nginx-1 with one thread (default: all; quick: ${quick.programs.join(", ")})`,
      words,
    )
    .option(
      "--peer <name=command>",
      "another peer, with {listen} {v4} {v6} {subnets} {protocol}; name/udp for UDP only",
      (text: string, before: string[]) => [...before, text],
      [],
    )
    .option(
      "--tool <name=path>",
      `where ${Object.values(TOOLS).flat().join(", ")} is, if not on the PATH`,
      tool,
      {},
    )
    .option(
      "--sysctl <name=value>",
      "a network setting of the namespaces (net.ipv4.tcp_congestion_control=reno, unless given)",
      setting,
      // BBR, the default of some machines, paces by timers: on loopback that halves and blurs all.
      { "net.ipv4.tcp_congestion_control": "reno" },
    )
    .addOption(
      new Option("--header <version>", "PROXY header of the TCP loads")
        .choices(["v1", "v2"] as const).default("v2" as const),
    )
    .option("--ipv6", "everything over IPv6 instead of IPv4", false)
    .option("--output <file>", "file for the result")
    .addHelpText("after", () => `\nWorkloads:\n${WORKS.map(describe).join("\n")}`)
    .parse([...args], { from: "user" });
  const given = command.opts();
  const mode = given.quick ? "quick" : "full";
  for (const name of given.only ?? []) {
    if (!WORKS.some((work) => work.name === name)) {
      command.error(`Unknown workload ${JSON.stringify(name)}; --help lists them`, { exitCode: 2 });
    }
  }
  const tools = WORKS.filter(({ name, tool }) => tool !== undefined && given.only?.includes(name));
  if (given.ipv6 && tools.length > 0) {
    command.error(`${tools[0]?.name} runs over IPv4 only: omit --ipv6`, { exitCode: 2 });
  }
  return {
    mode,
    rounds: Math.ceil(given.rounds ?? MODES[mode].rounds),
    budgetMinutes: given.budget ?? MODES[mode].budgetMinutes,
    seconds: given.seconds,
    only: given.only,
    programs: given.programs ?? MODES[mode].programs,
    peers: given.peer,
    tools: given.tool,
    sysctls: given.sysctl,
    tcpHeader: given.header,
    ipv6: given.ipv6,
    output: given.output,
  };
}

function describe({ name, title, quick, byName }: Work): string {
  const note = quick ? " (quick)" : byName ? " (only by name)" : "";
  return `  ${name.padEnd(22)} ${title}${note}`;
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value <= 1000)) {
    throw new InvalidArgumentError("Expected a number above 0, at most 1000.");
  }
  return value;
}

function setting(text: string, before: Record<string, string>): Record<string, string> {
  const [, name, value] = /^(net\.[\w.]+)=([\w\t -]+)$/.exec(text) ?? [];
  if (name === undefined || value === undefined) {
    throw new InvalidArgumentError("Expected net.NAME=VALUE.");
  }
  return { ...before, [name]: value };
}

function tool(text: string, before: Record<string, string>): Record<string, string> {
  const [, name, path] = /^([\w-]+)=(.+)$/.exec(text) ?? [];
  if (name === undefined || path === undefined) {
    throw new InvalidArgumentError("Expected NAME=PATH.");
  }
  return { ...before, [name]: path };
}

function words(text: string): string[] {
  return text.split(",").map((word) => word.trim()).filter((word) => word !== "");
}
