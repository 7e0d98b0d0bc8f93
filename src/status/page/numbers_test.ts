import assert from "node:assert/strict";
import { byteRate, duration, milliseconds, point, quantile, short, topReasons } from "./numbers.js";
import { BUCKETS_MS } from "../../native/layout.ts";
import type { Sample } from "../history.ts";

const SPACE = "\u202f";

Deno.test("short: three digits at most, by thousands", () => {
  const texts = [0, 0.25, 7, 999, 999.6, 1500, 12_345, 999_600, 2_500_000].map(short);
  const expected = ["0", "0.3", "7", "999", "1 k", "1.5 k", "12 k", "1 M", "2.5 M"];
  assert.deepEqual(texts, expected.map((text) => text.replace(" ", SPACE)));
});

Deno.test("byteRate, milliseconds and duration: a number and its unit", () => {
  assert.equal(byteRate(0), `0${SPACE}B/s`);
  assert.equal(byteRate(1500), `1.5${SPACE}kB/s`);
  assert.equal(milliseconds(0.5), `0.5${SPACE}ms`);
  assert.equal(milliseconds(120), `120${SPACE}ms`);
  assert.equal(milliseconds(2500), `2.5${SPACE}s`);
  assert.deepEqual(
    [0, 59, 61, 7200, 90_000, 86_400 * 3].map(duration),
    ["0 s", "59 s", "1 min 1 s", "2 h", "1 d 1 h", "3 d"],
  );
});

Deno.test("quantile: within the bucket that holds it, and nothing of nothing", () => {
  const bounds = [1, 2, 5];
  assert.equal(quantile(bounds, [0, 0, 0, 0], 0.5), null);
  assert.equal(quantile(bounds, [10, 0, 0, 0], 0.5), 0.5);
  assert.equal(quantile(bounds, [0, 0, 4, 0], 0.5), 3.5);
  assert.equal(quantile(bounds, [5, 5, 0, 0], 0.75), 1.5);
  assert.equal(quantile(bounds, [0, 0, 0, 3], 0.95), 5, "longer than the last bound");
});

/** A sample in which every counter is `count`. */
function sample(time: number, count: number, refused: Record<string, number>): Sample {
  const buckets = BUCKETS_MS.map(() => 0).concat(0).with(1, count);
  return {
    time,
    total: {
      connections: 7,
      flows: 8,
      accepted: count,
      flowsOpened: count,
      bytesUp: count * 100,
      bytesDown: count * 200,
      refused,
    },
    latency: { header_time: buckets, connect_time: buckets },
  };
}

Deno.test("point: what lies between two samples, a second", () => {
  const before = sample(10_000, 10, { timeout: 4 });
  const after = sample(15_000, 20, { timeout: 9, not_proxy: 5 });
  assert.deepEqual(point(before, after, BUCKETS_MS), {
    time: 15,
    connections: 7,
    flows: 8,
    opened: 4,
    up: 200,
    down: 400,
    refused: { timeout: 1, not_proxy: 1 },
    connectHalf: 1.5,
    connectMost: 1.95,
    headerMost: 1.95,
  });
});

Deno.test("point: counters that shrank are those of another process", () => {
  const { opened, up, refused, connectHalf } = point(
    sample(10_000, 10, { timeout: 4 }),
    sample(15_000, 1, { timeout: 1 }),
    BUCKETS_MS,
  );
  assert.deepEqual([opened, up, refused, connectHalf], [0, 0, { timeout: 0 }, null]);
});

Deno.test("topReasons: those that refused most, and none that did not", () => {
  const points = [{ a: 1, b: 5, c: 0 }, { a: 1, d: 3 }].map((refused, index) => ({
    ...point(sample(0, 0, {}), sample(1000 * (index + 1), 0, {}), BUCKETS_MS),
    refused: refused as unknown as Record<string, number>,
  }));
  assert.deepEqual(topReasons(points, 3), ["b", "d", "a"]);
  assert.deepEqual(topReasons(points, 1), ["b"]);
});
