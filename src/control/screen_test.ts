import assert from "node:assert/strict";
import * as fc from "fast-check";
import { countsOf } from "./counts.ts";
import type { ClientLoad, Counts, ListenerStatus, Top } from "./protocol.ts";
import { screen } from "./screen.ts";

const NOTHING = countsOf({ get: () => 0, refusals: new Map() });

function listener(name: string, counts: Partial<Counts>): ListenerStatus {
  const about = { listen: ["0.0.0.0:25"], protocol: "tcp", upstreams: ["127.0.0.1"], uptime: 60 };
  return { ...NOTHING, ...about, ...counts, name };
}

function top(
  total: Partial<Counts>,
  listeners: ListenerStatus[],
  clients: ClientLoad[] = [],
): Top {
  return {
    status: {
      version: "1.2.3",
      pid: 7,
      uptime: 60,
      workers: { configured: 2, serving: 2 },
      stopping: false,
      lastReloadGood: true,
      total: { ...NOTHING, ...total },
      listeners,
    },
    clients,
  };
}

const load = (client: string, bytesUp: number, bytesDown: number): ClientLoad => ({
  client,
  connections: 1,
  bytesUp,
  bytesDown,
});

Deno.test("screen: rates are what two looks differ by, the busiest clients first", () => {
  const before = top(
    { accepted: 10, bytesUp: 1000, refused: { timeout: 1 } },
    [listener("mail", { accepted: 10, bytesUp: 1000, refused: { timeout: 1 } })],
    [load("192.0.2.1", 900, 0), load("192.0.2.2", 100, 0)],
  );
  const now = top(
    { connections: 3, accepted: 30, bytesUp: 5000, refused: { timeout: 5, not_proxy: 9 } },
    [listener("mail", {
      connections: 3,
      accepted: 30,
      bytesUp: 5000,
      refused: { timeout: 5, not_proxy: 9 },
    })],
    [load("192.0.2.1", 800, 0), load("192.0.2.2", 4200, 0), load("2001:db8::1", 0, 2000)],
  );
  assert.deepEqual(screen({ before, now, seconds: 2 }, { columns: 80, rows: 24 }), [
    "mmproxy 1.2.3, pid 7, up 1m00s, 2 of 2 workers running",
    "Open: 3 connections, 0 flows; 10 new/s, up 2 kB/s, down 0 B/s",
    "",
    "LISTENER  CONNS  FLOWS  NEW/S      UP   DOWN  REFUSED/S",
    "mail          3      0     10  2 kB/s  0 B/s        6.5",
    "",
    "REFUSED    ALL  A SECOND",
    "not_proxy    9       4.5",
    "timeout      5         2",
    "",
    "CLIENT       OPEN      UP    DOWN    ALL",
    "192.0.2.2       1  2 kB/s   0 B/s  4.2kB",
    "2001:db8::1     1   0 B/s  1 kB/s    2kB",
    "192.0.2.1       1   0 B/s   0 B/s   800B",
  ]);
});

Deno.test("screen: at the first look there are no rates yet", () => {
  const lines = screen({ now: top({}, [listener("a", {})]), seconds: 0 }, {
    columns: 80,
    rows: 24,
  });
  assert.equal(lines[1], "Open: 0 connections, 0 flows; - new/s, up -, down -");
  assert.equal(lines[4], "a             0      0      -   -     -          -");
});

Deno.test("screen: fits 80 columns with the widest values, and shows those that move most", () => {
  const widest = {
    connections: 65_535,
    flows: 65_535,
    accepted: 1e12,
    bytesUp: 9.95e17,
    bytesDown: 9.95e17,
    refused: { client_subnet_broadcast: 1e12 },
  };
  const many = Array.from(
    { length: 100 },
    (_, index) => listener(`${"n".repeat(60)}${index}`, index === 50 ? widest : {}),
  );
  const before = top({}, many.map((it) => ({ ...it, ...NOTHING })));
  const address = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff";
  const now = top(widest, many, [load(address, 9.95e17, 9.95e17)]);
  const wide = screen({ before, now, seconds: 1 }, { columns: 1000, rows: 23 });
  const longest = wide.toSorted((one, other) => other.length - one.length)[0] ?? "";
  assert.ok(longest.length <= 80, `${longest.length}: ${longest}`);
  assert.match(wide[4] ?? "", / 65535 +65535 /);
  assert.ok(wide.some((line) => /^and \d+ more$/.test(line)));
  assert.ok(wide.some((line) => line.startsWith(address)), "clients have room, too");
});

Deno.test("screen: never more than there is room for", () => {
  const counts = fc.record({ connections: fc.nat(), bytesUp: fc.nat(), accepted: fc.nat() });
  const reasons = fc.dictionary(fc.string({ maxLength: 40 }), fc.nat(), { maxKeys: 12 });
  const listeners = fc.array(fc.tuple(fc.string(), counts), { maxLength: 60 });
  const clients = fc.array(fc.tuple(fc.string(), fc.nat(), fc.nat()), { maxLength: 60 });
  const look = fc.tuple(counts, reasons, listeners, clients).map(([total, refused, some, loads]) =>
    top(
      { ...total, refused },
      some.map(([name, counts]) => listener(name, counts)),
      loads.map((it) => load(...it)),
    )
  );
  const size = fc.record({
    columns: fc.integer({ min: 1, max: 200 }),
    rows: fc.integer({ min: 1, max: 60 }),
  });
  fc.assert(
    fc.property(look, fc.option(look, { nil: undefined }), size, (now, before, size) => {
      const lines = screen({ now, ...(before && { before }), seconds: 1 }, size);
      assert.ok(lines.length <= size.rows);
      assert.ok(
        lines.every((line) => line.length <= size.columns && [...line].every((it) => it >= " ")),
      );
    }),
  );
});
