/** Answers the requests on the control socket, one after the other. */
import { Problem } from "../config/problem.ts";
import { CONNECTION } from "../native/layout.ts";
import { type Library, NativeError } from "../native/library.ts";
import type { Listeners } from "../proxy/listeners.ts";
import type { Upgrade } from "../proxy/upgrade.ts";
import { busiest } from "./clients.ts";
import { countsOf } from "./counts.ts";
import {
  type Answers,
  type Closed,
  type Connections,
  MOST_LISTED,
  parseRequest,
  readClients,
  type Refused,
  type Reloaded,
  type Request,
  type Selection,
} from "./protocol.ts";
import { decodeConnection, decodeSurvey, encodeSelection } from "./records.ts";
import { statusOf, type StatusSource } from "./status.ts";

/** Looks so often whether it was closed. */
const WAIT_MS = 60_000;
/** Of this many connections the busiest clients are found. */
const MOST_SUMMED = 65_536;
/** Connections that may come while they are listed. */
const SLACK = 256;

/** What the commands are about. */
export interface Controlled extends StatusSource {
  readonly library: Pick<
    Library,
    "acceptControl" | "answerRequest" | "closeControl" | "nextRequest" | "openControl" | "survey"
  >;
  readonly proxy: number;
  readonly listeners: Pick<Listeners, "age" | "name" | "open">;
  /** Does what SIGHUP does. */
  readonly reload: () => Promise<Reloaded>;
  readonly upgrade: Pick<Upgrade, "handOver" | "run">;
  /** Takes a defect of an answer. */
  readonly defect: (error: unknown) => void;
}

/** The control socket of a running program. */
export class ControlSocket {
  #closed = false;
  /** Requests whose answers are not there yet. */
  readonly #pending = new Set<Promise<void>>();

  private constructor(
    readonly handle: number,
    readonly library: Controlled["library"],
  ) {}

  /** Opens it: whoever connects waits until it is served. Throws a `NativeError`. */
  static open(path: string, library: Controlled["library"], predecessor = 0): ControlSocket {
    return new ControlSocket(library.openControl(path, predecessor), library);
  }

  /** Accepts from now on, where it was a predecessor's. */
  accept(): void {
    this.library.acceptControl(this.handle);
  }

  /** Answers until it is closed. */
  async serve(controlled: Controlled): Promise<void> {
    try {
      await this.#answerAll(controlled);
    } catch (error) {
      controlled.defect(error);
    }
  }

  async #answerAll(controlled: Controlled): Promise<void> {
    while (!this.#closed) {
      const request = await this.library.nextRequest(this.handle, WAIT_MS);
      if (!request) continue;
      const parsed = parseRequest(request.line);
      if (!(parsed instanceof Problem) && parsed.command === "take-over") {
        void controlled.upgrade.handOver(this.handle, request.id, parsed)
          .catch((error) => controlled.defect(error));
        continue;
      }
      // One that waits for a name or a worker keeps nobody else waiting.
      const answered = answer(request.line, controlled).then((answer) => {
        if (!this.#closed) this.library.answerRequest(this.handle, request.id, answer);
        this.#pending.delete(answered);
      });
      this.#pending.add(answered);
    }
  }

  /** Every request so far has its answer. */
  async answered(): Promise<void> {
    await Promise.all(this.#pending);
  }

  /** Ends `serve`, and closes the socket. */
  close(): void {
    this.#closed = true;
    this.library.closeControl(this.handle);
  }
}

/** The answer's line. */
export async function answer(line: string, controlled: Controlled): Promise<string> {
  const request = parseRequest(line);
  if (request instanceof Problem) return JSON.stringify({ error: request.text } satisfies Refused);
  try {
    return JSON.stringify(await run(request, controlled));
  } catch (error) {
    if (error instanceof Problem) return JSON.stringify({ error: error.text } satisfies Refused);
    if (!(error instanceof NativeError)) controlled.defect(error);
    const message = error instanceof Error ? error.message : String(error);
    return JSON.stringify({ error: message } satisfies Refused);
  }
}

async function run(
  request: Request,
  controlled: Controlled,
): Promise<Answers[keyof Answers]> {
  switch (request.command) {
    case "status":
      return statusOf(controlled);
    case "reload":
      return await controlled.reload();
    case "upgrade":
      return await controlled.upgrade.run();
    case "take-over":
      throw new Problem("a hand-over has no answer");
    case "connections":
      return await list(request, request.limit ?? MOST_LISTED, controlled);
    case "close":
      return await close(request, controlled);
    case "top": {
      const { connections } = await list({}, MOST_SUMMED, controlled);
      return { status: statusOf(controlled), clients: busiest(connections, request.clients) };
    }
  }
}

async function list(
  selection: Selection,
  limit: number,
  { library, proxy, listeners, stats }: Controlled,
): Promise<Connections> {
  const { connections, flows } = countsOf(stats(0));
  const room = Math.min(limit, connections + flows + SLACK);
  const records = new Uint8Array(room * CONNECTION.size);
  const record = selectionRecord(selection, listeners, false);
  const survey = decodeSurvey(await library.survey(proxy, record, records));
  const name = (id: number) => listeners.name(id) ?? String(id);
  return {
    found: survey.found,
    silentWorkers: survey.silentWorkers,
    connections: Array.from(
      { length: survey.listed },
      (_, index) => decodeConnection(records, index, name),
    ),
  };
}

async function close(
  selection: Selection,
  { library, proxy, listeners }: Controlled,
): Promise<Closed> {
  const record = selectionRecord(selection, listeners, true);
  const { found, silentWorkers } = decodeSurvey(
    await library.survey(proxy, record, new Uint8Array()),
  );
  return { closed: found, silentWorkers };
}

/** @throws {Problem} for a listener that there is not */
function selectionRecord(
  { listener, client }: Selection,
  listeners: Controlled["listeners"],
  closes: boolean,
): Uint8Array<ArrayBuffer> {
  const id = listener === undefined
    ? 0
    : listeners.open.find(({ config }) => config.name === listener)?.id;
  if (id === undefined) {
    const names = listeners.open.map(({ config }) => config.name).join(", ");
    throw new Problem(`there is no listener ${JSON.stringify(listener)}; there are: ${names}`);
  }
  const clients = client === undefined ? undefined : readClients(client);
  if (clients instanceof Problem) throw clients;
  return encodeSelection(id, clients, closes);
}
