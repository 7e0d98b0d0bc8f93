/**
 * The command lines of the commands for a running program: `status`, `connections`, `close`, `reload`, `upgrade`, `top`.
 */
import { Command, Option } from "@commander-js/extra-typings";
import { Problem } from "../config/problem.ts";
import { MOST_LISTED, readClients, type Request, type Selection } from "../control/protocol.ts";
import { socketPath } from "./options.ts";
import { UsageError } from "./usage_error.ts";

/** One of these commands. */
export interface ControlRequest {
  readonly kind: "control";
  readonly request: Request;
  /** Where the running program is asked. */
  readonly socket: Socket;
  /** Print the answer as one JSON document. */
  readonly json: boolean;
}

/** The control socket's path, or the configuration file that names it. */
export type Socket = { readonly path: string } | { readonly config: string };

type Asked = (request: ControlRequest) => void;

const CONTROL = "--control";
const DEFAULT_LIMIT = 1000;
/** Clients that `top` can be shown: more than a terminal has lines. */
const TOP_CLIENTS = 1000;

/** The subcommands; they pass their requests to `asked`. */
export function controlCommands(asked: Asked): Command[] {
  return [
    status(asked),
    connections(asked),
    close(asked),
    reload(asked),
    upgrade(asked),
    top(asked),
  ];
}

function status(asked: Asked): Command {
  const command = named(
    "status",
    "Shows the state of the running program: listeners, open connections and flows, " +
      "rates since the start, and refusals.",
  )
    .option("--json", "print one JSON document");
  return command.action((flags) => ask(asked, { command: "status" }, flags)) as unknown as Command;
}

function connections(asked: Asked): Command {
  const command = withSelection(named("connections", "Lists open connections and UDP flows."))
    .option("--limit <n>", `maximum number of entries (default: ${DEFAULT_LIMIT})`)
    .option("--json", "print one JSON document");
  return command.action((flags: SelectionFlags & Flags & { limit?: string }) =>
    ask(
      asked,
      { command: "connections", limit: limitOf(flags.limit), ...selectionOf(flags) },
      flags,
    )
  ) as unknown as Command;
}

function close(asked: Asked): Command {
  const command = withSelection(
    named(
      "close",
      "Closes connections and UDP flows, and prints how many. A TCP connection with undelivered data is reset. A flow opens " +
        "again with its client's next datagram.",
    ),
  );
  return command.action((flags: SelectionFlags & Flags) => {
    const selection = selectionOf(flags);
    if (selection.listener === undefined && selection.client === undefined) {
      throw new UsageError("close needs --listener or --client, or both");
    }
    ask(asked, { command: "close", ...selection }, flags);
  }) as unknown as Command;
}

function reload(asked: Asked): Command {
  const command = named(
    "reload",
    "Reloads the configuration of the running program, as SIGHUP does, and " +
      "prints the result. Exit code 1 if the reload fails.",
  );
  return command.action((flags) => ask(asked, { command: "reload" }, flags)) as unknown as Command;
}

function upgrade(asked: Asked): Command {
  const command = named(
    "upgrade",
    "Replaces the running program with the installed version, without dropping connections: it starts " +
      "the new program, hands over listening sockets and UDP flows, and drains. If the new program " +
      "does not start, the running one continues, and the exit code is 1.",
  );
  return command.action((flags) => ask(asked, { command: "upgrade" }, flags)) as unknown as Command;
}

function top(asked: Asked): Command {
  const command = named(
    "top",
    "Shows the running program live: listeners, rates, refusals, and the " +
      "busiest clients. Quit with q or Ctrl-C.",
  );
  return command.action((flags) =>
    ask(asked, { command: "top", clients: TOP_CLIENTS }, flags)
  ) as unknown as Command;
}

interface Flags {
  readonly control?: string;
  readonly config?: string;
  readonly json?: true;
}

interface SelectionFlags {
  readonly listener?: string;
  readonly client?: string;
}

function named(name: string, description: string) {
  return new Command(name)
    .description(description)
    .addOption(new Option(`${CONTROL} <path>`, "control socket of the running program"))
    .option("--config <path>", "its configuration file, which sets the control socket")
    .allowExcessArguments(false);
}

function withSelection(command: ReturnType<typeof named>) {
  return command
    .option("--listener <name>", "only this listener")
    .option("--client <subnet>", "only clients in this subnet, or with this address");
}

function ask(asked: Asked, request: Request, flags: Flags): void {
  asked({ kind: "control", request, socket: socketOf(flags), json: flags.json === true });
}

function socketOf({ control, config }: Flags): Socket {
  if (control !== undefined) return { path: socketPath(control, CONTROL) };
  if (config !== undefined) return { config };
  throw new UsageError(
    `Give the running program's control socket with ${CONTROL}, or its configuration file with --config`,
  );
}

function selectionOf({ listener, client }: SelectionFlags): Selection {
  const subnet = client === undefined ? undefined : readClients(client);
  if (subnet instanceof Problem) throw new UsageError(`Option --client: ${subnet.text}`);
  return {
    ...(listener !== undefined && { listener }),
    ...(client !== undefined && { client }),
  };
}

function limitOf(text = String(DEFAULT_LIMIT)): number {
  const limit = Number(text);
  if (/^\d+$/.test(text) && limit >= 1 && limit <= MOST_LISTED) return limit;
  throw new UsageError(
    `Option --limit: ${JSON.stringify(text)} is not a whole number from 1 to ${MOST_LISTED}`,
  );
}
