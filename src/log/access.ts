/** The access log: the native core's entries as lines, one at the end of each connection or flow. */
import { endpoint, errorName } from "./events.ts";
import { LITTLE_ENDIAN } from "../config/options.ts";
import type { Log } from "./log.ts";
import type { Listeners } from "../proxy/listeners.ts";
import { ACCESS, Ending, Protocol } from "../native/layout.ts";
import type { Library } from "../native/library.ts";
import { readTlvs, type Tlvs } from "./tlvs.ts";

/** What a connection or a flow was. */
export interface Access {
  readonly protocol: "tcp" | "udp";
  /** Its number in the native core. */
  readonly listener: number;
  /** From 0. */
  readonly worker: number;
  /** The header's version. */
  readonly header: string;
  readonly peer?: string;
  /** Absent where the proxy's own address was used. */
  readonly client?: string;
  /** What the client had connected to, as the header says. */
  readonly destination?: string;
  readonly upstream?: string;
  /** From its acceptance (TCP) or first datagram (UDP). */
  readonly duration_ms: number;
  readonly bytes_up: number;
  readonly bytes_down: number;
  /** UDP alone. */
  readonly datagrams_up?: number;
  readonly datagrams_down?: number;
  readonly ended: string;
  /** The name of the error that ended it. */
  readonly error?: string;
  readonly tlvs: Tlvs;
}

const ENDINGS = new Map<number, string>(
  Object.entries(Ending).map(([name, code]) => [code, name]),
);
const HEADERS = ["none", "v1", "v2", "spp"];
const VERSION_2 = 2;
/** Bytes taken at once: more than the longest entry has. */
const ROOM = 64 << 10;

/** The names of listeners; text has them if there are several. */
type Names = Pick<Listeners, "name" | "isMany">;

/** A function that writes a line for each entry that waits in the native core. */
export function accessLog(
  library: Pick<Library, "nextAccess">,
  service: number,
  listeners: Names,
  log: Log,
): () => void {
  const entries = new Uint8Array(ROOM);
  const view = new DataView(entries.buffer);
  return () => {
    for (let end; (end = library.nextAccess(service, entries)) > 0;) {
      for (let at = 0; at < end;) {
        logAccess(log, readAccess(entries, at), listeners);
        at += view.getUint32(at + ACCESS.length, LITTLE_ENDIAN);
      }
    }
  };
}

/** Reads the entry at `offset`: an `AccessRecord` and the bytes of its header. */
export function readAccess(entries: Uint8Array<ArrayBuffer>, offset: number): Access {
  const view = new DataView(entries.buffer, entries.byteOffset + offset);
  const large = (field: number) => Number(view.getBigUint64(field, LITTLE_ENDIAN));
  const length = view.getUint32(ACCESS.header_length, LITTLE_ENDIAN);
  const header = entries.subarray(offset + ACCESS.size, offset + ACCESS.size + length);
  const udp = view.getUint8(ACCESS.protocol) === Protocol.udp;
  const version = view.getUint8(ACCESS.version);
  const errno = view.getInt32(ACCESS.errno, LITTLE_ENDIAN);
  const error = errno === 0 ? undefined : errorName(errno);
  return {
    protocol: udp ? "udp" : "tcp",
    listener: view.getUint32(ACCESS.listener, LITTLE_ENDIAN),
    worker: view.getUint32(ACCESS.worker, LITTLE_ENDIAN),
    header: HEADERS[version] ?? "none",
    ...endpoint(view, ACCESS.peer, "peer"),
    ...endpoint(view, ACCESS.client, "client"),
    ...endpoint(view, ACCESS.destination, "destination"),
    ...endpoint(view, ACCESS.upstream, "upstream"),
    duration_ms: large(ACCESS.duration_ms),
    bytes_up: large(ACCESS.bytes_up),
    bytes_down: large(ACCESS.bytes_down),
    ...(udp && {
      datagrams_up: large(ACCESS.datagrams_up),
      datagrams_down: large(ACCESS.datagrams_down),
    }),
    ended: ending(ENDINGS.get(view.getUint8(ACCESS.ending)) ?? "unknown", error),
    ...(error !== undefined && { error }),
    tlvs: version === VERSION_2 ? readTlvs(header) : {},
  };
}

/** A broken connection's ending by what broke it. */
function ending(name: string, error?: string): string {
  const side = /^(client|service)_broke$/.exec(name)?.[1];
  if (side === undefined) return name;
  switch (error) {
    case "ECONNRESET":
    case "EPIPE":
      return `${side}_reset`;
    case "ETIMEDOUT":
      return `${side}_timeout`;
    default:
      return `${side}_error`;
  }
}

/** Writes an entry's line: `key=value` for people, fields for machines. */
export function logAccess(log: Log, access: Access, listeners: Names): void {
  const { protocol, tlvs, listener, ...fields } = access;
  const event = protocol === "tcp" ? "connection" : "flow";
  const name = listeners.name(listener);
  log("access", accessLine(access, listeners.isMany ? name : undefined), {
    event,
    protocol,
    ...(name !== undefined && { listener: name }),
    ...fields,
    ...tlvs,
  });
}

/** @param listener its name, where it is to be said */
function accessLine(access: Access, listener: string | undefined): string {
  const { tlvs } = access;
  const udp = access.protocol === "udp";
  const pairs: [string, string | number | undefined][] = [
    ["listener", listener],
    ["client", access.client ?? "-"],
    ["peer", access.peer],
    ["upstream", access.upstream],
    ["up", access.bytes_up],
    ["down", access.bytes_down],
    ["datagrams_up", udp ? access.datagrams_up : undefined],
    ["datagrams_down", udp ? access.datagrams_down : undefined],
    ["ms", access.duration_ms],
    ["ended", access.ended],
    ["error", access.error],
    ["header", access.header],
    ["authority", tlvs.authority],
    ["alpn", tlvs.alpn],
    ["tls", tlvs.tls?.version],
    ["cipher", tlvs.tls?.cipher],
    ["cn", tlvs.tls?.cn],
    ["vpc_endpoint", tlvs.aws_vpc_endpoint],
    ["private_endpoint", tlvs.azure_private_endpoint],
    ["psc_connection", tlvs.gcp_psc_connection],
    ["unique_id", tlvs.unique_id],
  ];
  const said = pairs.filter(([, value]) => value !== undefined);
  return [access.protocol, ...said.map(([key, value]) => `${key}=${word(String(value))}`)].join(
    " ",
  );
}

/** A value that cannot be taken for another pair: quoted where it holds a space, quote or `=`. */
function word(value: string): string {
  return /^[^\s"=\\]+$/.test(value) ? value : JSON.stringify(value);
}
