/** The command line: words in, checked options out. */
import { Command, CommanderError, Option } from "@commander-js/extra-typings";
import { isMapped, parseAddress } from "./address.ts";
import {
  type Address,
  DEFAULTS,
  type LevelName,
  type LogFormat,
  type Options,
  type ProtocolName,
  type UdpHeaderName,
} from "./config.ts";

/** A command line that cannot be followed; the message is one line for the operator. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** What the command line asks for. */
export type Request =
  | { readonly kind: "run"; readonly options: Options }
  | { readonly kind: "print"; readonly text: string };

const MOST_SECONDS = 4_000_000;

/**
 * Reads a command line.
 *
 * @param args the words behind the program's name
 * @param version what `--version` prints
 * @throws {UsageError} naming the flag, its value and what was expected
 */
export function parseArguments(args: readonly string[], version: string): Request {
  let printed = "";
  const program = command(version).configureOutput({
    writeOut: (text) => printed += text,
    writeErr: () => {},
    // Left to itself, it asks the environment about colours, which needs --allow-env.
    getOutHasColors: () => false,
  });
  try {
    program.parse([...args], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return { kind: "print", text: printed };
    const problem = error.message.replace(/^error: |\.$/g, "").replaceAll("\n", " ");
    throw new UsageError(`${capitalise(problem)}; see --help`);
  }
  const flags = program.opts();
  const options: Options = {
    ipv4: address("-4, --ipv4", flags.ipv4, 4),
    ipv6: address("-6, --ipv6", flags.ipv6, 6),
    ...(flags.allowedSubnets === undefined ? {} : { allowedSubnets: flags.allowedSubnets }),
    closeAfter: number("-c, --close-after", flags.closeAfter, 1, MOST_SECONDS, "seconds"),
    listenAddr: address("-l, --listen-addr", flags.listenAddr),
    listeners: number("--listeners", flags.listeners, 1, 1024, "listeners"),
    protocol: choice<ProtocolName>("-p, --protocol", flags.protocol, ["tcp", "udp", "both"]),
    mark: number("-m, --mark", flags.mark, 0, 0xffff_ffff),
    headerTimeout: number("--header-timeout", flags.headerTimeout, 3, MOST_SECONDS, "seconds"),
    connectTimeout: number("--connect-timeout", flags.connectTimeout, 1, MOST_SECONDS, "seconds"),
    udpHeader: choice<UdpHeaderName>("--udp-header", flags.udpHeader, [
      "datagram",
      "session",
      "spp",
    ]),
    logLevel: choice<LevelName>("--log-level", flags.logLevel, [
      "error",
      "warn",
      "info",
      "access",
      "debug",
    ]),
    logFormat: choice<LogFormat>("--log-format", flags.logFormat, ["text", "json"]),
  };
  return { kind: "run", options };
}

function command(version: string) {
  return new Command("mmproxy")
    .description(
      "Takes PROXY protocol headers off TCP connections and UDP datagrams, and relays them to a\n" +
        "service from the client's own address.",
    )
    .usage("[options]")
    .helpOption("-h, --help", "print this help")
    .version(`mmproxy ${version}`, "--version", "print the version")
    .addOption(flag("-4, --ipv4 <addr>", "where IPv4 traffic is forwarded", DEFAULTS.ipv4))
    .addOption(flag("-6, --ipv6 <addr>", "where IPv6 traffic is forwarded", DEFAULTS.ipv6))
    .addOption(
      new Option(
        "-a, --allowed-subnets <path>",
        "file with the subnets of the proxies that may send headers (default: all may)",
      ),
    )
    .addOption(
      flag(
        "-c, --close-after <n>",
        "seconds after which an idle UDP flow ends",
        DEFAULTS.closeAfter,
      ),
    )
    .addOption(flag("-l, --listen-addr <addr>", "where to listen", DEFAULTS.listenAddr))
    .addOption(
      flag("--listeners <n>", "listener workers, each with its own socket", DEFAULTS.listeners),
    )
    .addOption(flag("-p, --protocol <p>", "tcp, udp or both", DEFAULTS.protocol))
    .addOption(flag("-m, --mark <n>", "mark on the outbound packets", DEFAULTS.mark))
    .addOption(
      flag(
        "--header-timeout <s>",
        "seconds for a whole TCP header, 3 at least",
        DEFAULTS.headerTimeout,
      ),
    )
    .addOption(
      flag("--connect-timeout <s>", "seconds for the service to accept", DEFAULTS.connectTimeout),
    )
    .addOption(
      flag(
        "--udp-header <where>",
        "datagram: every datagram has a header; session: a peer's first one; spp: Cloudflare's " +
          "Simple Proxy Protocol",
        DEFAULTS.udpHeader,
      ),
    )
    .addOption(flag("--log-level <level>", "error, warn, info, access or debug", DEFAULTS.logLevel))
    .addOption(flag("--log-format <format>", "text or json", DEFAULTS.logFormat))
    .addHelpText("after", EPILOGUE)
    .allowExcessArguments(false)
    .exitOverride();
}

const EPILOGUE = `
Example:
  ip rule add from 127.0.0.1/8 iif lo table 123
  ip route add local 0.0.0.0/0 dev lo table 123
  mmproxy -l 0.0.0.0:8443 -4 127.0.0.1:443 -a /etc/mmproxy/subnets

Signals: SIGINT or SIGTERM stops accepting and lets connections finish for 10 seconds; a second one
ends at once. SIGHUP reads the subnet file again. Exit codes: 0 stopped, 1 cannot run, 2 wrong command
line.`;

function flag<const Flags extends string>(flags: Flags, description: string, value: string) {
  return new Option(flags, description).default(value);
}

function address(flag: string, value: string, family?: 4 | 6): Address {
  const form = { 4: "an IPv4 address and port", 6: "an IPv6 address and port" };
  const example = family === 6 ? DEFAULTS.ipv6 : DEFAULTS.ipv4;
  const expected = family ? form[family] : "an IP address and port";
  const parsed = parseAddress(value);
  if (!parsed || (family && parsed.family !== family)) {
    return wrong(flag, value, `${expected}, as ${example}`);
  }
  if (family === 6 && isMapped(parsed.bytes)) {
    return wrong(flag, value, `${expected}: this one is IPv4, which is for -4`);
  }
  return parsed;
}

function number(flag: string, value: string, least: number, most: number, unit = ""): number {
  const plain = /^(\d{1,10}|0[xX][0-9a-fA-F]{1,8})$/.test(value);
  const parsed = Number(value);
  if (!plain || parsed < least || parsed > most) {
    return wrong(flag, value, `a whole number from ${least} to ${most}${unit && ` (${unit})`}`);
  }
  return parsed;
}

function choice<T extends string>(flag: string, value: string, choices: readonly T[]): T {
  const chosen = choices.find((choice) => choice === value.toLowerCase());
  return chosen ?? wrong(flag, value, choices.join(", ").replace(/, ([^,]*)$/, " or $1"));
}

function wrong(flag: string, value: string, expected: string): never {
  throw new UsageError(`Option ${flag}: ${JSON.stringify(value)} is not ${expected}`);
}

function capitalise(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
