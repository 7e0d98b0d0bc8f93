import assert from "node:assert/strict";
import { findCounter } from "./counters.ts";

const SNMP = [
  "Tcp: RtoAlgorithm RetransSegs InErrs",
  "Tcp: 1 42 0",
  "Udp: InDatagrams RcvbufErrors",
  "Udp: 7 3",
  "UdpLite: InDatagrams RcvbufErrors",
  "UdpLite: 0 9",
].join("\n");

Deno.test("findCounter: takes the field of its own group", () => {
  assert.equal(findCounter(SNMP, "Tcp", "RetransSegs"), 42);
  assert.equal(findCounter(SNMP, "Udp", "RcvbufErrors"), 3);
});

Deno.test("findCounter: a kernel without it counts nothing", () => {
  assert.equal(findCounter(SNMP, "Udp", "Unheard"), 0);
  assert.equal(findCounter(SNMP, "Sctp", "InErrs"), 0);
});
