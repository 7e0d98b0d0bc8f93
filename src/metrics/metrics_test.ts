import assert from "node:assert/strict";
import { families, type Family, type Surroundings } from "./metrics.ts";
import { BUCKETS_MS, COUNTERS, ERRNOS, HISTOGRAMS, REFUSALS } from "../native/layout.ts";
import { Stats, STATS_LENGTH } from "../native/stats.ts";

const AROUND: Surroundings = {
  version: "1.2.3",
  deno: "2.9.6",
  arch: "x86_64",
  startedAt: 1_700_000_000.5,
  workers: 4,
  serving: 3,
  restarts: 2,
  lastReloadGood: false,
  linesLost: 0,
};

/** Every number has its own value: its place, from 1. */
const NUMBERED = new Stats(
  BigUint64Array.from({ length: STATS_LENGTH }, (_, at) => BigInt(at + 1)),
);

/** The families of one listener. */
function shown(stats = NUMBERED, around = AROUND): Family[] {
  return families([{ listener: "mail", stats }], stats, around);
}

function family(name: string, stats = NUMBERED): Family {
  return shown(stats).find((family) => family.name === name) ??
    assert.fail(`no ${name}`);
}

function value(name: string, labels: Record<string, string> = {}, stats = NUMBERED): number {
  const found = family(name, stats).samples.filter((sample) =>
    Object.entries(labels).every(([key, value]) => sample.labels[key] === value)
  );
  assert.equal(found.length, 1, `${name} ${JSON.stringify(labels)}`);
  return found[0]?.value ?? NaN;
}

Deno.test("families: every counter of the native core is a sample", () => {
  const values = new Set(
    shown(NUMBERED, { ...AROUND, startedAt: 0, workers: 0, serving: 0, restarts: 0 })
      .flatMap(({ samples }) => samples.map(({ value }) => value)),
  );
  COUNTERS.forEach((name, at) => {
    // Its sum is in connect_errors_total already, by error.
    if (name !== "connect_errors") assert.ok(values.has(at + 1), name);
  });
  REFUSALS.forEach((name, at) => {
    if (name !== "none") assert.ok(values.has(COUNTERS.length + at + 1), name);
  });
});

Deno.test("families: values stand under their names and labels", () => {
  const counter = (name: (typeof COUNTERS)[number]) => COUNTERS.indexOf(name) + 1;
  assert.equal(value("mmproxy_connections_active"), counter("connections_active"));
  assert.equal(
    value("mmproxy_bytes_total", { protocol: "tcp", direction: "up" }),
    counter("bytes_up"),
  );
  assert.equal(
    value("mmproxy_bytes_total", { protocol: "udp", direction: "down" }),
    counter("datagram_bytes_down"),
  );
  assert.equal(value("mmproxy_headers_total", { version: "spp" }), counter("headers_spp"));
  assert.equal(
    value("mmproxy_refused_total", { reason: "not_proxy" }),
    COUNTERS.length + REFUSALS.indexOf("not_proxy") + 1,
  );
  assert.equal(
    value("mmproxy_connect_errors_total", { error: "timeout" }),
    counter("connect_timeouts"),
  );
  assert.equal(
    value("mmproxy_connect_errors_total", { error: "ECONNREFUSED" }),
    COUNTERS.length + REFUSALS.length + 111 + 1,
  );
  assert.equal(value("mmproxy_workers"), 4);
  assert.equal(value("mmproxy_workers_up"), 3);
  assert.equal(value("mmproxy_worker_restarts_total"), 2);
  assert.equal(value("mmproxy_last_reload_successful"), 0);
  assert.equal(value("process_start_time_seconds"), 1_700_000_000.5);
  assert.equal(value("mmproxy_build_info", { version: "1.2.3", deno: "2.9.6" }), 1);
});

Deno.test("families: common errors are there before the first, others from the first on", () => {
  const none = new Stats(new BigUint64Array(STATS_LENGTH));
  assert.equal(value("mmproxy_connect_errors_total", { error: "ECONNREFUSED" }, none), 0);
  const errors = family("mmproxy_connect_errors_total", none).samples;
  assert.ok(!errors.some(({ labels }) => labels.error === "ECONNRESET"));
  assert.equal(value("mmproxy_connect_errors_total", { error: "ECONNRESET" }) > 0, true);
});

/** What is the proxy's own, not a listener's. */
const PROXY = [
  "mmproxy_workers",
  "mmproxy_workers_up",
  "mmproxy_worker_restarts_total",
  "mmproxy_last_reload_successful",
  "mmproxy_log_lines_lost_total",
  "mmproxy_build_info",
  "process_start_time_seconds",
];

Deno.test("families: each sample of a listener has its name, the proxy's own have none", () => {
  for (const { name, samples } of shown()) {
    const expected = PROXY.includes(name) ? undefined : "mail";
    for (const { labels } of samples) assert.equal(labels.listener, expected, name);
  }
});

Deno.test("families: of several listeners each has its samples, and the proxy's own are there once", () => {
  const none = new Stats(new BigUint64Array(STATS_LENGTH));
  const listeners = [{ listener: "mail", stats: NUMBERED }, { listener: "web", stats: none }];
  const [one, both] = [shown(), families(listeners, NUMBERED, AROUND)];
  assert.deepEqual(both.map(({ name }) => name), one.map(({ name }) => name));
  const accepted = both.find(({ name }) => name === "mmproxy_connections_accepted_total");
  assert.deepEqual(accepted?.samples.map(({ labels, value }) => [labels.listener, value]), [
    ["mail", COUNTERS.indexOf("accepted") + 1],
    ["web", 0],
  ]);
  for (const { name, samples } of both.filter(({ name }) => PROXY.includes(name))) {
    assert.equal(samples.length, 1, name);
  }
});

for (const [index, name] of HISTOGRAMS.entries()) {
  Deno.test(`families: ${name} is cumulative and in seconds`, () => {
    const values = new BigUint64Array(STATS_LENGTH);
    const start = COUNTERS.length + REFUSALS.length + ERRNOS + index * (BUCKETS_MS.length + 2);
    values.set([3n, 2n], start);
    values.set([1n, 12_345n], start + BUCKETS_MS.length);
    const found = family(
      `mmproxy_${name.replace("_time", "_duration_seconds")}`,
      new Stats(values),
    );
    const bucket = (le: string) => found.samples.find(({ labels }) => labels.le === le)?.value;
    assert.deepEqual([bucket("0.001"), bucket("0.002"), bucket("10"), bucket("+Inf")], [
      3,
      5,
      5,
      6,
    ]);
    const of = (suffix: string) =>
      found.samples.find(({ metricName }) => metricName === `${found.name}_${suffix}`)?.value;
    assert.deepEqual([of("sum"), of("count")], [12.345, 6]);
  });
}

Deno.test("docs/metrics.md: lists every metric and every reason", async () => {
  const page = await Deno.readTextFile(new URL("../../docs/metrics.md", import.meta.url));
  for (const { name, samples } of shown()) {
    assert.match(page, new RegExp(`\\| .*\`${name}[\`{].* \\|`), name);
    for (const { labels } of samples) {
      if (labels.reason) assert.ok(page.includes(`\`${labels.reason}\``), labels.reason);
    }
  }
});

Deno.test("families: names follow Prometheus's conventions, and each has a help of its own", () => {
  const all = shown();
  for (const { name, help, type, samples } of all) {
    assert.match(name, /^(mmproxy|process)_[a-z]+(_[a-z]+)*$/);
    assert.equal(name.endsWith("_total"), type === "counter", name);
    assert.match(help, /^[A-Z].*\.$/);
    assert.ok(samples.length > 0, name);
  }
  assert.equal(new Set(all.map(({ name }) => name)).size, all.length);
  assert.equal(new Set(all.map(({ help }) => help)).size, all.length);
});

Deno.test("families: what the process uses, and nothing where the system does not say", () => {
  const names = (families: Family[]) =>
    families.map(({ name }) => name).filter((name) => name.startsWith("process_"));
  assert.deepEqual(names(shown()), ["process_start_time_seconds"]);
  const usage = {
    virtualBytes: 5,
    residentBytes: 4,
    openFiles: 3,
    fileLimit: 1024,
    cpuSeconds: 1.5,
  };
  const told = shown(NUMBERED, { ...AROUND, usage });
  const samples = told.slice(-5).map(({ name, type, samples }) => [name, type, samples[0]?.value]);
  assert.deepEqual(samples, [
    ["process_cpu_seconds_total", "counter", 1.5],
    ["process_resident_memory_bytes", "gauge", 4],
    ["process_virtual_memory_bytes", "gauge", 5],
    ["process_open_fds", "gauge", 3],
    ["process_max_fds", "gauge", 1024],
  ]);
});
