import assert from "node:assert/strict";
import { v2 } from "./support/headers.ts";
import { type LogEvent, Program } from "./support/program.ts";
import { Stream } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
const FLOOD = 400;

/** How many events these lines stand for. */
function told(lines: LogEvent[]): number {
  return lines.reduce((sum, line) => sum + 1 + (line.left_out ?? 0), 0);
}

/** This many connections, some at a time, that each send this and wait for the end. */
async function flood(port: number, sent: Uint8Array | string): Promise<void> {
  let left = FLOOD;
  await Promise.all(Array.from({ length: 20 }, async () => {
    while (left-- > 0) {
      using stream = await Stream.connect(port);
      // It may be closed already.
      await stream.send(sent).catch(() => {});
      await stream.end();
    }
  }));
}

/** A reason, how to cause it, its event, and its counter. */
const REASONS = [
  ["header_refused", "GET / HTTP/1.1\r\n\r\n", "refused_not_proxy"],
  ["connect_failed", v2({ ip: "192.0.2.140", port: 0 }, BALANCER), "connect_errors"],
] as const;

for (const listeners of [1, 3]) {
  for (const [event, sent, counter] of REASONS) {
    Deno.test(`log limit: a flood of ${event} at ${listeners} listeners is a line a second, and all are counted`, async () => {
      await using program = await Program.start({
        args: ["-4", "127.0.0.1:9", "--listeners", String(listeners)],
        logLevel: "info",
      });
      const begin = performance.now();
      await flood(program.listen.port, sent);
      const seconds = (performance.now() - begin) / 1000;
      // Nothing more comes, and yet the last ones are told.
      await eventually(() => told(program.all(event)) === FLOOD, `${FLOOD} told`);
      const lines = program.all(event);
      assert.ok(lines.length <= seconds + 3, `${lines.length} lines in ${seconds} s`);
      assert.ok(lines.some((line) => /\(and \d+ more in the last second\)$/.test(line.message)));
      assert.equal((await program.stop()).get(counter), FLOOD);
    });
  }
}

Deno.test("log limit: a stop logs what was held back", async () => {
  await using program = await Program.start({ args: ["--listeners", "3"], logLevel: "info" });
  await flood(program.listen.port, "GET / HTTP/1.1\r\n\r\n");
  assert.equal((await program.stop()).get("refused_not_proxy"), FLOOD);
  assert.equal(told(program.all("header_refused")), FLOOD);
});

Deno.test("log limit: peers outside the subnets", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(path, "192.0.2.0/24\n");
    await using program = await Program.start({ args: ["-a", path], logLevel: "info" });
    await flood(program.listen.port, "x");
    assert.equal((await program.stop()).get("refused_peer_not_allowed"), FLOOD);
    assert.equal(told(program.all("peer_refused")), FLOOD);
    assert.ok(program.all("peer_refused").length < 20);
  } finally {
    await Deno.remove(path);
  }
});
