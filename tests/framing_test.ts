/**
 * The native framing against the decoder: the same bytes to both, and they agree on where a header ends
 * and on whether it is one. More inputs, and those of a failure again:
 *
 *   MMPROXY_INPUTS=5000000 MMPROXY_SEED=7 deno test -A tests/framing_test.ts
 */
import assert from "node:assert/strict";
import { Action, Carrier, HEADER_OFFSET, Refusal, SCRATCH_SIZE } from "../src/native/layout.ts";
import { createDecoder } from "../src/decide/proxy_header.ts";
import { VERDICT } from "../src/native/layout.ts";
import { type Case, corpus, frame, mutate, random } from "./header_inputs.ts";

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
