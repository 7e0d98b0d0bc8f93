/** The native core's records of a survey: the selection, and the results. */
import { LITTLE_ENDIAN } from "../config/options.ts";
import type { Subnet } from "../config/subnet.ts";
import { endpoint } from "../log/events.ts";
import { CONNECTION, Phase, Protocol, SELECTION, SURVEY } from "../native/layout.ts";
import type { Connection } from "./protocol.ts";

const PHASES = new Map(Object.entries(Phase).map(([name, code]) => [code as number, name]));

/**
 * The `SelectionRecord`.
 *
 * @param listener a listener's number; 0 for all
 * @param clients the clients' subnet; without one, all
 */
export function encodeSelection(
  listener: number,
  clients: Subnet | undefined,
  closes: boolean,
): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(SELECTION.size);
  const view = new DataView(record.buffer);
  if (clients) {
    record.set(clients.bytes, SELECTION.address);
    view.setUint32(SELECTION.prefix, clients.prefix, LITTLE_ENDIAN);
  }
  view.setUint32(SELECTION.listener, listener, LITTLE_ENDIAN);
  view.setUint32(SELECTION.closes, closes ? 1 : 0, LITTLE_ENDIAN);
  return record;
}

/** Reads a `SurveyRecord`. */
export function decodeSurvey(record: Uint8Array<ArrayBuffer>) {
  const view = new DataView(record.buffer, record.byteOffset, SURVEY.size);
  const number = (offset: number) => view.getUint32(offset, LITTLE_ENDIAN);
  return {
    found: number(SURVEY.found),
    listed: number(SURVEY.listed),
    silentWorkers: number(SURVEY.silent),
  };
}

/**
 * Reads one of the `ConnectionRecord`s.
 *
 * @param name gives a listener's name
 */
export function decodeConnection(
  records: Uint8Array<ArrayBuffer>,
  index: number,
  name: (listener: number) => string,
): Connection {
  const at = records.byteOffset + index * CONNECTION.size;
  const view = new DataView(records.buffer, at, CONNECTION.size);
  const long = (offset: number) => Number(view.getBigUint64(offset, LITTLE_ENDIAN));
  return {
    listener: name(view.getUint32(CONNECTION.listener, LITTLE_ENDIAN)),
    protocol: view.getUint8(CONNECTION.protocol) === Protocol.udp ? "udp" : "tcp",
    phase: PHASES.get(view.getUint8(CONNECTION.phase)) as Connection["phase"] ?? "relayed",
    worker: view.getUint32(CONNECTION.worker, LITTLE_ENDIAN),
    ...endpoint(view, CONNECTION.peer, "peer"),
    ...endpoint(view, CONNECTION.client, "client"),
    ...endpoint(view, CONNECTION.upstream, "upstream"),
    age: long(CONNECTION.age_ms) / 1000,
    idle: long(CONNECTION.idle_ms) / 1000,
    bytesUp: long(CONNECTION.bytes_up),
    bytesDown: long(CONNECTION.bytes_down),
  };
}
