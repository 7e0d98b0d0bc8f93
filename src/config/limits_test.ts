import assert from "node:assert/strict";
import { limits, listeningSockets, type Takers } from "./limits.ts";
import type { ProtocolName } from "./options.ts";
import { parsePortRange, type PortRange } from "./ranges.ts";

function range(text: string): PortRange {
  return parsePortRange(text) ?? assert.fail(text);
}

/** One listener on these addresses. */
function takers(protocol: ProtocolName, workers: number, ...texts: string[]): Takers {
  const listen = (texts.length === 0 ? ["0.0.0.0:8443"] : texts).map(range);
  return { listeners: [{ protocol, listen }], workers };
}

const LIMITS: readonly (readonly [
  protocol: ProtocolName,
  workers: number,
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

for (const [protocol, workers, fileLimit, flows, connections, pipes] of LIMITS) {
  Deno.test(`limits: ${protocol} with ${workers} workers and ${fileLimit} files`, () => {
    const expected = { flows, connections, pipes };
    assert.deepEqual(limits(takers(protocol, workers), fileLimit), expected);
  });
}

Deno.test("limits: what there may be at once leaves files for the runtime", () => {
  for (const fileLimit of [128, 1024, 4096, 65_535, 1_048_576]) {
    const { flows, connections, pipes } = limits(takers("both", 1), fileLimit);
    assert(flows + 2 * connections + 2 * pipes < fileLimit - 48, `${fileLimit}`);
  }
});

Deno.test("limits: where replies leave from many addresses, their sockets are set aside", () => {
  const flows = (protocol: ProtocolName, transparent: boolean) => {
    const { listeners, ...rest } = takers(protocol, 1);
    return limits({ ...rest, listeners: listeners.map((one) => ({ ...one, transparent })) }, 1024)
      .flows;
  };
  const all = flows("udp", false), some = flows("udp", true);
  assert.equal(some, Math.floor(all * 4 / 5));
  assert(some + Math.floor(some / 4) <= all);
  assert.equal(flows("tcp", true), flows("tcp", false));
});

Deno.test("limits: the metrics port has descriptors of its own", () => {
  const one = takers("tcp", 1);
  const files = ({ connections, pipes }: ReturnType<typeof limits>) => 2 * (connections + pipes);
  const without = files(limits(one, 1024));
  const beside = files(limits({ ...one, metricsAddr: "127.0.0.1:9100" }, 1024));
  // An odd one is left over.
  assert.equal(without - beside, 42);
});

Deno.test("limits: every further listening socket of each worker takes a descriptor", () => {
  const free = ({ flows }: ReturnType<typeof limits>) => flows;
  const one = free(limits(takers("udp", 2), 4096));
  const many = free(limits(takers("udp", 2, "0.0.0.0:1000-1999"), 4096));
  assert.equal(one - many, 2 * 999);
});

Deno.test("limits: what any listener has is a transport of all", () => {
  const [tcp] = takers("tcp", 1).listeners;
  const [udp] = takers("udp", 1).listeners;
  assert(tcp && udp);
  assert.deepEqual(
    limits({ listeners: [tcp, udp], workers: 1 }, 1024),
    limits(takers("both", 1), 1024),
  );
});

Deno.test("listeningSockets: one for each address, port and transport", () => {
  assert.equal(listeningSockets(takers("both", 1, "0.0.0.0:25", "[::]:1000-1009")), 22);
});
