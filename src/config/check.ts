/** `check --config F`: whether a configuration is valid, and a summary of it. */
import { NativeError } from "../native/library.ts";
import { readConfig } from "./file.ts";
import { ConfigError, type Mistake } from "./mistakes.ts";
import type { ListenerConfig, ProxyConfig } from "./model.ts";
import { type Transport, transportsOf } from "./options.ts";
import { parseSubnetList } from "./subnet_list.ts";
import { count } from "./count.ts";

/** Reads a complete file, or throws a `NativeError` that names it. */
type ReadFile = (path: string) => Uint8Array;

/**
 * Reads a configuration and the files that it names.
 *
 * @throws {ConfigError} with every mistake; files are read once the configuration itself has none
 */
export function loadConfig(path: string, readFile: ReadFile): ProxyConfig {
  const config = readConfig(readText(path, readFile), path);
  const files = new Set(
    config.listeners.flatMap(({ allowedSubnets }) =>
      allowedSubnets?.kind === "file" ? [allowedSubnets.path] : []
    ),
  );
  const mistakes = [...files].flatMap((file) => subnetMistakes(file, readFile));
  if (mistakes.length > 0) throw new ConfigError(mistakes, config.logFormat);
  return config;
}

/** `3 listeners on 4 TCP ports and 1000 UDP ports, 2 workers, no metrics`. */
export function summary({ listeners, workers, metricsAddr }: ProxyConfig): string {
  const sockets = (["tcp", "udp"] as const)
    .map((transport) => [transport.toUpperCase(), socketsOf(listeners, transport)] as const)
    .filter(([, sockets]) => sockets > 0)
    .map(([transport, sockets]) => count(sockets, `${transport} port`));
  return [
    `${count(listeners.length, "listener")} on ${sockets.join(" and ")}`,
    workers === "auto" ? "a worker for each processor" : count(workers, "worker"),
    metricsAddr ? `metrics on ${metricsAddr.text}` : "no metrics",
  ].join(", ");
}

function readText(path: string, readFile: ReadFile): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readFile(path));
  } catch (error) {
    if (error instanceof NativeError) throw new ConfigError([{ problem: error.message }]);
    if (error instanceof TypeError) {
      throw new ConfigError([{ file: path, problem: "is not UTF-8" }]);
    }
    throw error;
  }
}

function subnetMistakes(file: string, readFile: ReadFile): Mistake[] {
  try {
    const { subnets, wrong } = parseSubnetList(readText(file, readFile));
    if (subnets.length + wrong.length === 0) {
      return [{ file, problem: "has no subnet: add a line such as 192.0.2.0/24" }];
    }
    return wrong.map(({ line, entry, problem }) => ({
      file,
      line,
      problem: `${JSON.stringify(entry)} ${problem}`,
    }));
  } catch (error) {
    if (error instanceof ConfigError) return [...error.mistakes];
    throw error;
  }
}

/** How many addresses with a port are listened on over a transport. */
function socketsOf(listeners: readonly ListenerConfig[], transport: Transport): number {
  return listeners
    .filter(({ protocol }) => transportsOf(protocol).includes(transport))
    .flatMap(({ listen }) => listen)
    .reduce((sum, { port, lastPort }) => sum + lastPort - port + 1, 0);
}
