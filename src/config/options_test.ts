import assert from "node:assert/strict";
import { parseAddress } from "./address.ts";
import { type Address, limits, type Options } from "./options.ts";

function address(text: string): Address {
  return parseAddress(text) ?? assert.fail(`${text} is no address`);
}

const LIMITS: readonly (readonly [
  protocol: Options["protocol"],
  listeners: number,
  fileLimit: number,
  flows: number,
  connections: number,
  pipes: number,
])[] = [
  ["tcp", 1, 1024, 964, 422, 60],
  ["udp", 1, 1024, 964, 422, 60],
  ["both", 1, 1024, 482, 211, 30],
  ["both", 4, 1024, 464, 203, 29],
  ["udp", 1, 1_048_576, 65_536, 523_234, 1024],
  ["both", 1, 71, 5, 4, 0],
  ["tcp", 1, 60, 4, 4, 0],
  ["tcp", 8, 64, 4, 4, 0],
  ["both", 1024, 0, 4, 4, 0],
];

for (const [protocol, listeners, fileLimit, flows, connections, pipes] of LIMITS) {
  Deno.test(`limits: ${protocol} on ${listeners} listeners with ${fileLimit} files`, () => {
    const expected = { flows, connections, pipes };
    assert.deepEqual(limits({ protocol, listeners }, fileLimit), expected);
  });
}

Deno.test("limits: what there may be at once leaves files for the runtime", () => {
  for (const fileLimit of [128, 1024, 4096, 65_535, 1_048_576]) {
    const { flows, connections, pipes } = limits({ protocol: "both", listeners: 1 }, fileLimit);
    assert(flows + 2 * connections + 2 * pipes < fileLimit - 48, `${fileLimit}`);
  }
});

Deno.test("limits: the metrics port has descriptors of its own", () => {
  const options = { protocol: "tcp", listeners: 1 } as const;
  const files = ({ connections, pipes }: ReturnType<typeof limits>) => 2 * (connections + pipes);
  const without = files(limits(options, 1024));
  const beside = files(limits({ ...options, metricsAddr: address("127.0.0.1:9100") }, 1024));
  // An odd one is left over.
  assert.equal(without - beside, 36);
});
