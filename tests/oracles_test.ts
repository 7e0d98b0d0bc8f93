/**
 * The decoder against two public crates that read PROXY headers, `ppp` and `proxy-header`: the same bytes
 * to all three. Where one of them reads something else, the difference is one of those below, each with
 * the rule of docs/proxy-protocol.md that decides it. More inputs, and those of a failure again:
 *
 *   MMPROXY_INPUTS=5000000 MMPROXY_SEED=7 deno test -A tests/oracles_test.ts
 */
import assert from "node:assert/strict";
import { createDecoder } from "../src/decide/proxy_header.ts";
import {
  Action,
  Carrier,
  HEADER_OFFSET,
  Refusal,
  SCRATCH_SIZE,
  VERDICT,
} from "../src/native/layout.ts";
import { corpus, frame, mutate, piped, random } from "./header_inputs.ts";

const INPUTS = Number(Deno.env.get("MMPROXY_INPUTS") ?? 60_000);
const SEED = Number(Deno.env.get("MMPROXY_SEED") ?? Date.now() % 0x7fff_ffff);
const ORACLES = ["ppp", "proxy-header"] as const;
/** Bytes of an oracle's answer. */
const ANSWER = 44;
const LITTLE = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** What a reader makes of some bytes. */
interface Reading {
  /** Bytes of the header; 0 if there is none that it takes. */
  readonly length: number;
  /** Whom it names, in hexadecimal; empty for nobody. */
  readonly named: string;
  /** The decoder's reason, where it takes none. */
  readonly refusal: number;
}

/** Why an oracle may read something else. */
interface Difference {
  readonly oracle?: typeof ORACLES[number];
  /** The rule of docs/proxy-protocol.md, and the reason. */
  readonly rule: string;
  /** In which it occurs. */
  readonly example: Uint8Array<ArrayBuffer>;
  is(data: Uint8Array, ours: Reading, theirs: Reading): boolean;
}

const line = (text: string) => new TextEncoder().encode(`${text}\r\n`);
const v2 = (...bytes: number[]) => Uint8Array.of(...SIGNATURE, ...bytes);
const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
/** 192.0.2.1:1 to 198.51.100.1:2. */
const ADDRESSES = [192, 0, 2, 1, 198, 51, 100, 1, 0, 1, 0, 2];

const isV1 = (data: Uint8Array) => data[0] === 0x50;
/** Where version 2 has its command, and its family with the transport. */
const COMMAND = 12;
const FAMILY = 13;

/** They take what we refuse for one of these reasons. */
function refused(...reasons: number[]): Difference["is"] {
  return (_, ours, theirs) => theirs.length > 0 && reasons.includes(ours.refusal);
}

/** Every difference that there may be. Each occurs, or the test fails. */
const DIFFERENCES: readonly Difference[] = [
  {
    oracle: "proxy-header",
    rule: "T1: it skips the byte behind PROXY unread",
    example: line("PROXY\0TCP4 192.0.2.1 198.51.100.1 1 2"),
    is: (data, ours, theirs) =>
      isV1(data) && data[5] !== 0x20 && ours.refusal === Refusal.not_proxy && theirs.length > 0,
  },
  {
    rule: "T3: they read ports with a sign, and proxy-header ones with leading zeroes",
    example: line("PROXY TCP4 192.0.2.1 198.51.100.1 +1 2"),
    is: refused(Refusal.v1_port),
  },
  {
    oracle: "proxy-header",
    rule: "T4: it bounds a line only where its end is missing",
    example: line(`PROXY UNKNOWN ${"x".repeat(100)}`),
    is: refused(Refusal.v1_too_long),
  },
  {
    oracle: "ppp",
    rule: "T5: it takes a space and a LF, and whatever follows, for a line's end",
    example: line("PROXY UNKNOWN \n").subarray(0, 15),
    is: (data, _, theirs) =>
      isV1(data) && theirs.length > 0 &&
      (data[theirs.length - 2] !== 0x0d || data[theirs.length - 1] !== 0x0a),
  },
  {
    rule: "T6: a lone CR ends their UNKNOWN line, and for ppp its tail is UTF-8",
    example: line("PROXY UNKNOWN a\rb"),
    is: (data, ours, theirs) =>
      isV1(data) && ours.length > 0 && ours.named === "" && theirs.length <= 0,
  },
  {
    oracle: "proxy-header",
    rule: "T6: it takes every word that begins with UNKNOWN",
    example: line("PROXY UNKNOWNX"),
    is: refused(Refusal.v1_protocol),
  },
  {
    rule: "B2: they want a LOCAL header's family, transport and addresses valid",
    example: v2(0x20, 0xff, 0, 0),
    is: (data, ours, theirs) =>
      data[COMMAND] === 0x20 && ours.length > 0 && ours.named === "" && theirs.length <= 0,
  },
  {
    oracle: "ppp",
    rule: "B4: it names the addresses of a transport that says nothing",
    example: v2(0x21, 0x10, 0, ADDRESSES.length, ...ADDRESSES),
    is: (data, ours, theirs) =>
      (data[FAMILY] ?? 0) % 16 === 0 && ours.named === "" && ours.length === theirs.length,
  },
  {
    oracle: "proxy-header",
    rule: "B4: it refuses a family or a transport of 0, but for both",
    example: v2(0x21, 0x01, 0, 0),
    is: (data, ours, theirs) =>
      ((data[FAMILY] ?? 0) % 16 === 0 || (data[FAMILY] ?? 0) < 16) && ours.length > 0 &&
      ours.named === "" && theirs.length <= 0,
  },
  {
    rule: "B7, B9, B10: they leave the TLVs to their user",
    example: v2(0x21, 0x11, 0, ADDRESSES.length + 1, ...ADDRESSES, 1),
    is: refused(Refusal.v2_tlv),
  },
  {
    rule: "B8: they leave the checksum to their user",
    example: v2(0x21, 0x11, 0, ADDRESSES.length + 7, ...ADDRESSES, 3, 0, 4, 0, 0, 0, 0),
    is: refused(Refusal.v2_checksum),
  },
  {
    rule: "policy: whom no header can name is the receiver's to say",
    example: line("PROXY TCP4 224.0.0.1 198.51.100.1 1 2"),
    is: refused(
      Refusal.client_unspecified,
      Refusal.client_this_network,
      Refusal.client_multicast,
      Refusal.client_broadcast,
      Refusal.client_reserved,
      Refusal.client_link_local,
    ),
  },
  {
    rule: "policy: IPv4-mapped is IPv4",
    example: line("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 1 2"),
    is: (_, ours, theirs) =>
      ours.length === theirs.length && ours.named !== "" && theirs.named.includes(MAPPED),
  },
];

/** ::ffff:0:0/96 in hexadecimal. */
const MAPPED = "00000000000000000000ffff";

Deno.test(`the decoder reads ${INPUTS} headers as ${ORACLES.join(" and ")} do (seed ${SEED})`, async () => {
  const seeds = [...corpus(), ...DIFFERENCES.map(({ example }) => example)];
  const next = random(SEED);
  const inputs = [...seeds, ...Array.from({ length: INPUTS }, () => mutate(seeds, next))];
  const framed = await frame(inputs.map((data) => ({ carrier: Carrier.stream, data })));
  const read = reader();
  const answers = await piped(["oracles"], encoded(inputs));
  assert.equal(answers.length, inputs.length * ORACLES.length * ANSWER);
  const came = { both: 0, neither: 0 };
  const seen = new Map<Difference, number>();
  inputs.forEach((data, index) => {
    const ours = read(data, framed[index] ?? 0);
    ORACLES.forEach((oracle, place) => {
      const theirs = answered(answers, (index * ORACLES.length + place) * ANSWER);
      if (ours.length === theirs.length && ours.named === theirs.named) {
        came[ours.length > 0 ? "both" : "neither"]++;
        return;
      }
      const known = DIFFERENCES.find((difference) =>
        (difference.oracle ?? oracle) === oracle && difference.is(data, ours, theirs)
      );
      if (!known) {
        const said = Deno.inspect({ oracle, ours, theirs, data }, { iterableLimit: 300 });
        assert.fail(`seed ${SEED}: ${JSON.stringify(new TextDecoder().decode(data))} ${said}`);
      }
      seen.set(known, (seen.get(known) ?? 0) + 1);
    });
  });
  // Otherwise hardly anything was compared.
  assert.ok(Math.min(came.both, came.neither) > INPUTS / 20, JSON.stringify(came));
  assert.deepEqual(DIFFERENCES.filter((known) => !seen.has(known)).map(({ rule }) => rule), []);
});

/** What the oracles are given. */
function encoded(inputs: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(inputs.reduce((sum, { length }) => sum + 4 + length, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const data of inputs) {
    view.setUint32(at, data.length, LITTLE);
    bytes.set(data, at + 4);
    at += 4 + data.length;
  }
  return bytes;
}

/** An oracle's answer: tests/oracles/src/main.rs has its form. */
function answered(answers: Uint8Array<ArrayBuffer>, at: number): Reading {
  const view = new DataView(answers.buffer, at, ANSWER);
  const length = view.getInt32(0, LITTLE);
  const family = view.getUint8(4);
  const address = (offset: number) => answers.subarray(at + offset, at + offset + 16);
  const named = [
    { address: address(8), port: view.getUint16(40, LITTLE) },
    { address: address(24), port: view.getUint16(42, LITTLE) },
  ];
  return { length, named: family === 0 ? "" : inWords(family, named), refusal: Refusal.none };
}

/** The decoder on a header of this many bytes, as framing has it. */
function reader(): (data: Uint8Array, length: number) => Reading {
  const region = new ArrayBuffer(SCRATCH_SIZE);
  const decode = createDecoder(region);
  const bytes = new Uint8Array(region);
  const view = new DataView(region);
  return (data, length) => {
    if (length <= 0) return { length: 0, named: "", refusal: -length };
    bytes.set(data, HEADER_OFFSET);
    const action = decode(length, Carrier.stream);
    const refusal = bytes[VERDICT.refusal] ?? Refusal.none;
    if (action === Action.drop) return { length: 0, named: "", refusal };
    if (action === Action.own) return { length, named: "", refusal: Refusal.none };
    const address = (offset: number) => bytes.slice(offset, offset + 16);
    const named = [VERDICT.client_port, VERDICT.destination_port].map((port, index) => ({
      address: address(index === 0 ? VERDICT.client_address : VERDICT.destination_address),
      port: view.getUint16(port, LITTLE),
    }));
    return {
      length,
      named: inWords(view.getUint8(VERDICT.family), named),
      refusal: Refusal.none,
    };
  };
}

function inWords(family: number, named: readonly { address: Uint8Array; port: number }[]): string {
  const ends = named.map(({ address, port }) =>
    `${address.subarray(0, family === 4 ? 4 : 16).toHex()} ${port}`
  );
  return ends.join(" to ");
}
