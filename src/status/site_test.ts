import assert from "node:assert/strict";
import { readConfig } from "../config/file.ts";
import { Stats, STATS_LENGTH } from "../native/stats.ts";
import { Listeners } from "../proxy/listeners.ts";
import { type HealthAnswer, type HistoryAnswer, StatusSite } from "./site.ts";

const NOTHING = new Stats(new BigUint64Array(STATS_LENGTH));

/** A site of a proxy with this many listeners, whose time is the test's. */
function site(count: number, logLevel = "info") {
  const config = readConfig(
    `log-level = "${logLevel}"\n` +
      Array.from(
        { length: count },
        (_, index) =>
          `[[listener]]\nname = "l${index}"\nlisten = "127.0.0.1:${10_000 + index}"\n` +
          `ipv4 = "127.0.0.1:443"\nallowed-subnets = ["127.0.0.1"]\n`,
      ).join(""),
    "mmproxy.toml",
  );
  const listeners = new Listeners();
  config.listeners.forEach((listener, index) => listeners.set(index + 1, listener));
  const clock = { now: 0, asked: 0, tried: 0 };
  const made = new StatusSite({
    listeners,
    stats: (id) => {
      if (id === 0) clock.asked++;
      return NOTHING;
    },
    state: () => ({
      version: "1.2.3",
      pid: 4,
      uptime: 5,
      workers: { configured: 1, serving: 1 },
      stopping: false,
      lastReloadGood: true,
    }),
    config: () => config,
    health: () => ({ good: true, text: "ok" }),
    readiness: () => {
      clock.tried++;
      return Promise.resolve({ good: true, text: "ready" });
    },
  }, () => clock.now);
  const get = async <T>(path: string) => {
    const answer = await made.answer({ method: "GET", path, host: "127.0.0.1:9100" });
    assert.equal(answer?.status, 200, path);
    return JSON.parse(answer.body) as T;
  };
  return { site: made, clock, get, [Symbol.dispose]: () => made.close() };
}

Deno.test("StatusSite: lists 100 listeners, tries 20, and says how many there are", async () => {
  using shown = site(130);
  const { status, omittedListeners } = await shown.get<
    { status: { listeners: unknown[] }; omittedListeners: number }
  >("/status.json");
  assert.deepEqual([status.listeners.length, omittedListeners], [100, 30]);
  const { listeners } = await shown.get<HealthAnswer>("/health.json");
  assert.deepEqual([listeners.length, shown.clock.tried], [20, 20]);
  const config = await shown.get<{ listeners: unknown[]; omitted: number }>("/config.json");
  assert.deepEqual([config.listeners.length, config.omitted], [100, 30]);
});

Deno.test("StatusSite: however many ask, an answer is made twice a second", async () => {
  using shown = site(1);
  const before = shown.clock.asked;
  await Promise.all(Array.from({ length: 100 }, () => shown.get("/status.json")));
  const once = shown.clock.asked - before;
  shown.clock.now = 499;
  await shown.get("/status.json");
  assert.equal(shown.clock.asked - before, once);
  shown.clock.now = 500;
  await shown.get("/status.json");
  assert.equal(shown.clock.asked - before, 2 * once);
});

Deno.test("StatusSite: history begins at the start, with the buckets' bounds", async () => {
  using shown = site(1);
  const { boundsMs, samples } = await shown.get<HistoryAnswer>("/history.json");
  assert.equal(samples.length, 1);
  assert.equal(samples[0]?.latency.connect_time.length, boundsMs.length + 1);
});

Deno.test("StatusSite: notes refusals, or says that the log level lets none through", async () => {
  interface Noted {
    notes: { message: string }[];
    notesRefusals: boolean;
  }
  using shown = site(1);
  shown.site.note("warn", "Refused <b>", { event: "peer_refused", refusal: "peer_not_allowed" });
  const noted = await shown.get<Noted>("/status.json");
  assert.deepEqual([noted.notes[0]?.message, noted.notesRefusals], ["Refused <b>", true]);
  using silent = site(1, "error");
  assert.equal((await silent.get<Noted>("/status.json")).notesRefusals, false);
});

Deno.test("StatusSite: every answer has a policy that lets nothing in, and none goes to a name", async () => {
  using shown = site(1);
  const paths = ["/", "/page/page.js", "/page/uplot.js", "/page/page.css", "/status.json"];
  for (const path of paths) {
    const answer = await shown.site.answer({ method: "GET", path, host: "[::1]:9100" });
    const policy = answer?.headers?.["content-security-policy"] ?? "";
    assert.match(policy, /^default-src 'none'; script-src 'self'; /, path);
    assert.doesNotMatch(policy, /unsafe|https?:|\*/, path);
    const named = await shown.site.answer({ method: "GET", path, host: "rebound.example.org" });
    assert.equal(named?.status, 421, path);
    assert.match(named?.body ?? "", /IP address or as localhost/);
  }
  assert.equal(await shown.site.answer({ method: "GET", path: "/other" }), undefined);
});
