import assert from "node:assert/strict";
import { findTools, readIperf, readTcpkali } from "./tools.ts";

Deno.test("findTools: names what is missing, and how to say where it is", () => {
  assert.throws(
    () => findTools(["iperf-udppp"], { iperf: import.meta.filename ?? "", udppp: "/nowhere" }),
    /There is no udppp \/nowhere: install it, or say --tool udppp=PATH/,
  );
});

Deno.test("findTools: what the command line gives comes first", () => {
  const tcpkali = import.meta.filename ?? "";
  assert.deepEqual(findTools(["tcpkali"], { tcpkali }), { tcpkali });
});

Deno.test("readTcpkali: both directions", () => {
  const text = `Ramped up to 50 connections.
Total data sent:     6236.1 MiB (6000000000 bytes)
Total data received: 1537.3 MiB (1500000000 bytes)
Aggregate bandwidth: 8589.439↓, 34844.510↑ Mbps
Test duration: 1.5 s.
`;
  assert.deepEqual(readTcpkali(text), {
    up_gbit: 32,
    down_gbit: 8,
    operations: 7_500_000_000,
    seconds: 1.5,
  });
  assert.throws(() => readTcpkali("Could not create 50 connections in allotted time (1.5s)"));
});

Deno.test("readIperf: what came of what was sent", () => {
  const text = `[ ID] Interval            Transfer     Bandwidth        Jitter   Lost/Total
[ *1] 0.0000-2.0000 sec  59.5 MBytes   334 Mbits/sec   0.203 ms 230000/272000 (84%) 2.8/0.0 ms
`;
  assert.deepEqual(readIperf(text), {
    returned_per_second: 21_000,
    returned_gbit: 0.334,
    lost_share: 230_000 / 272_000,
    operations: 42_000,
    seconds: 2,
  });
  assert.throws(() => readIperf("connect failed: Connection refused"));
});
