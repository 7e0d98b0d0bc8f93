import assert from "node:assert/strict";
import { parseAddress } from "./address.ts";
import { parseDestination } from "./destinations.ts";
import { type Address, LITTLE_ENDIAN } from "./options.ts";
import { Problem } from "./problem.ts";
import { parseSubnet } from "./subnet.ts";
import {
  encodeAnyEndpoint,
  encodeDestinations,
  encodeListeners,
  encodePorts,
  encodeProxy,
  encodeTrust,
  type ListenerTerms,
} from "./records.ts";
import {
  DESTINATION,
  ENDPOINT,
  HeaderRule,
  Level,
  LISTENER,
  LISTENER_CONFIG,
  PORT,
  PortFlag,
  Protocol,
  PROXY_CONFIG,
  TRUST,
  UdpHeader,
} from "../native/layout.ts";

function address(text: string): Address {
  return parseAddress(text) ?? assert.fail(`${text} is no address`);
}

function readers(record: Uint8Array<ArrayBuffer>) {
  const view = new DataView(record.buffer);
  return {
    number: (offset: number) => view.getUint32(offset, LITTLE_ENDIAN),
    endpoint: (offset: number) => ({
      family: view.getUint8(offset + ENDPOINT.family),
      port: view.getUint16(offset + ENDPOINT.port, LITTLE_ENDIAN),
      scope: view.getUint32(offset + ENDPOINT.scope, LITTLE_ENDIAN),
      address: [...new Uint8Array(view.buffer, offset + ENDPOINT.address, 16)],
    }),
  };
}

const zeros = (count: number) => new Array<number>(count).fill(0);
const EMPTY = { family: 0, port: 0, scope: 0, address: zeros(16) };

Deno.test("encodeProxy: writes each field where the native core reads it", () => {
  const metricsAddr = address("192.0.2.4:84");
  const record = encodeProxy({ metricsAddr, logLevel: "access", control: "/c" }, 2);
  const { number, endpoint } = readers(record);
  const { metrics, size, ...numbers } = PROXY_CONFIG;
  assert.equal(record.length, size);
  assert.deepEqual(endpoint(metrics), {
    family: 4,
    port: 84,
    scope: 0,
    address: [192, 0, 2, 4, ...zeros(12)],
  });
  assert.deepEqual(
    Object.fromEntries(Object.entries(numbers).map(([name, offset]) => [name, number(offset)])),
    {
      log_level: Level.access,
      workers: 2,
      counts_traffic: 1,
    },
  );
  const without = encodeProxy({ logLevel: "info" }, 1);
  assert.deepEqual(readers(without).endpoint(metrics), EMPTY);
  assert.equal(readers(without).number(PROXY_CONFIG.counts_traffic), 0);
});

/** Each number another one, so that two fields in each other's place show. */
const TERMS = {
  udpHeader: "spp",
  mark: 0x8000_0001,
  headerTimeout: 11,
  connectTimeout: 6,
  closeAfter: 61,
  keepalive: 16,
  idleTimeout: 3601,
  optionalWait: 4,
  maxConnectionsPerClient: 17,
  maxConnections: 18,
  maxFlows: 19,
} as const;

/** The `ListenerConfig` of a new listener. */
function terms(terms: ListenerTerms, restricted: boolean) {
  const rules = restricted ? { rules: new Uint8Array(TRUST.size) } : {};
  const { listeners } = encodeListeners([{ terms, ports: [], ...rules }]);
  assert.equal(listeners.length, LISTENER.size);
  const { size, ...numbers } = LISTENER_CONFIG;
  const { number } = readers(listeners.slice(LISTENER.config, LISTENER.config + size));
  return Object.fromEntries(
    Object.entries(numbers).map(([name, offset]) => [name, number(offset)]),
  );
}

Deno.test("encodeListeners: writes each field where the native core reads it", () => {
  assert.deepEqual(terms(TERMS, true), {
    udp_header: UdpHeader.spp,
    mark: 0x8000_0001,
    header_timeout_ms: 11_000,
    connect_timeout_ms: 6_000,
    close_after_ms: 61_000,
    keepalive_ms: 16_000,
    idle_timeout_ms: 3_601_000,
    optional_wait_ms: 4_000,
    max_connections_per_client: 17,
    max_connections: 18,
    max_flows: 19,
    restricted: 1,
  });
});

Deno.test("encodeListeners: the longest times of the command line fit", () => {
  const most = 4_000_000;
  const longest = terms({ ...TERMS, closeAfter: most, idleTimeout: most }, false);
  assert.deepEqual([longest.close_after_ms, longest.idle_timeout_ms, longest.restricted], [
    4e9,
    4e9,
    0,
  ]);
});

Deno.test("encodePorts: writes one record after the other", () => {
  const listen = address("[2001:db8::3]:83");
  const ipv4 = address("192.0.2.1:81");
  const ipv6 = address("[fe80::2%7]:82");
  const records = encodePorts([
    { listen, ipv4, ipv6, protocol: "udp" },
    { listen, ipv6, protocol: "both", onlyV6: true },
    { listen, ipv4, protocol: "tcp", transparent: true },
  ]);
  const { number, endpoint } = readers(records);
  assert.equal(records.length, 3 * PORT.size);
  const read = (index: number) => {
    const { listen, upstream4, upstream6, protocols, flags } = PORT;
    const at = index * PORT.size;
    return {
      listen: endpoint(at + listen),
      upstream4: endpoint(at + upstream4),
      upstream6: endpoint(at + upstream6),
      protocols: number(at + protocols),
      flags: number(at + flags),
    };
  };
  const at = (family: number, port: number, scope: number, bytes: number[]) => ({
    family,
    port,
    scope,
    address: [...bytes, ...zeros(16 - bytes.length)],
  });
  const own = at(6, 83, 0, [0x20, 0x01, 0x0d, 0xb8, ...zeros(11), 3]);
  const upstream4 = at(4, 81, 0, [192, 0, 2, 1]);
  const upstream6 = at(6, 82, 7, [0xfe, 0x80, ...zeros(13), 2]);
  assert.deepEqual(read(0), {
    listen: own,
    upstream4,
    upstream6,
    protocols: Protocol.udp,
    flags: 0,
  });
  assert.deepEqual(read(1), {
    listen: own,
    upstream4: EMPTY,
    upstream6,
    protocols: Protocol.tcp | Protocol.udp,
    flags: PortFlag.only_v6,
  });
  assert.deepEqual(read(2), {
    listen: own,
    upstream4,
    upstream6: EMPTY,
    protocols: Protocol.tcp,
    flags: PortFlag.transparent,
  });
});

Deno.test("encodeListeners: each has its ports, rules and destinations one after the other", () => {
  const at = (port: number) => address(`192.0.2.1:${port}`);
  const port = (listen: number) => ({ listen: at(listen), ipv4: at(9), protocol: "tcp" }) as const;
  const rules = (count: number, byte: number) => new Uint8Array(count * TRUST.size).fill(byte);
  const destinations = new Uint8Array(2 * DESTINATION.size).fill(9);
  const { listeners, ports, ...all } = encodeListeners([
    { terms: TERMS, ports: [port(1), port(2)], rules: rules(2, 7) },
    { id: 5, terms: { ...TERMS, mark: 6 }, ports: [port(3)], destinations },
    { terms: TERMS, ports: [port(4)], rules: rules(1, 8) },
  ]);
  assert.equal(listeners.length, 3 * LISTENER.size);
  const read = (index: number) => {
    const { number } = readers(listeners.slice(index * LISTENER.size));
    const { config } = LISTENER;
    return {
      id: number(LISTENER.id),
      ports: number(LISTENER.ports),
      rules: number(LISTENER.rules),
      destinations: number(LISTENER.destinations),
      mark: number(config + LISTENER_CONFIG.mark),
      restricted: number(config + LISTENER_CONFIG.restricted),
    };
  };
  const mark = TERMS.mark;
  assert.deepEqual(read(0), { id: 0, ports: 2, rules: 2, destinations: 0, mark, restricted: 1 });
  assert.deepEqual(read(1), { id: 5, ports: 1, rules: 0, destinations: 2, mark: 6, restricted: 0 });
  assert.deepEqual(read(2), { id: 0, ports: 1, rules: 1, destinations: 0, mark, restricted: 1 });
  const { endpoint } = readers(ports);
  const listening = [0, 1, 2, 3].map((index) => endpoint(index * PORT.size + PORT.listen).port);
  assert.deepEqual(listening, [1, 2, 3, 4]);
  assert.deepEqual([...all.rules], [...rules(2, 7), ...rules(1, 8)]);
  assert.deepEqual(all.destinations, destinations);
});

Deno.test("encodeTrust: a subnet with the code of its rule", () => {
  const from = parseSubnet("192.0.2.0/24");
  if (from instanceof Problem) assert.fail(from.text);
  const records = encodeTrust([{ from, header: "require" }, { from, header: "skip" }]);
  assert.equal(records.length, 2 * TRUST.size);
  const { number } = readers(records);
  assert.deepEqual([number(TRUST.prefix), number(TRUST.header)], [120, HeaderRule.require]);
  assert.equal(number(TRUST.size + TRUST.header), HeaderRule.skip);
  const bytes = records.slice(TRUST.size + TRUST.address, TRUST.size + TRUST.address + 16);
  assert.deepEqual([...bytes], [...zeros(10), 0xff, 0xff, 192, 0, 2, 0]);
});

Deno.test("encodeDestinations: a subnet with its ports", () => {
  const destination = parseDestination("[2001:db8::/32]:1024-65535");
  if (destination instanceof Problem) assert.fail(destination.text);
  const records = encodeDestinations([destination]);
  assert.equal(records.length, DESTINATION.size);
  const view = new DataView(records.buffer);
  assert.equal(view.getUint32(DESTINATION.prefix, LITTLE_ENDIAN), 32);
  assert.equal(view.getUint16(DESTINATION.first_port, LITTLE_ENDIAN), 1024);
  assert.equal(view.getUint16(DESTINATION.last_port, LITTLE_ENDIAN), 65535);
  assert.deepEqual([...records.slice(DESTINATION.address, 4)], [0x20, 0x01, 0x0d, 0xb8]);
});

Deno.test("encodeAnyEndpoint: no address is an empty record", () => {
  assert.deepEqual(readers(encodeAnyEndpoint(undefined)).endpoint(0), EMPTY);
  assert.equal(readers(encodeAnyEndpoint(address("192.0.2.1:81"))).endpoint(0).port, 81);
});
