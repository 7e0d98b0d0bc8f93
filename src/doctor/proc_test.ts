import assert from "node:assert/strict";
import { LITTLE_ENDIAN } from "../config/options.ts";
import {
  parseConfinement,
  parseCounter,
  parseInterfaces,
  parseSelf,
  parseSockets,
} from "./proc.ts";

Deno.test("parseSelf: the effective user and capabilities", () => {
  const status = "Name:\tdeno\nUid:\t1000\t1001\t1000\t1000\nCapEff:\t0000000000003400\n";
  const { user, capabilities } = parseSelf(status);
  assert.equal(user, 1001);
  assert.deepEqual([...capabilities], ["net_bind_service", "net_admin", "net_raw"]);
  assert.equal(parseSelf(status.replace("3400", "0000")).capabilities.size, 0);
});

Deno.test("parseConfinement: privileges, filter and capabilities", () => {
  const status = "CapPrm:\t0000000000002000\nCapEff:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n";
  const confined = { noNewPrivileges: true, filtered: true, capabilities: 1n << 13n };
  assert.deepEqual(parseConfinement(status), confined);
  assert.deepEqual(parseConfinement("CapPrm:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t0\n"), {
    noNewPrivileges: false,
    filtered: false,
    capabilities: 0x1ff_ffff_ffffn,
  });
  assert.equal(parseConfinement(""), undefined);
});

Deno.test("parseCounter: by the group's and the counter's name", () => {
  const text = "TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 3 17\nIpExt: A\nIpExt: 9\n";
  assert.equal(parseCounter(text, "TcpExt", "IPReversePathFilter"), 17);
  assert.equal(parseCounter(text, "IpExt", "A"), 9);
  assert.equal(parseCounter(text, "TcpExt", "Unheard"), 0);
  assert.equal(parseCounter("", "TcpExt", "IPReversePathFilter"), 0);
});

Deno.test("parseInterfaces: the names without the heading", () => {
  const text = "Inter-|   Receive  | Transmit\n face |bytes    |bytes\n    lo: 1 2\neth0.7:  9\n";
  assert.deepEqual(parseInterfaces(text), ["lo", "eth0.7"]);
});

Deno.test("parseSockets: those that wait, with their addresses", () => {
  const v4 = LITTLE_ENDIAN ? "0100007F" : "7F000001";
  const v6 = LITTLE_ENDIAN
    ? "B80D0120000000000000000001000000"
    : "20010DB8000000000000000000000001";
  const row = (local: string, state: string, inode: number) =>
    `   0: ${local} 00000000:0000 ${state} 00000000:00000000 00:00000000 00000000  0 0 ${inode} 1`;
  const table = [
    "  sl  local_address rem_address   st",
    row(`${v4}:01BB`, "0A", 7),
    row(`${v4}:01BB`, "01", 8),
    row(`${v6}:0035`, "07", 9),
  ].join("\n");
  assert.deepEqual(parseSockets(table), [
    { bytes: [127, 0, 0, 1], port: 443, inode: 7 },
    { bytes: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 53, inode: 9 },
  ]);
  assert.deepEqual(parseSockets(""), []);
});
