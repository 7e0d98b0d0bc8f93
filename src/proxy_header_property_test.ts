import assert from "node:assert/strict";
import fc from "fast-check";
import {
  Action,
  Carrier,
  HEADER_OFFSET,
  MAX_HEADER,
  SCRATCH_SIZE,
  VERDICT,
} from "./native/layout.ts";
import { createDecoder } from "./proxy_header.ts";

const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const LITTLE = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

interface Outcome {
  readonly action: number;
  readonly refusal: number;
  readonly client?: { family: number; address: number[]; port: number };
}

/** Decodes in a fresh region whose other bytes are all `filler`. */
function decodeIn(
  filler: number,
  header: Uint8Array,
  carrier: number,
): Outcome & { region: Uint8Array } {
  const buffer = new ArrayBuffer(SCRATCH_SIZE);
  const region = new Uint8Array(buffer).fill(filler);
  region.set(header, HEADER_OFFSET);
  const action = createDecoder(buffer)(header.length, carrier);
  const view = new DataView(buffer);
  const family = view.getUint8(VERDICT.family);
  const address = [...region.subarray(VERDICT.client_address, VERDICT.client_address + 16)];
  return {
    region,
    action,
    refusal: action === Action.drop ? view.getUint8(VERDICT.refusal) : 0,
    ...(action === Action.client && {
      client: {
        family,
        address: address.slice(0, family === 4 ? 4 : 16),
        port: view.getUint16(VERDICT.client_port, LITTLE),
      },
    }),
  };
}

// An encoder and a model of their own: plain, allocating, and sharing nothing with the decoder.

type Tlv = { type: number; value: Uint8Array };

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
const tlvs: fc.Arbitrary<Tlv[]> = fc.array(
  fc.record({
    // Types whose value has no form of its own.
    type: fc.constantFrom(0x01, 0x02, 0x04, 0x30, 0xe0, 0xea, 0xff),
    value: fc.uint8Array({ maxLength: 40 }),
  }),
  { maxLength: 4 },
);
const encodeTlvs = (list: Tlv[]) =>
  list.flatMap(({ type, value }) => [type, value.length >> 8, value.length & 0xff, ...value]);
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

const validV1 = fc.oneof(
  fc.tuple(ipv4, ipv4, port, port).map(([from, to, fromPort, toPort]) => ({
    header: text(`PROXY TCP4 ${from.join(".")} ${to.join(".")} ${fromPort} ${toPort}\r\n`),
    client: { family: 4, address: [...from], port: fromPort },
  })),
  fc.tuple(ipv6, ipv6, port, port, fc.boolean()).map(([from, to, fromPort, toPort, compress]) => ({
    header: text(
      `PROXY TCP6 ${ipv6Text(from, compress)} ${ipv6Text(to, !compress)} ${fromPort} ${toPort}\r\n`,
    ),
    client: { family: 6, address: from, port: fromPort },
  })),
);

const validV2 = fc.oneof(
  fc.tuple(ipv4, ipv4, port, port, tlvs, fc.integer({ min: 1, max: 2 })).map((
    [from, to, fromPort, toPort, list, transport],
  ) => ({
    header: v2(1, 1, transport, [...from, ...to, ...ports(fromPort, toPort), ...encodeTlvs(list)]),
    client: { family: 4, address: [...from], port: fromPort },
  })),
  fc.tuple(ipv6, ipv6, port, port, tlvs, fc.integer({ min: 1, max: 2 })).map((
    [from, to, fromPort, toPort, list, transport],
  ) => ({
    header: v2(1, 2, transport, [...from, ...to, ...ports(fromPort, toPort), ...encodeTlvs(list)]),
    client: { family: 6, address: from, port: fromPort },
  })),
);

const validSpp = fc.tuple(ipv6, ipv6, port, port).map(([from, to, fromPort, toPort]) => ({
  header: Uint8Array.of(0x56, 0xec, ...from, ...to, ...ports(fromPort, toPort)),
  client: { family: 6, address: from, port: fromPort },
}));

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
  if (!goodTlvs(header.slice(16 + block))) return undefined;
  if (family === 3 || transport === 0) return "own";
  const size = family === 1 ? 4 : 16;
  return usable([...header.slice(16, 16 + size)]) ? "client" : undefined;
}

/** Only for headers without a checksum, which the mutations below never build. */
function goodTlvs(rest: Uint8Array): boolean {
  if (rest.length === 0) return true;
  if (rest.length < 3) return false;
  const [type = 0, high = 0, low = 0] = rest;
  const length = (high << 8) + low;
  if (rest.length < 3 + length || type === 0x03) return false;
  if (type === 0x05 && length > 128) return false;
  if (type === 0x20 && (length < 5 || !goodSubTlvs(rest.slice(8, 3 + length)))) return false;
  return goodTlvs(rest.slice(3 + length));
}

function goodSubTlvs(rest: Uint8Array): boolean {
  if (rest.length === 0) return true;
  const length = ((rest[1] ?? 0) << 8) + (rest[2] ?? 0);
  return rest.length >= 3 + length && goodSubTlvs(rest.slice(3 + length));
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

function usable(source: number[]): boolean {
  const mapped = source.length === 16 && source.slice(0, 10).every((byte) => byte === 0) &&
    source[10] === 0xff && source[11] === 0xff;
  const address = mapped ? source.slice(12) : source;
  if (address.every((byte) => byte === 0)) return false;
  if (address.length === 16) return address[0] !== 0xff;
  return (address[0]! & 0xf0) !== 0xe0 && !address.every((byte) => byte === 255);
}

const carrier = fc.constantFrom(Carrier.stream, Carrier.datagram, Carrier.spp);
const valid = fc.oneof(
  validV1.map((made) => ({ ...made, carrier: Carrier.stream as number })),
  validV2.map((made) => ({ ...made, carrier: Carrier.datagram as number })),
  validSpp.map((made) => ({ ...made, carrier: Carrier.spp as number })),
);

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

Deno.test("createDecoder: valid headers of all kinds give their client back", () => {
  fc.assert(
    fc.property(valid, ({ header, carrier, client }) => {
      const outcome = decodeIn(0xaa, header, carrier);
      assert.equal(outcome.action, Action.client);
      assert.deepEqual(outcome.client, client);
    }),
    { numRuns: 3_000 },
  );
});

Deno.test("createDecoder: no input makes it throw, and none is read past its end", () => {
  fc.assert(
    fc.property(anything, carrier, (header, carrier) => {
      const one = decodeIn(0x00, header, carrier);
      // Were a byte outside the header read, what lies there would change the verdict.
      for (const filler of [0x0a, 0x20, 0x31, 0xff]) {
        const other = decodeIn(filler, header, carrier);
        assert.deepEqual(
          [other.action, other.refusal, other.client],
          [one.action, one.refusal, one.client],
        );
      }
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

Deno.test("createDecoder: it accepts what a simple model of the rules accepts, and no more", () => {
  fc.assert(
    fc.property(mutated, ({ header, carrier }) => {
      if (header.length > MAX_HEADER) return;
      const { action } = decodeIn(0xaa, header, carrier);
      const said = action === Action.client ? "client" : action === Action.own ? "own" : undefined;
      // A checksum TLV can only come of a mutation, and is as good as never right.
      assert.equal(said, model(header, carrier));
    }),
    { numRuns: 20_000 },
  );
});
