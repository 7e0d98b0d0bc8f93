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
  // The main isolate starts alone, so the first collection is its own. It allocates for the log and
  // tidies up when idle, which no connection waits for.
  const main = isolateOf(program.otherLines[0]);
  assert.ok(main !== undefined, "--trace-gc prints the main isolate's collections");
  // Every header differs from all before it in its unique id, so none is in the cache.
  const sent = await flood(program.listen, header, header.length - 4, HEADERS);
  await pause(500);
  const collections = program.otherLines.slice(before).filter((line) => isolateOf(line) !== main);
  const counters = await program.stop();
  assert.equal(sent, HEADERS);
  assert.ok(counters.get("headers_v2") > 0.99 * HEADERS, JSON.stringify(counters.values));
  assert.deepEqual(collections, []);
});

/** The isolate of a line of `--trace-gc`: `[process:isolate] 60 ms: Scavenge …`. */
function isolateOf(line: string | undefined): string | undefined {
  return /^\[\d+:(0x[0-9a-f]+)\]/.exec(line ?? "")?.[1];
}
