import assert from "node:assert/strict";
import fc from "fast-check";
import {
  Action,
  Carrier,
  HEADER_OFFSET,
  Refusal,
  SCRATCH_SIZE,
  VERDICT,
} from "../native/layout.ts";
import { createDecoder } from "./proxy_header.ts";

const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const LITTLE = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

interface Endpoint {
  readonly address: readonly number[];
  readonly port: number;
}

/** All that a verdict says; its addresses have 4 or 16 bytes. */
interface Outcome {
  readonly action: number;
  readonly refusal?: number;
  readonly version?: number;
  readonly client?: Endpoint;
  readonly destination?: Endpoint;
}

/** Decodes in a region whose other bytes are all `filler`. */
function decodeIn(
  filler: number,
  header: Uint8Array,
  carrier: number,
  buffer = new ArrayBuffer(SCRATCH_SIZE),
  decode = createDecoder(buffer),
): Outcome & { region: Uint8Array } {
  const region = new Uint8Array(buffer).fill(filler);
  region.set(header, HEADER_OFFSET);
  const action = decode(header.length, carrier);
  const view = new DataView(buffer);
  if (action === Action.drop) return { region, action, refusal: view.getUint8(VERDICT.refusal) };
  const version = view.getUint8(VERDICT.version);
  if (action === Action.own) return { region, action, version };
  const size = view.getUint8(VERDICT.family) === 4 ? 4 : 16;
  const endpoint = (address: number, port: number) => ({
    address: [...region.subarray(address, address + size)],
    port: view.getUint16(port, LITTLE),
  });
  return {
    region,
    action,
    version,
    client: endpoint(VERDICT.client_address, VERDICT.client_port),
    destination: endpoint(VERDICT.destination_address, VERDICT.destination_port),
  };
}

/** The same without the region, to compare. */
function outcome({ region: _, ...rest }: ReturnType<typeof decodeIn>): Outcome {
  return rest;
}

// An encoder and a model of their own: plain, allocating, and sharing nothing with the decoder.

function v2(command: number, family: number, transport: number, body: number[]): Uint8Array {
  return Uint8Array.of(
    ...SIGNATURE,
    0x20 | command,
    family << 4 | transport,
    body.length >> 8,
    body.length & 0xff,
    ...body,
  );
}

const port = fc.nat(65_535);
const ipv4 = fc.tuple(fc.integer({ min: 1, max: 223 }), fc.nat(255), fc.nat(255), fc.nat(255));
/** Global unicast: neither mapped, multicast nor unspecified. */
const ipv6 = fc.uint8Array({ minLength: 15, maxLength: 15 }).map((rest) => [0x20, ...rest]);
const mapped = (bytes: readonly number[]) => [...new Array(10).fill(0), 0xff, 0xff, ...bytes];

const tlv = (type: number, value: Iterable<number>) => {
  const bytes = [...value];
  return [type, bytes.length >> 8, bytes.length & 0xff, ...bytes];
};
const anyTlv = (types: readonly number[], maxLength: number) =>
  fc.tuple(fc.constantFrom(...types), fc.uint8Array({ maxLength }))
    .map(([type, value]) => tlv(type, value));
const sslTlv = fc.tuple(
  fc.uint8Array({ minLength: 5, maxLength: 5 }),
  fc.array(anyTlv([0x21, 0x22, 0x23, 0x28], 20), { maxLength: 3 }),
).map(([head, inner]) => tlv(0x20, [...head, ...inner.flat()]));
const CHECKSUM = [0x03, 0, 4, 0, 0, 0, 0];

/** TLVs that the rules allow, in any order; perhaps one of them a checksum, not yet filled in. */
const tlvs = fc.tuple(
  fc.array(
    fc.oneof(
      // Types whose value has no form of its own.
      anyTlv([0x01, 0x02, 0x04, 0x30, 0xe0, 0xea, 0xff], 40),
      anyTlv([0x05], 128),
      sslTlv,
    ),
    { maxLength: 4 },
  ),
  fc.option(fc.nat(4)),
).map(([list, checksumAt]) => ({
  before: checksumAt === null ? list.flat() : list.slice(0, checksumAt).flat(),
  checksum: checksumAt === null ? [] : CHECKSUM,
  after: checksumAt === null ? [] : list.slice(checksumAt).flat(),
}));
type Tlvs = typeof tlvs extends fc.Arbitrary<infer T> ? T : never;

/** A version 2 header of this address block and these TLVs, the checksum among them filled in. */
function sealed(family: number, transport: number, block: number[], list: Tlvs): Uint8Array {
  const { before, checksum, after } = list;
  const header = v2(1, family, transport, [...block, ...before, ...checksum, ...after]);
  if (checksum.length > 0) {
    const at = 16 + block.length + before.length + 3;
    new DataView(header.buffer).setUint32(at, crc32c(header));
  }
  return header;
}

/** CRC32C as a division of polynomials, bit by bit: nothing like the decoder's table. */
function crc32c(bytes: Iterable<number>): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    for (let bit = 0; bit < 8; bit++) {
      const low = (crc ^ (byte >> bit)) & 1;
      crc = (crc >>> 1) ^ (low ? 0x82f63b78 : 0);
    }
  }
  return ~crc >>> 0;
}

const ports = (...list: number[]) => list.flatMap((port) => [port >> 8, port & 0xff]);

/** IPv6 text with the longest form, or compressed by the URL parser of the runtime. */
function ipv6Text(bytes: number[], compress: boolean): string {
  const groups = Array.from(
    { length: 8 },
    (_, index) => ((bytes[2 * index]! << 8) | bytes[2 * index + 1]!).toString(16),
  );
  const long = groups.join(":");
  return compress ? new URL(`http://[${long}]/`).hostname.slice(1, -1) : long;
}

/** Two endpoints of one family; `wire` is how they are written where only IPv6 fits. */
const pair = fc.oneof(
  fc.tuple(ipv4, ipv4, port, port).map(([from, to, fromPort, toPort]) => ({
    family: 4,
    wire: [mapped(from), mapped(to)] as const,
    client: { address: [...from], port: fromPort },
    destination: { address: [...to], port: toPort },
  })),
  fc.tuple(ipv6, ipv6, port, port).map(([from, to, fromPort, toPort]) => ({
    family: 6,
    wire: [from, to] as const,
    client: { address: from, port: fromPort },
    destination: { address: to, port: toPort },
  })),
);

const validV1 = fc.tuple(pair, fc.boolean(), fc.boolean()).map(
  ([{ family, wire, client, destination }, asIpv6, compress]) => {
    const [from, to] = family === 4 && !asIpv6
      ? [client.address.join("."), destination.address.join(".")]
      : [ipv6Text(wire[0], compress), ipv6Text(wire[1], !compress)];
    const protocol = family === 4 && !asIpv6 ? "TCP4" : "TCP6";
    const header = text(`PROXY ${protocol} ${from} ${to} ${client.port} ${destination.port}\r\n`);
    return { header, carrier: Carrier.stream as number, client, destination, version: 1 };
  },
);

const validV2 = fc.tuple(pair, fc.boolean(), tlvs, fc.integer({ min: 1, max: 2 })).map(
  ([{ family, wire, client, destination }, asIpv6, list, transport]) => {
    const short = family === 4 && !asIpv6;
    const [from, to] = short ? [client.address, destination.address] : wire;
    const block = [...from, ...to, ...ports(client.port, destination.port)];
    const header = sealed(short ? 1 : 2, transport, block, list);
    return { header, carrier: Carrier.datagram as number, client, destination, version: 2 };
  },
);

const validSpp = pair.map(({ wire, client, destination }) => ({
  header: Uint8Array.of(
    0x56,
    0xec,
    ...wire[0],
    ...wire[1],
    ...ports(client.port, destination.port),
  ),
  carrier: Carrier.spp as number,
  client,
  destination,
  version: 3,
}));

/** Headers that name no client: LOCAL, UNKNOWN, UNSPEC, unix. */
const validOwn = fc.oneof(
  fc.option(fc.string({ maxLength: 90 }).filter((tail) => text(tail).length <= 90)).map((tail) => ({
    header: text(`PROXY UNKNOWN${tail === null ? "" : ` ${tail}`}\r\n`),
    version: 1,
  })),
  fc.tuple(fc.nat(15), fc.nat(15), fc.uint8Array({ maxLength: 60 })).map((
    [family, transport, body],
  ) => ({ header: v2(0, family, transport, [...body]), version: 2 })),
  fc.tuple(fc.nat(2), fc.uint8Array({ maxLength: 60 })).map(([transport, body]) => ({
    header: v2(1, 0, transport, [...body]),
    version: 2,
  })),
  fc.tuple(fc.constantFrom(0x10, 0x20, 0x30, 0x31, 0x32), fc.nat(255), tlvs).map((
    [familyTransport, byte, list],
  ) => {
    const family = familyTransport >> 4;
    const block = new Array(family === 1 ? 12 : family === 2 ? 36 : 216).fill(byte);
    return { header: sealed(family, familyTransport & 15, block, list), version: 2 };
  }),
).map((made) => ({ ...made, carrier: Carrier.stream as number }));

function text(line: string): Uint8Array {
  return new TextEncoder().encode(line);
}

/** What the rules accept, as a simple reader of whole values; undefined for a refusal. */
function model(header: Uint8Array, carrier: number): "own" | "client" | undefined {
  if (carrier === Carrier.spp) {
    if (header.length !== 38 || header[0] !== 0x56 || header[1] !== 0xec) return undefined;
    return usable([...header.slice(2, 18)]) ? "client" : undefined;
  }
  if (header[0] === 0x0d) return modelV2(header);
  const line = new TextDecoder("latin1").decode(header);
  if (header.length > 107 || line.indexOf("\r\n") !== line.length - 2) return undefined;
  if (/^PROXY UNKNOWN( [^]*)?\r\n$/.test(line)) return "own";
  const match = /^PROXY TCP([46]) ([0-9a-fA-F:.]+) ([0-9a-fA-F:.]+) (\d+) (\d+)\r\n$/.exec(line);
  if (!match) return undefined;
  const [, family, from = "", to = "", ...portTexts] = match;
  const read = family === "4" ? readIpv4 : readIpv6;
  const source = read(from);
  if (!source || !read(to)) return undefined;
  if (portTexts.some((port) => String(Number(port)) !== port || Number(port) > 65_535)) {
    return undefined;
  }
  return usable(source) ? "client" : undefined;
}

function modelV2(header: Uint8Array): "own" | "client" | undefined {
  if (SIGNATURE.some((byte, index) => header[index] !== byte)) return undefined;
  if (header.length < 16) return undefined;
  const [versionCommand = 0, familyTransport = 0, high = 0, low = 0] = header.slice(12);
  if (header.length !== 16 + (high << 8) + low) return undefined;
  if (versionCommand === 0x20) return "own";
  if (versionCommand !== 0x21) return undefined;
  const family = familyTransport >> 4, transport = familyTransport & 15;
  const block = [0, 12, 36, 216][family];
  if (block === undefined || transport > 2 || header.length < 16 + block) return undefined;
  if (family === 0) return "own";
  if (!goodTlvs(header, 16 + block)) return undefined;
  if (family === 3 || transport === 0) return "own";
  const size = family === 1 ? 4 : 16;
  return usable([...header.slice(16, 16 + size)]) ? "client" : undefined;
}

/** Splits bytes into TLVs: the value of each behind its type; undefined if they do not fit. */
function split(rest: Uint8Array): { type: number; at: number; value: Uint8Array }[] | undefined {
  const list = [];
  for (let at = 0; at < rest.length;) {
    const [type = 0, high, low] = rest.slice(at);
    if (high === undefined || low === undefined) return undefined;
    const value = rest.slice(at + 3, at + 3 + high * 256 + low);
    if (value.length !== high * 256 + low) return undefined;
    list.push({ type, at: at + 3, value });
    at += 3 + value.length;
  }
  return list;
}

function goodTlvs(header: Uint8Array, from: number): boolean {
  const list = split(header.slice(from));
  if (!list) return false;
  const checksums = list.filter(({ type }) => type === 0x03);
  if (checksums.length > 1) return false;
  return list.every(({ type, at, value }) => {
    if (type === 0x05) return value.length <= 128;
    if (type === 0x20) return value.length >= 5 && split(value.slice(5)) !== undefined;
    if (type !== 0x03) return true;
    if (value.length !== 4) return false;
    const zeroed = header.map((byte, index) =>
      index >= from + at && index < from + at + 4 ? 0 : byte
    );
    return crc32c(zeroed) === new DataView(value.buffer).getUint32(0);
  });
}

function readIpv4(address: string): number[] | undefined {
  const parts = address.split(".");
  const good = parts.length === 4 &&
    parts.every((part) =>
      /^\d+$/.test(part) && String(Number(part)) === part && Number(part) < 256
    );
  return good ? parts.map(Number) : undefined;
}

/** By the runtime's URL parser, which knows RFC 4291's forms. */
function readIpv6(address: string): number[] | undefined {
  const tail = /(\d+\.[\d.]+)$/.exec(address);
  if (tail && !readIpv4(tail[1] ?? "")) return undefined;
  let host: string;
  try {
    host = new URL(`http://[${address}]/`).hostname.slice(1, -1);
  } catch {
    return undefined;
  }
  const [left = "", right] = host.split("::");
  const groups = (side: string) => side === "" ? [] : side.split(":");
  const before = groups(left), after = groups(right ?? "");
  const zeroes = new Array(8 - before.length - after.length).fill("0");
  return [...before, ...zeroes, ...after].map((group) => parseInt(group, 16))
    .flatMap((group) => [group >> 8, group & 0xff]);
}

/** What no client can have, as prefixes (RFC 6890); the first that fits says why. */
const IMPOSSIBLE = [
  ["client_unspecified", "0.0.0.0", 32],
  ["client_this_network", "0.0.0.0", 8],
  ["client_multicast", "224.0.0.0", 4],
  ["client_broadcast", "255.255.255.255", 32],
  ["client_reserved", "240.0.0.0", 4],
  ["client_unspecified", "::", 128],
  ["client_link_local", "fe80::", 10],
  ["client_multicast", "ff00::", 8],
] as const;

/** Why no client can have an address of 4 or 16 bytes. */
function impossible(source: number[]): keyof typeof Refusal | undefined {
  const mapped = source.length === 16 && source.slice(0, 10).every((byte) => byte === 0) &&
    source[10] === 0xff && source[11] === 0xff;
  const address = mapped ? source.slice(12) : source;
  const bits = (bytes: number[]) => bytes.map((byte) => byte.toString(2).padStart(8, "0")).join("");
  return IMPOSSIBLE.find(([, text, length]) => {
    const prefix = (text.includes(":") ? readIpv6(text) : readIpv4(text)) ?? [];
    return prefix.length === address.length &&
      bits(prefix).slice(0, length) === bits(address).slice(0, length);
  })?.[0];
}

function usable(source: number[]): boolean {
  return impossible(source) === undefined;
}

const carrier = fc.constantFrom(Carrier.stream, Carrier.datagram, Carrier.spp);
const validClient = fc.oneof(validV1, validV2, validSpp);
const valid = fc.oneof(validClient, validOwn);

/** A valid header with a few bytes changed, dropped or doubled. */
const mutated = fc.tuple(
  valid,
  fc.array(fc.tuple(fc.nat(300), fc.nat(255), fc.nat(2)), { maxLength: 4 }),
).map(([{ header, carrier }, changes]) => {
  const bytes = [...header];
  for (const [where, value, kind] of changes) {
    const at = where % bytes.length;
    if (kind === 0) bytes[at] = value;
    else if (kind === 1 && bytes.length > 1) bytes.splice(at, 1);
    else bytes.splice(at, 0, bytes[at]!);
  }
  return { header: Uint8Array.from(bytes), carrier };
});

/** Any bytes at all, some behind a signature so that they get further. */
const anything = fc.oneof(
  fc.uint8Array({ maxLength: 400 }),
  fc.uint8Array({ maxLength: 300 }).map((rest) => Uint8Array.of(...SIGNATURE, ...rest)),
  fc.uint8Array({ maxLength: 100 }).map((rest) => Uint8Array.of(...text("PROXY "), ...rest)),
  fc.string({ unit: fc.constantFrom(..."PROXYTCPUNKW46 0123456789abcdef.:\r\n"), maxLength: 110 })
    .map(text),
  mutated.map(({ header }) => header),
);

Deno.test("createDecoder: valid headers of all kinds give their addresses back", () => {
  fc.assert(
    fc.property(validClient, ({ header, carrier, client, destination, version }) => {
      assert.deepEqual(outcome(decodeIn(0xaa, header, carrier)), {
        action: Action.client,
        version,
        client,
        destination,
      });
    }),
    { numRuns: 5_000 },
  );
});

Deno.test("createDecoder: valid headers without a client are the proxy's own", () => {
  fc.assert(
    fc.property(validOwn, ({ header, carrier, version }) => {
      assert.deepEqual(outcome(decodeIn(0xaa, header, carrier)), { action: Action.own, version });
    }),
    { numRuns: 3_000 },
  );
});

Deno.test("createDecoder: no input makes it throw, and none is read past its end", () => {
  fc.assert(
    fc.property(anything, carrier, (header, carrier) => {
      const one = outcome(decodeIn(0x00, header, carrier));
      // Were a byte outside the header read, what is there would change the verdict.
      for (const filler of [0x0a, 0x20, 0x31, 0xff]) {
        assert.deepEqual(outcome(decodeIn(filler, header, carrier)), one);
      }
    }),
    { numRuns: 3_000 },
  );
});

Deno.test("createDecoder: a header cut short is judged without the rest that lies behind", () => {
  const buffer = new ArrayBuffer(SCRATCH_SIZE);
  const decode = createDecoder(buffer);
  fc.assert(
    fc.property(valid, ({ header, carrier }) => {
      for (let length = 0; length < header.length; length++) {
        const { refusal } = decodeIn(0x00, header.subarray(0, length), carrier, buffer, decode);
        new Uint8Array(buffer).set(header, HEADER_OFFSET);
        assert.equal(decode(length, carrier), Action.drop);
        assert.equal(new DataView(buffer).getUint8(VERDICT.refusal), refusal);
      }
    }),
    { numRuns: 200 },
  );
});

Deno.test("createDecoder: nothing of one header is left for the next", () => {
  const buffer = new ArrayBuffer(SCRATCH_SIZE);
  const decode = createDecoder(buffer);
  fc.assert(
    fc.property(anything, carrier, (header, carrier) => {
      const used = outcome(decodeIn(0x00, header, carrier, buffer, decode));
      assert.deepEqual(used, outcome(decodeIn(0x00, header, carrier)));
    }),
    { numRuns: 3_000 },
  );
});

Deno.test("createDecoder: it writes into its verdict and nowhere else", () => {
  fc.assert(
    fc.property(anything, carrier, (header, carrier) => {
      const { region } = decodeIn(0xaa, header, carrier);
      assert.ok(region.subarray(VERDICT.size, HEADER_OFFSET).every((byte) => byte === 0xaa));
      assert.deepEqual(region.slice(HEADER_OFFSET, HEADER_OFFSET + header.length), header);
      assert.ok(region.subarray(HEADER_OFFSET + header.length).every((byte) => byte === 0xaa));
    }),
    { numRuns: 1_000 },
  );
});

Deno.test("createDecoder: an impossible client is refused alike in every form, and reported", () => {
  const first = fc.oneof(fc.nat(255), fc.constantFrom(0, 127, 223, 224, 239, 240, 254, 255));
  const rest = fc.oneof(fc.nat(255), fc.constantFrom(0, 0x80, 0xbf, 255));
  const any = (size: number) =>
    fc.tuple(first, fc.array(rest, { minLength: size - 1, maxLength: size - 1 }))
      .map(([head, tail]) => [head, ...tail]);
  const seen = new Set<string>();
  fc.assert(
    fc.property(fc.oneof(any(4), any(16)), port, (address, port) => {
      const wide = address.length === 4 ? mapped(address) : address;
      const block = [...wide, ...mapped([198, 51, 100, 1]), ...ports(port, 443)];
      const spp = Uint8Array.of(0x56, 0xec, ...block);
      const line = address.length === 4
        ? `TCP4 ${address.join(".")} 198.51.100.1`
        : `TCP6 ${ipv6Text(address, true)} ::1`;
      const forms: [Uint8Array, number][] = [
        [text(`PROXY ${line} ${port} 443\r\n`), Carrier.stream],
        [v2(1, 2, 1, block), Carrier.stream],
        [v2(1, 2, 2, block), Carrier.datagram],
        [spp, Carrier.spp],
      ];
      if (address.length === 4) {
        const short = [...address, 198, 51, 100, 1, ...ports(port, 443)];
        forms.push([v2(1, 1, 1, short), Carrier.stream]);
      }
      const reason = impossible(address);
      seen.add(reason ?? "none");
      for (const [header, carrier] of forms) {
        const { action, refusal, region } = decodeIn(0xaa, header, carrier);
        assert.equal(action, reason === undefined ? Action.client : Action.drop);
        assert.equal(refusal, reason && Refusal[reason]);
        const size = region[VERDICT.family] === 4 ? 4 : 16;
        const client = region.subarray(VERDICT.client_address, VERDICT.client_address + size);
        const told = size === 4 && address.length === 16 ? mapped([...client]) : [...client];
        assert.deepEqual(told, address);
        const view = new DataView(region.buffer);
        assert.equal(view.getUint16(VERDICT.client_port, LITTLE), port);
      }
    }),
    {
      numRuns: 5_000,
      examples: [[[0, 0, 0, 0], 1], [new Array(16).fill(0), 1], [[255, 255, 255, 255], 1]],
    },
  );
  assert.deepEqual(seen, new Set([...IMPOSSIBLE.map(([reason]) => reason), "none"]));
});

Deno.test("createDecoder: it accepts what a simple model of the rules accepts, and no more", () => {
  const said = { own: 0, client: 0, refused: 0 };
  fc.assert(
    fc.property(mutated, ({ header, carrier }) => {
      const { action } = decodeIn(0xaa, header, carrier);
      const verdict = action === Action.client
        ? "client"
        : action === Action.own
        ? "own"
        : undefined;
      said[verdict ?? "refused"]++;
      assert.equal(verdict, model(header, carrier));
    }),
    { numRuns: 20_000 },
  );
  assert.ok(Math.min(said.own, said.client, said.refused) > 1_000, JSON.stringify(said));
});
