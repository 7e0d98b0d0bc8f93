import assert from "node:assert/strict";
import { accessLog, readAccess } from "./access.ts";
import { LITTLE_ENDIAN } from "../config/options.ts";
import type { Details } from "./log.ts";
import { ACCESS, Ending, ENDPOINT, Protocol } from "../native/layout.ts";
import { bytes, tlv, v2 } from "../../tests/e2e/support/headers.ts";

type Address = readonly [family: number, bytes: readonly number[], port: number];

const CLIENT: Address = [4, [192, 0, 2, 1], 56_324];
const PEER: Address = [4, [198, 51, 100, 7], 40_000];
const DESTINATION: Address = [4, [203, 0, 113, 5], 443];
const UPSTREAM: Address = [6, [0x20, 0x01, 0x0d, 0xb8, ...new Array(11).fill(0), 1], 8080];

interface Fields {
  readonly protocol?: number;
  readonly ending?: number;
  readonly version?: number;
  readonly errno?: number;
  readonly client?: Address;
  readonly header?: Uint8Array;
}

/** An entry as the native core writes it, through the layout's offsets. */
function entry(fields: Fields = {}): Uint8Array<ArrayBuffer> {
  const header = fields.header ?? new Uint8Array();
  const length = Math.ceil((ACCESS.size + header.length) / 8) * 8;
  const record = new Uint8Array(length);
  const view = new DataView(record.buffer);
  const large = (offset: number, value: bigint) => view.setBigUint64(offset, value, LITTLE_ENDIAN);
  view.setUint32(ACCESS.length, length, LITTLE_ENDIAN);
  view.setUint32(ACCESS.header_length, header.length, LITTLE_ENDIAN);
  view.setUint32(ACCESS.worker, 3, LITTLE_ENDIAN);
  view.setUint32(ACCESS.listener, 5, LITTLE_ENDIAN);
  view.setInt32(ACCESS.errno, fields.errno ?? 0, LITTLE_ENDIAN);
  view.setUint8(ACCESS.protocol, fields.protocol ?? Protocol.tcp);
  view.setUint8(ACCESS.ending, fields.ending ?? Ending.client_closed);
  view.setUint8(ACCESS.version, fields.version ?? 2);
  large(ACCESS.duration_ms, 1234n);
  large(ACCESS.bytes_up, 5_000_000_000n);
  large(ACCESS.bytes_down, 7n);
  large(ACCESS.datagrams_up, 11n);
  large(ACCESS.datagrams_down, 13n);
  for (
    const [offset, address] of [
      [ACCESS.peer, PEER],
      [ACCESS.client, fields.client],
      [ACCESS.destination, fields.client && DESTINATION],
      [ACCESS.upstream, UPSTREAM],
    ] as const
  ) {
    if (!address) continue;
    view.setUint8(offset + ENDPOINT.family, address[0]);
    record.set(address[1], offset + ENDPOINT.address);
    view.setUint16(offset + ENDPOINT.port, address[2], LITTLE_ENDIAN);
  }
  record.set(header, ACCESS.size);
  return record;
}

interface Line {
  readonly level: string;
  readonly message: string;
  readonly details: Details;
}

/** The lines of entries that come in these pieces. */
function lines(...pieces: Uint8Array[]): Line[] {
  return linesOf(false, pieces);
}

/** @param isMany whether there are several listeners */
function linesOf(isMany: boolean, pieces: readonly Uint8Array[]): Line[] {
  const written: Line[] = [];
  const waiting = [...pieces];
  const nextAccess = (_service: number, into: Uint8Array) => {
    const piece = waiting.shift() ?? new Uint8Array();
    into.set(piece);
    return piece.length;
  };
  accessLog(
    { nextAccess },
    1,
    { name: (id) => id === 5 ? "mail" : undefined, isMany },
    (level, message, details) => {
      written.push({ level, message, details });
    },
  )();
  return written;
}

function line(fields: Fields): Line {
  const [only, ...more] = lines(entry(fields));
  assert.ok(only && more.length === 0, "one line");
  return only;
}

const HEADER = v2({ ip: "192.0.2.1", port: 56_324 }, { ip: "203.0.113.5", port: 443 }, {
  tlvs: [tlv(0x02, bytes("www.example.org")), tlv(0xf0, bytes("more"))],
});

Deno.test("accessLog: a TCP connection as text and as fields", () => {
  const { level, message, details } = line({ client: CLIENT, header: HEADER });
  assert.equal(level, "access");
  assert.equal(
    message,
    "tcp client=192.0.2.1:56324 peer=198.51.100.7:40000 upstream=[2001:db8::1]:8080 " +
      "up=5000000000 down=7 ms=1234 ended=client_closed header=v2 authority=www.example.org",
  );
  assert.deepEqual(details, {
    event: "connection",
    protocol: "tcp",
    listener: "mail",
    worker: 3,
    header: "v2",
    peer: "198.51.100.7:40000",
    client: "192.0.2.1:56324",
    destination: "203.0.113.5:443",
    upstream: "[2001:db8::1]:8080",
    duration_ms: 1234,
    bytes_up: 5_000_000_000,
    bytes_down: 7,
    ended: "client_closed",
    authority: "www.example.org",
    other_tlvs: { "0xf0": "more" },
  });
});

Deno.test("accessLog: of several listeners the text says which", () => {
  const [only] = linesOf(true, [entry({ client: CLIENT })]);
  assert.match(only?.message ?? "", /^tcp listener=mail client=192\.0\.2\.1:56324 peer=/);
  assert.equal(only?.details.listener, "mail");
});

Deno.test("accessLog: a UDP flow has its datagrams", () => {
  const { message, details } = line({ protocol: Protocol.udp, ending: Ending.idle, version: 3 });
  assert.match(message, /^udp client=- .* datagrams_up=11 datagrams_down=13 .* header=spp$/);
  assert.equal(details.event, "flow");
  assert.equal(details.datagrams_up, 11);
  assert.equal(details.ended, "idle");
  assert.ok(!("client" in details) && !("destination" in details));
});

Deno.test("accessLog: TLVs are read of version 2 alone", () => {
  assert.ok(!("authority" in line({ version: 1, header: HEADER }).details));
});

Deno.test("accessLog: a value with a space, quote or = is quoted", () => {
  const header = v2({ ip: "192.0.2.1", port: 1 }, { ip: "203.0.113.5", port: 443 }, {
    tlvs: [tlv(0x02, bytes('a" ended=x'))],
  });
  assert.ok(line({ header }).message.endsWith('authority="a\\" ended=x"'));
});

for (
  const [name, ending, errno, ended] of [
    ["a reset of the client", Ending.client_broke, 104, "client_reset"],
    ["a write to a service that is gone", Ending.service_broke, 32, "service_reset"],
    ["a client that answers no more", Ending.client_broke, 110, "client_timeout"],
    ["another error", Ending.service_broke, 113, "service_error"],
    ["a service that refuses", Ending.connect_failed, 111, "connect_failed"],
  ] as const
) {
  Deno.test(`accessLog: ${name} is ${ended}`, () => {
    const { details } = line({ ending, errno });
    assert.equal(details.ended, ended);
    assert.match(String(details.error), /^E[A-Z]+$/);
  });
}

Deno.test("accessLog: all that waits, of any length, over several calls", () => {
  const both = entry({ client: CLIENT, header: HEADER });
  const piece = new Uint8Array([...both, ...entry(), ...both]);
  assert.equal(lines(piece, entry()).length, 4);
});

Deno.test("readAccess: every ending has a name", () => {
  for (const ending of Object.values(Ending)) {
    assert.notEqual(readAccess(entry({ ending }), 0).ended, "unknown");
  }
});
