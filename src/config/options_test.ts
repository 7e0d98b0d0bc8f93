import assert from "node:assert/strict";
import { parseAddress } from "./address.ts";
import { type Address, encodeConfig, limits, LITTLE_ENDIAN, type Options } from "./options.ts";
import { ENDPOINT, Level, Protocol, SERVICE_CONFIG, UdpHeader } from "../native/layout.ts";

const FILE_LIMIT = 1024;

function address(text: string): Address {
  return parseAddress(text) ?? assert.fail(`${text} is no address`);
}

/** Each number another one, so that two fields in each other's place show. */
const OPTIONS: Options = {
  ipv4: address("192.0.2.1:81"),
  ipv6: address("[fe80::2%7]:82"),
  closeAfter: 61,
  listenAddr: address("[2001:db8::3]:83"),
  listeners: 2,
  protocol: "udp",
  mark: 0x8000_0001,
  headerTimeout: 11,
  connectTimeout: 6,
  keepalive: 16,
  idleTimeout: 3601,
  drainTimeout: 12,
  shutdownDelay: 3,
  udpHeader: "spp",
  logLevel: "access",
  logFormat: "json",
  autoRoutes: false,
  sandbox: "auto",
  table: 123,
  metricsAddr: address("192.0.2.4:84"),
};

function fields(options: Options) {
  const view = new DataView(encodeConfig(options, FILE_LIMIT).buffer);
  const number = (offset: number) => view.getUint32(offset, LITTLE_ENDIAN);
  const endpoint = (offset: number) => ({
    family: view.getUint8(offset + ENDPOINT.family),
    port: view.getUint16(offset + ENDPOINT.port, LITTLE_ENDIAN),
    scope: view.getUint32(offset + ENDPOINT.scope, LITTLE_ENDIAN),
    address: [...new Uint8Array(view.buffer, offset + ENDPOINT.address, 16)],
  });
  const { listen, upstream4, upstream6, metrics, size, ...numbers } = SERVICE_CONFIG;
  return {
    size: view.byteLength === size,
    listen: endpoint(listen),
    upstream4: endpoint(upstream4),
    upstream6: endpoint(upstream6),
    metrics: endpoint(metrics),
    ...Object.fromEntries(
      Object.entries(numbers).map(([name, offset]) => [name, number(offset)]),
    ),
  };
}

const zeros = (count: number) => new Array<number>(count).fill(0);

Deno.test("encodeConfig: writes each field where the native core reads it", () => {
  assert.deepEqual(fields(OPTIONS), {
    size: true,
    listen: {
      family: 6,
      port: 83,
      scope: 0,
      address: [0x20, 0x01, 0x0d, 0xb8, ...zeros(11), 3],
    },
    upstream4: { family: 4, port: 81, scope: 0, address: [192, 0, 2, 1, ...zeros(12)] },
    upstream6: { family: 6, port: 82, scope: 7, address: [0xfe, 0x80, ...zeros(13), 2] },
    metrics: { family: 4, port: 84, scope: 0, address: [192, 0, 2, 4, ...zeros(12)] },
    protocols: Protocol.udp,
    udp_header: UdpHeader.spp,
    mark: 0x8000_0001,
    header_timeout_ms: 11_000,
    connect_timeout_ms: 6_000,
    close_after_ms: 61_000,
    log_level: Level.access,
    max_flows: limits(OPTIONS, FILE_LIMIT).flows,
    max_connections: limits(OPTIONS, FILE_LIMIT).connections,
    max_pipes: limits(OPTIONS, FILE_LIMIT).pipes,
    keepalive_ms: 16_000,
    idle_timeout_ms: 3_601_000,
  });
});

Deno.test("encodeConfig: an upstream that is none, and metrics that are not served, are empty", () => {
  const { ipv4, ipv6, metricsAddr: _, ...rest } = OPTIONS;
  assert(ipv4 && ipv6);
  const empty = { family: 0, port: 0, scope: 0, address: zeros(16) };
  const only4 = fields({ ...rest, ipv4 });
  assert.deepEqual([only4.upstream6, only4.metrics], [empty, empty]);
  assert.equal(only4.upstream4.family, 4);
  const only6 = fields({ ...rest, ipv6 });
  assert.deepEqual(only6.upstream4, empty);
  assert.equal(only6.upstream6.family, 6);
});

Deno.test("encodeConfig: writes each protocol as its bits", () => {
  const bits = (protocol: Options["protocol"]) =>
    (fields({ ...OPTIONS, protocol }) as Record<string, unknown>).protocols;
  assert.deepEqual([bits("tcp"), bits("udp"), bits("both")], [1, 2, 3]);
});

Deno.test("encodeConfig: the longest times of the command line fit", () => {
  const most = 4_000_000;
  const options = { ...OPTIONS, closeAfter: most, idleTimeout: most };
  const longest = fields(options) as Record<string, unknown>;
  assert.deepEqual([longest.close_after_ms, longest.idle_timeout_ms], [4e9, 4e9]);
});

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
