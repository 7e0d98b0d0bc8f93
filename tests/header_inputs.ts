/** Headers, broken ones and noise for tests that compare readers of headers, and the native framing. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** What the framing is given. */
export interface Case {
  readonly carrier: number;
  readonly data: Uint8Array;
}

/** Numbers from 0 to `below`, the same for the same seed (xorshift32). */
export function random(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** The fuzz target's corpus: every form of a header, and known ways to break each. */
export function corpus(): Uint8Array[] {
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

/** One of `seeds`, cut, spliced or changed in up to three places; now and then noise. */
export function mutate(seeds: readonly Uint8Array[], next: (below: number) => number): Uint8Array {
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
export async function frame(cases: readonly Case[]): Promise<Int32Array> {
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
  const bin = ["mmproxy-ffi", "--features", "fuzzing", "--bin", "frames"];
  const stdout = await piped(bin, input);
  const answers = new Int32Array(stdout.buffer);
  assert.equal(answers.length, cases.length);
  return answers;
}

/** What a program of this workspace, `cargo run -p …`, writes about its input. */
export async function piped(
  program: readonly string[],
  input: Uint8Array<ArrayBuffer>,
): Promise<Uint8Array<ArrayBuffer>> {
  const child = new Deno.Command("cargo", {
    args: ["run", "-q", "-p", ...program],
    cwd: ROOT,
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const written = new Blob([input]).stream().pipeTo(child.stdin);
  const [{ success, stdout }] = await Promise.all([child.output(), written]);
  assert.ok(success, `cargo run -p ${program.join(" ")}`);
  return stdout.slice();
}
