import assert from "node:assert/strict";
import { busiest } from "./clients.ts";
import { countsOf } from "./counts.ts";
import type { Connection, Status } from "./protocol.ts";
import { table } from "./table.ts";
import { closedLines, connectionLines, statusLines } from "./text.ts";
import { byteRate, duration, short } from "./units.ts";

Deno.test("short, byteRate, duration: few characters, and the right ones at each edge", () => {
  const numbers = [0, 7, 999, 1000, 1540, 9949, 9950, 12_345, 999_499, 999_500, 2e9, 0.25, 3e20];
  assert.deepEqual(numbers.map(short), [
    "0",
    "7",
    "999",
    "1k",
    "1.5k",
    "9.9k",
    "10k",
    "12k",
    "999k",
    "1M",
    "2G",
    "0.3",
    "300000P",
  ]);
  assert.deepEqual([0, 1540, 2e6].map(byteRate), ["0 B/s", "1.5 kB/s", "2 MB/s"]);
  assert.deepEqual([0.9, 59, 60, 3661, 90_000].map(duration), [
    "0s",
    "59s",
    "1m00s",
    "1h01m",
    "1d01h",
  ]);
});

Deno.test("table: columns are as wide as their cells, and no cell sends escape sequences to the terminal", () => {
  const columns = [{ heading: "NAME" }, { heading: "N", right: true }] as const;
  assert.deepEqual(table(columns, [["a", "10"], ["\x1b[2Jlonger", "9"]]), [
    "NAME         N",
    "a           10",
    "?[2Jlonger   9",
  ]);
});

const NONE = countsOf({ get: () => 0, refusals: new Map() });
const STATUS: Status = {
  version: "1.2.3",
  pid: 7,
  config: "/etc/mmproxy.toml",
  uptime: 100,
  workers: { configured: 2, serving: 1 },
  stopping: false,
  lastReloadGood: false,
  total: { ...NONE, connections: 3, accepted: 10, refused: { not_proxy: 2, timeout: 5 } },
  listeners: [{
    ...NONE,
    name: "mail",
    listen: ["0.0.0.0:25", "0.0.0.0:465", "0.0.0.0:587"],
    protocol: "tcp",
    upstreams: ["127.0.0.1"],
    uptime: 10,
    connections: 3,
    accepted: 15,
    bytesUp: 20_000,
    refused: { not_proxy: 2, timeout: 5 },
  }],
};

Deno.test("statusLines: all of it, the most frequent refusal first", () => {
  assert.deepEqual(statusLines(STATUS), [
    "mmproxy 1.2.3, pid 7, up 1m40s, 1 of 2 workers running, the last reload failed, see the log",
    "Configuration: /etc/mmproxy.toml",
    "Open: 3 connections, 0 flows; since the start: 10 accepted, 0 flows, 0B up, 0B down",
    "",
    "LISTENER  ADDRESSES          UPSTREAM   CONNS  FLOWS  NEW/S      UP   DOWN  REFUSED",
    "mail      0.0.0.0:25,+2/tcp  127.0.0.1      3      0    1.5  2 kB/s  0 B/s        7",
    "",
    "Refused: timeout 5, not_proxy 2",
  ]);
});

Deno.test("statusLines: programs that were replaced, while they drain", () => {
  const draining = [{ pid: 5, connections: 1, seconds: 62 }, {
    pid: 6,
    connections: 40,
    seconds: 3,
  }];
  assert.deepEqual(statusLines({ ...STATUS, draining }).slice(2, 4), [
    "Draining: process 5, replaced 1m02s ago with 1 connection",
    "Draining: process 6, replaced 3s ago with 40 connections",
  ]);
});

const CONNECTION: Connection = {
  listener: "mail",
  protocol: "tcp",
  phase: "relayed",
  worker: 0,
  peer: "198.51.100.1:5",
  client: "192.0.2.1:6",
  age: 70,
  idle: 1,
  bytesUp: 10,
  bytesDown: 2000,
};

Deno.test("connectionLines, closedLines: what is left out is said", () => {
  const lines = connectionLines({ found: 3, silentWorkers: 1, connections: [CONNECTION] });
  assert.deepEqual(lines.slice(1), [
    "mail      tcp    relayed  192.0.2.1:6  198.51.100.1:5  -         1m10s    1s  10    2k",
    "and 2 more; see --limit",
    "1 worker did not answer in time: the list is incomplete",
  ]);
  assert.deepEqual(connectionLines({ found: 0, silentWorkers: 0, connections: [] }), [
    "No connections or flows",
  ]);
  assert.deepEqual(closedLines({ closed: 4, silentWorkers: 0 }), ["Closed 4"]);
});

Deno.test("busiest: sums by address, of the client or else the peer", () => {
  const { client: _, ...own } = CONNECTION;
  const loads = busiest([
    CONNECTION,
    { ...CONNECTION, client: "192.0.2.1:7", bytesUp: 90 },
    { ...own, bytesDown: 1e6 },
    { ...CONNECTION, client: "[2001:db8::1]:5", bytesDown: 0, bytesUp: 0 },
  ], 3);
  assert.deepEqual(loads, [
    { client: "198.51.100.1", connections: 1, bytesUp: 10, bytesDown: 1e6 },
    { client: "192.0.2.1", connections: 2, bytesUp: 100, bytesDown: 4000 },
    { client: "2001:db8::1", connections: 1, bytesUp: 0, bytesDown: 0 },
  ]);
});
