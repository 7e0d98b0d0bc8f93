/**
 * The native framing against the decoder: the same bytes to both, and they agree on where a header ends
 * and on whether it is one. More inputs, and those of a failure again:
 *
 *   MMPROXY_INPUTS=5000000 MMPROXY_SEED=7 deno test -A tests/framing_test.ts
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Action, Carrier, HEADER_OFFSET, Refusal, SCRATCH_SIZE } from "../src/native/layout.ts";
import { createDecoder } from "../src/decide/proxy_header.ts";
import { VERDICT } from "../src/native/layout.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const INPUTS = Number(Deno.env.get("MMPROXY_INPUTS") ?? 200_000);
const SEED = Number(Deno.env.get("MMPROXY_SEED") ?? Date.now() % 0x7fff_ffff);
/** Inputs that the framing gets at a time. */
const BATCH = 100_000;
/** Every prefix of an input is decoded up to this length. */
const EVERY_PREFIX = 160;

/** What a framed header may still be refused for: all that framing does not look at. */
const OF_THE_CONTENT: readonly number[] = [
  Refusal.v1_syntax,
  Refusal.v1_address,
  Refusal.v1_port,
  Refusal.v2_short_address,
  Refusal.v2_tlv,
  Refusal.v2_checksum,
  Refusal.v1_mixed_families,
  Refusal.client_unspecified,
  Refusal.client_this_network,
  Refusal.client_multicast,
  Refusal.client_broadcast,
  Refusal.client_reserved,
  Refusal.client_link_local,
];

interface Case {
  readonly carrier: number;
  readonly data: Uint8Array;
}

/** Numbers from 0 to `below`, the same for the same seed (xorshift32). */
function random(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** The fuzz target's corpus: every form of a header, and known ways to break each. */
function corpus(): Uint8Array[] {
  const directory = join(ROOT, "fuzz/corpus/framing");
  const names = Array.from(Deno.readDirSync(directory), ({ name }) => name).sort();
  assert.ok(names.length > 20, `${directory} has ${names.length} inputs`);
  return names.map((name) => Deno.readFileSync(join(directory, name)));
}

/** Bytes on which a parser decides. */
const TELLING = [
  0x00,
  0x01,
  0x03,
  0x0a,
  0x0c,
  0x0d,
  0x11,
  0x20,
  0x21,
  0x24,
  0x30,
  0x3a,
  0x50,
  0xff,
];

function mutate(seeds: readonly Uint8Array[], next: (below: number) => number): Uint8Array {
  const pick = () => seeds[next(seeds.length)] ?? new Uint8Array();
  const byte = () => next(2) === 0 ? next(256) : TELLING[next(TELLING.length)] ?? 0;
  // Some are noise, behind a beginning that lets it in.
  if (next(16) === 0) {
    const noise = Uint8Array.from({ length: next(64) }, byte);
    return Uint8Array.of(...pick().subarray(0, next(20)), ...noise);
  }
  let data = pick().slice();
  for (let times = next(4); times > 0; times--) {
    const at = next(data.length + 1);
    switch (next(6)) {
      case 0:
        data = data.slice(0, at);
        break;
      case 1:
        data = Uint8Array.of(...data.subarray(0, at), byte(), ...data.subarray(at));
        break;
      case 2:
        data = Uint8Array.of(...data.subarray(0, at), ...data.subarray(at + 1));
        break;
      case 3:
        // The end of one behind the start of another.
        data = Uint8Array.of(...data.subarray(0, at), ...pick().subarray(at));
        break;
      default:
        if (at < data.length) data[at] = byte();
    }
  }
  return data;
}

/** What the native framing says of each: a header's length, 0 for more, a refusal below zero. */
async function frame(cases: readonly Case[]): Promise<Int32Array> {
  const input = new Uint8Array(cases.reduce((sum, { data }) => sum + 5 + data.length, 0));
  const view = new DataView(input.buffer);
  const little = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;
  let at = 0;
  for (const { carrier, data } of cases) {
    input[at] = carrier;
    view.setUint32(at + 1, data.length, little);
    input.set(data, at + 5);
    at += 5 + data.length;
  }
  const child = new Deno.Command("cargo", {
    args: ["run", "-q", "-p", "mmproxy-ffi", "--features", "fuzzing", "--bin", "frames"],
    cwd: ROOT,
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const written = new Blob([input]).stream().pipeTo(child.stdin);
  const [{ success, stdout }] = await Promise.all([child.output(), written]);
  assert.ok(success, "cargo run --bin frames");
  const answers = new Int32Array(stdout.slice().buffer);
  assert.equal(answers.length, cases.length);
  return answers;
}

/** The decoder's answer to these bytes: whether it accepts them, and why not. */
function judge(): (data: Uint8Array, length: number, carrier: number) => number {
  const region = new ArrayBuffer(SCRATCH_SIZE);
  const decode = createDecoder(region);
  const bytes = new Uint8Array(region);
  let filled: Uint8Array | undefined;
  return (data, length, carrier) => {
    if (data !== filled) bytes.set(data, HEADER_OFFSET);
    filled = data;
    return decode(length, carrier) === Action.drop
      ? bytes[VERDICT.refusal] ?? Refusal.none
      : Refusal.none;
  };
}

Deno.test(`framing and decoder agree on ${INPUTS} inputs (seed ${SEED})`, async () => {
  const seeds = corpus();
  const next = random(SEED);
  const decode = judge();
  const came = { accepted: 0, refused: 0, none: 0 };
  for (let done = 0; done < INPUTS; done += BATCH) {
    const cases = Array.from({ length: Math.min(BATCH, INPUTS - done) }, (_, index): Case => ({
      carrier: [Carrier.stream, Carrier.datagram, Carrier.spp][next(3)] ?? Carrier.stream,
      // The corpus itself comes first.
      data: done === 0 && index < 3 * seeds.length
        ? seeds[index % seeds.length] ?? new Uint8Array()
        : mutate(seeds, next),
    }));
    const framed = await frame(cases);
    cases.forEach(({ carrier, data }, index) => {
      const end = framed[index] ?? 0;
      const said = () =>
        `seed ${SEED}: carrier ${carrier}, framed ${end}, ${
          Deno.inspect(data, { iterableLimit: 300 })
        }`;
      const reason = end > 0 ? decode(data, end, carrier) : decode(data, data.length, carrier);
      if (end > 0) {
        // It is one, but for what it says.
        const agreed = reason === Refusal.none || OF_THE_CONTENT.includes(reason);
        if (!agreed) assert.fail(`the decoder says ${reason} of a header; ${said()}`);
      } else if (reason === Refusal.none) {
        assert.fail(`the decoder takes what is no header; ${said()}`);
      }
      came[end <= 0 ? "none" : reason === Refusal.none ? "accepted" : "refused"]++;
      // And it ends there: nothing shorter or longer is one.
      for (let length = 0; length <= Math.min(data.length, EVERY_PREFIX); length++) {
        if (length === end || decode(data, length, carrier) !== Refusal.none) continue;
        assert.fail(`the decoder takes the first ${length} bytes; ${said()}`);
      }
    });
  }
  // Otherwise hardly anything was compared.
  const fewest = INPUTS / 100;
  assert.ok(Math.min(came.accepted, came.refused, came.none) > fewest, JSON.stringify(came));
  if (INPUTS > 200_000) console.log(came);
});
