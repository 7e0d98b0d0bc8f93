/** Options as flags again: command lines for the operator to paste. */
import { DEFAULTS, hasDefaultServices, type Options } from "../config/options.ts";

type Need = Omit<
  Options,
  | "logLevel"
  | "logFormat"
  | "headerTimeout"
  | "closeAfter"
  | "udpHeader"
  | "keepalive"
  | "idleTimeout"
  | "drainTimeout"
  | "shutdownDelay"
>;

/**
 * A command of this program that checks or mends the set-up of these options.
 *
 * @param command `doctor`, `routes up`
 * @returns one line for a shell, without the flags that are at their defaults
 */
export function commandLine(command: "doctor" | "routes up", options: Need): string {
  const flags = command === "doctor" ? doctorFlags(options) : routesFlags(options);
  return ["mmproxy", command, ...flags.map(quote)].join(" ");
}

/** A word for a shell. */
export function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

function routesFlags(options: Need): string[] {
  const { ipv4, ipv6, listenAddr, protocol, mark, table } = options;
  // One alone says that the other's clients are refused, even where it is the default.
  const plain = hasDefaultServices(options);
  return [
    ...(ipv4 && !plain ? ["-4", ipv4.text] : []),
    ...(ipv6 && !plain ? ["-6", ipv6.text] : []),
    ...flag("-l", listenAddr.text, DEFAULTS.listenAddr),
    ...flag("-p", protocol, DEFAULTS.protocol),
    ...flag("-m", mark, DEFAULTS.mark),
    ...flag("--table", table, DEFAULTS.table),
  ];
}

function doctorFlags(options: Need): string[] {
  const { allowedSubnets, listeners, connectTimeout, autoRoutes, sandbox, metricsAddr } = options;
  return [
    ...routesFlags(options),
    ...(allowedSubnets === undefined ? [] : ["-a", allowedSubnets]),
    ...flag("--listeners", listeners, DEFAULTS.listeners),
    ...flag("--connect-timeout", connectTimeout, DEFAULTS.connectTimeout),
    ...(autoRoutes ? ["--auto-routes"] : []),
    ...flag("--sandbox", sandbox, DEFAULTS.sandbox),
    ...(metricsAddr ? ["--metrics-addr", metricsAddr.text] : []),
  ];
}

function flag(name: string, value: string | number, unless: string): string[] {
  return String(value) === unless ? [] : [name, String(value)];
}
