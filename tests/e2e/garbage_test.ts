import assert from "node:assert/strict";
import { freePort, show } from "./support/endpoints.ts";
import { flood, Sink } from "./support/flood.ts";
import { Tlv, tlv, v2 } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { pause } from "./support/time.ts";

const HEADERS = 1_000_000;

Deno.test("garbage: no collection in a worker over a million headers", async () => {
  const service = { ip: "127.0.0.1", port: freePort() };
  using _sink = new Sink(service);
  await using program = await Program.start({
    args: ["-p", "udp", "-4", show(service)],
    logLevel: "info",
    v8Flags: "--trace-gc",
    // The engine writes to standard output, which is a pipe here: line by line, not at the end.
    shell: 'exec stdbuf -oL "$@"',
  });
  const header = v2({ ip: "192.0.2.99", port: 40_999 }, { ip: "198.51.100.1", port: 53 }, {
    datagram: true,
    tlvs: [tlv(Tlv.uniqueId, new Uint8Array(4))],
  });
  // What compiling the last functions leaves is collected before.
  await flood(program.listen, header, header.length - 4, 1000);
  await pause(500);
  const before = program.otherLines.length;
  assert.ok(before > 0, "--trace-gc prints collections of the start");
  // Every header differs from all before it in its unique id, so none is in the cache.
  const sent = await flood(program.listen, header, header.length - 4, HEADERS);
  await pause(500);
  const collections = program.otherLines.slice(before);
  const counters = await program.stop();
  assert.equal(sent, HEADERS);
  assert.ok(counters.get("headers_v2") > 0.99 * HEADERS, JSON.stringify(counters.values));
  assert.deepEqual(collections, []);
});
