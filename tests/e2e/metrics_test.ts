import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { Network } from "./support/addresses.ts";
import { freePort, show } from "./support/endpoints.ts";
import { bytes, tlv, v1, v2, v2Local } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { parseScrape, promtool, type Scrape } from "./support/prometheus.ts";
import { installed, realPeerTest, Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually, pause } from "./support/time.ts";
import { tell, UdpService, UdpSocket } from "./support/udp.ts";

const CLIENT = { ip: "192.0.2.41", port: 42_000 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
const DEPLOY = new URL("../../deploy/", import.meta.url);
const ALERTS = new URL("prometheus-alerts.yaml", DEPLOY);

/** A program with a metrics port. */
interface Observed extends AsyncDisposable {
  readonly program: Program;
  readonly url: string;
  get(path: string, init?: RequestInit): Promise<{ status: number; text: string; type: string }>;
  scrape(): Promise<Scrape>;
}

async function start(args: string[], root?: string): Promise<Observed> {
  const address = show({ ip: "127.0.0.1", port: freePort() });
  const program = await Program.start({
    args: [...args, "--metrics-addr", address],
    logLevel: "info",
    ...(root !== undefined && { root }),
  });
  const url = `http://${address}`;
  const get = async (path: string, init: RequestInit = {}) => {
    const response = await fetch(url + path, init);
    const type = response.headers.get("content-type") ?? "";
    return { status: response.status, text: await response.text(), type };
  };
  const scrape = async () => parseScrape((await get("/metrics")).text);
  return { program, url, get, scrape, [Symbol.asyncDispose]: () => program[Symbol.asyncDispose]() };
}

/** Waits until a sample has this value: counters follow the traffic. */
async function becomes(observed: Observed, name: string, value: number): Promise<void> {
  let last: number | undefined;
  try {
    await eventually(async () => {
      last = (await observed.scrape()).samples.get(name);
      return last === value;
    }, `${name} ${value}`);
  } catch (cause) {
    throw new Error(`${name} is ${last}`, { cause });
  }
}

Deno.test("metrics: count what TCP connections did", async () => {
  await using service = new TcpService(tellAndEcho);
  await using observed = await start(["-4", service.address]);
  const { listen } = observed.program;
  {
    using client = await Stream.connect(listen.port);
    await client.send(v1(CLIENT, BALANCER), "ping");
    await client.line();
    await client.exactly(4);
    await becomes(observed, "mmproxy_connections_active", 1);
    using local = await Stream.connect(listen.port);
    await local.send(v2Local());
    await local.line();
    using http = await Stream.connect(listen.port);
    await http.send("GET / HTTP/1.1\r\n\r\n");
    await http.end();
  }
  await becomes(observed, "mmproxy_connections_active", 0);
  const { samples, listeners } = await observed.scrape();
  assert.deepEqual([...listeners.keys()], [show(listen)], "by default its address is its name");
  for (
    const [name, value] of Object.entries({
      mmproxy_connections_accepted_total: 3,
      mmproxy_connections_established_total: 2,
      'mmproxy_headers_total{version="1"}': 1,
      'mmproxy_headers_total{version="2"}': 1,
      'mmproxy_headers_total{version="spp"}': 0,
      mmproxy_headers_without_client_total: 1,
      'mmproxy_refused_total{reason="not_proxy"}': 1,
      'mmproxy_refused_total{reason="timeout"}': 0,
      'mmproxy_bytes_total{protocol="tcp",direction="up"}': 4,
      mmproxy_connect_duration_seconds_count: 2,
      'mmproxy_connect_duration_seconds_bucket{le="+Inf"}': 2,
      mmproxy_header_duration_seconds_count: 2,
      mmproxy_workers: 1,
      mmproxy_workers_up: 1,
      mmproxy_worker_restarts_total: 0,
    })
  ) assert.equal(samples.get(name), value, name);
  assert.ok((samples.get('mmproxy_bytes_total{protocol="tcp",direction="down"}') ?? 0) > 4);
  const age = Date.now() / 1000 - (samples.get("process_start_time_seconds") ?? 0);
  assert.ok(age > 0 && age < 60, `started ${age} s ago`);
});

Deno.test("metrics: a slow header and a service that refuses show in time and error", async () => {
  const closed = show({ ip: "127.0.0.1", port: freePort() });
  await using observed = await start(["-4", closed]);
  using client = await Stream.connect(observed.program.listen.port);
  await client.send("PROXY ");
  await pause(300);
  await client.send("TCP4 192.0.2.41 198.51.100.1 42000 443\r\n");
  await client.end();
  await becomes(observed, 'mmproxy_connect_errors_total{error="ECONNREFUSED"}', 1);
  const { samples } = await observed.scrape();
  assert.equal(samples.get('mmproxy_header_duration_seconds_bucket{le="0.25"}'), 0);
  assert.equal(samples.get("mmproxy_header_duration_seconds_count"), 1);
  assert.ok((samples.get("mmproxy_header_duration_seconds_sum") ?? 0) >= 0.29);
});

Deno.test("metrics: count what UDP flows did", async () => {
  await using service = await UdpService.start(tell);
  await using observed = await start(["-4", service.address, "-p", "udp"]);
  await using peer = await UdpSocket.open();
  await peer.send(observed.program.listen, v2(CLIENT, BALANCER, { datagram: true }), "one");
  const { data } = await peer.receive();
  await peer.send(observed.program.listen, "no header");
  await becomes(observed, 'mmproxy_refused_total{reason="not_proxy"}', 1);
  await becomes(observed, 'mmproxy_datagrams_total{direction="down"}', 1);
  const { samples } = await observed.scrape();
  assert.equal(samples.get('mmproxy_bytes_total{protocol="udp",direction="up"}'), 3);
  assert.equal(samples.get('mmproxy_bytes_total{protocol="udp",direction="down"}'), data.length);
  assert.equal(samples.get('mmproxy_datagrams_total{direction="up"}'), 1);
  assert.equal(samples.get("mmproxy_flows_active"), 1);
  assert.equal(samples.get("mmproxy_flows_opened_total"), 1);
});

Deno.test("metrics: what the process uses, in the sandbox too", async () => {
  await using service = new TcpService(tellAndEcho);
  await using observed = await start(["-4", service.address, "--sandbox", "on"]);
  const before = (await observed.scrape()).samples;
  const of = (samples: ReadonlyMap<string, number>, name: string) =>
    samples.get(`process_${name}`) ?? assert.fail(`no process_${name}`);
  const status = await Deno.readTextFile(`/proc/${observed.program.pid}/status`);
  const resident = Number(/VmRSS:\s*(\d+) kB/.exec(status)?.[1]) * 1024;
  const ratio = of(before, "resident_memory_bytes") / resident;
  assert.ok(ratio > 0.5 && ratio < 2, `${ratio} of what the kernel says`);
  assert.ok(of(before, "virtual_memory_bytes") > resident);
  const limits = await Deno.readTextFile(`/proc/${observed.program.pid}/limits`);
  assert.equal(of(before, "max_fds"), Number(/Max open files\s+(\d+)/.exec(limits)?.[1]));
  const clients = await Promise.all(
    Array.from({ length: 20 }, () => Stream.connect(observed.program.listen.port)),
  );
  try {
    await becomes(observed, "mmproxy_connections_active", clients.length);
    const after = (await observed.scrape()).samples;
    const opened = of(after, "open_fds") - of(before, "open_fds");
    assert.ok(opened >= clients.length && opened < 2 * clients.length, `${opened} descriptors`);
    assert.ok(of(after, "cpu_seconds_total") > of(before, "cpu_seconds_total"));
  } finally {
    for (const client of clients) client[Symbol.dispose]();
  }
});

Deno.test("metrics: a reload that fails shows until one succeeds", async () => {
  await using scratch = await Scratch.make();
  const path = await scratch.write("subnets.txt", "127.0.0.1\n");
  await using observed = await start(["-a", path]);
  await becomes(observed, "mmproxy_last_reload_successful", 1);
  await scratch.write("subnets.txt", "nonsense\n");
  observed.program.signal("SIGHUP");
  await becomes(observed, "mmproxy_last_reload_successful", 0);
  await scratch.write("subnets.txt", "127.0.0.0/8\n");
  observed.program.signal("SIGHUP");
  await becomes(observed, "mmproxy_last_reload_successful", 1);
});

Deno.test("metrics: paths, methods and the content type", async () => {
  await using observed = await start([]);
  const metrics = await observed.get("/metrics");
  assert.equal(metrics.status, 200);
  assert.equal(metrics.type, "text/plain; version=0.0.4; charset=utf-8");
  assert.deepEqual(await observed.get("/metrics", { method: "HEAD" }), { ...metrics, text: "" });
  assert.equal((await observed.get("/")).status, 200);
  assert.equal((await observed.get("/nothing")).status, 404);
  assert.equal((await observed.get("/metrics", { method: "POST" })).status, 405);
});

Deno.test("metrics: /healthz says 503 while a worker is down, and restarts are counted", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  await using service = new TcpService(tellAndEcho);
  await using observed = await start(["-4", service.address], copy.root);
  assert.deepEqual(await observed.get("/healthz"), {
    status: 200,
    text: "ok\n",
    type: "text/plain; charset=utf-8",
  });
  // Each failure doubles the pause before the next start: soon there is time to see it down.
  for (let failure = 1; failure <= 4; failure++) {
    using fatal = await Stream.connect(observed.program.listen.port);
    await fatal.send(v2(CLIENT, BALANCER, { tlvs: [tlv(0xee, bytes("mmproxy: panic"))] }));
    if (failure < 4) await becomes(observed, "mmproxy_worker_restarts_total", failure);
    if (failure < 4) await becomes(observed, "mmproxy_workers_up", 1);
  }
  const down = await eventually(async () => {
    const answer = await observed.get("/healthz");
    return answer.status === 503 && answer.text;
  }, "503");
  assert.match(down, /^unhealthy: 0 of 1 workers running; see worker_failed/);
  await eventually(async () => (await observed.get("/healthz")).status === 200, "200");
});

Deno.test("metrics: while it stops it is well, and not ready", async () => {
  await using service = new TcpService(tellAndEcho);
  await using observed = await start(["-4", service.address]);
  using client = await Stream.connect(observed.program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  await client.line();
  observed.program.signal("SIGTERM");
  await observed.program.event("stopping");
  assert.equal((await observed.get("/healthz")).status, 200);
  const ready = await observed.get("/readyz");
  assert.equal(ready.status, 503);
  assert.match(ready.text, /stopping/);
  await client.finish();
  assert.equal(await observed.program.ended(), 0);
});

Deno.test("metrics: /readyz connects to the service as a client, once in five seconds at most", async () => {
  await using service = new TcpService(tellAndEcho);
  await using observed = await start(["-4", service.address]);
  for (let question = 0; question < 5; question++) {
    assert.deepEqual(await observed.get("/readyz"), {
      status: 200,
      text: "ready\n",
      type: "text/plain; charset=utf-8",
    });
  }
  const { listen } = observed.program;
  assert.equal((await observed.get(`/readyz/${encodeURIComponent(show(listen))}`)).text, "ready\n");
  assert.equal((await observed.get("/readyz/nobody")).status, 404);
  assert.equal(service.clients.length, 1);
  assert.match(service.clients[0] ?? "", /^203\.0\.113\.77:\d+$/);
  const { samples } = await observed.scrape();
  assert.equal(samples.get("mmproxy_connections_accepted_total"), 0, "it is no client of ours");
});

Deno.test("metrics: /readyz says why the service is not reached", async () => {
  const closed = show({ ip: "127.0.0.1", port: freePort() });
  await using observed = await start(["-4", closed]);
  const { status, text } = await observed.get("/readyz");
  assert.equal(status, 503);
  assert.ok(
    text.startsWith(
      `not ready: cannot connect to ${closed} as 203.0.113.77: connection refused (ECONNREFUSED): `,
    ),
    text,
  );
  assert.equal((await observed.get("/healthz")).status, 200, "a restart would not help");
});

Deno.test("metrics: /readyz asked after a pause says what is the case now", async () => {
  const port = freePort();
  const address = show({ ip: "127.0.0.1", port });
  await using observed = await start(["-4", address]);
  const listen = () => new TcpService(tellAndEcho, "127.0.0.1", port);
  {
    await using _service = listen();
    assert.equal((await observed.get("/readyz")).status, 200);
  }
  // The result of before is too old then.
  await pause(5_100);
  assert.match((await observed.get("/readyz")).text, /^not ready: .*ECONNREFUSED/);
  await using _service = listen();
  await pause(5_100);
  assert.equal((await observed.get("/readyz")).status, 200);
});

Deno.test("metrics: /readyz answers though the upstream does not", async () => {
  await using _host = await Network.silentHost("203.0.113.42");
  await using observed = await start(["-4", "203.0.113.42:80", "--connect-timeout", "60"]);
  for (const _ of ["first", "second"]) {
    const { status, text } = await observed.get("/readyz");
    assert.equal(status, 503);
    assert.match(text, /^not ready: no result within 1 s/);
  }
});

Deno.test("metrics: /readyz is 503 where the replies to clients do not come back", async () => {
  await using _host = await Network.silentHost("203.0.113.41");
  await using observed = await start(["-4", "203.0.113.41:80", "--connect-timeout", "1"]);
  const text = await eventually(async () => {
    const { status, text } = await observed.get("/readyz");
    assert.equal(status, 503);
    return !text.includes("no result") && text;
  }, "result");
  assert.match(text, /no answer within 1 s: .*routes/);
});

Deno.test("metrics: /readyz of UDP alone", async () => {
  await using service = await UdpService.start(tell);
  await using observed = await start(["-4", service.address, "-p", "udp"]);
  assert.equal((await observed.get("/readyz")).text, "ready\n");
  assert.equal(service.received[0]?.from.ip, "203.0.113.77");

  const closed = show({ ip: "127.0.0.1", port: freePort() });
  await using down = await start(["-4", closed, "-p", "udp"]);
  const { status, text } = await down.get("/readyz");
  assert.equal(status, 503);
  assert.match(text, /as 203\.0\.113\.77: connection refused/);
});

/** Runs it to its end: it must not start, and say why in one line. */
async function refused(
  address: string,
  { permissions, expected }: { permissions: string[]; expected: number },
  ...words: RegExp[]
): Promise<void> {
  const listen = show({ ip: "127.0.0.1", port: freePort() });
  const args = ["-l", listen, "-a", "/dev/null", "--metrics-addr", address];
  await using scratch = await Scratch.make();
  args[3] = await scratch.write("subnets.txt", "127.0.0.1\n");
  const { code, stderr } = await runToEnd(args, { permissions });
  assert.equal(code, expected, stderr);
  assert.equal(stderr.trimEnd().split("\n").length, 1, stderr);
  for (const word of [/^mmproxy: Option --metrics-addr: /, ...words]) assert.match(stderr, word);
}

Deno.test("metrics: without --allow-net it says which flag is missing", async () => {
  const refusing = (permissions: string[]) => ({ permissions, expected: 2 });
  await refused(
    "127.0.0.1:9100",
    refusing([]),
    /add --allow-net=127\.0\.0\.1:9100 before main\.ts$/m,
  );
  await refused(
    "[::1]:9100",
    refusing(["--allow-net=127.0.0.1:9100"]),
    /add --allow-net=\[::1\]:9100 /,
  );
});

Deno.test("metrics: a busy port and an address of another host are said in one line", async () => {
  await using taken = new TcpService(tellAndEcho);
  const allowed = { permissions: ["--allow-net"], expected: 1 };
  await refused(taken.address, allowed, /another program uses it/);
  await refused("192.0.2.99:9100", allowed, /not an address of this host/);
});

Deno.test("metrics: everything that the dashboard and the alerts ask for is exported", async () => {
  await using observed = await start([]);
  const { samples } = await observed.scrape();
  const exported = new Set([...samples.keys()].map((key) => key.replace(/\{.*/, "")));
  const alerts = (await Deno.readTextFile(ALERTS)).replaceAll(/^ *summary:.*$/gm, "");
  const queried = new Set([...await dashboardQueries(), alerts].flatMap(metricsOf));
  assert.ok(queried.size > 20, `${queried.size} metrics`);
  for (const name of queried) assert.ok(exported.has(name), `${name} is not exported`);
});

realPeerTest(
  "metrics: promtool takes every scrape, every query of the dashboard, and the alerts",
  { promtool: installed("promtool") },
  async () => {
    await using service = new TcpService(tellAndEcho);
    await using observed = await start(["-4", service.address]);
    using client = await Stream.connect(observed.program.listen.port);
    await client.send(v2(CLIENT, BALANCER));
    await client.line();
    assert.equal(await promtool(["check", "metrics"], (await observed.get("/metrics")).text), "");

    const queries = (await dashboardQueries()).filter((query) => !query.startsWith("label_values"));
    const rules = queries.map((query, index) => ({ record: `query:${index}`, expr: query }));
    await using scratch = await Scratch.make();
    const file = await scratch.write(
      "rules.yml",
      JSON.stringify({ groups: [{ name: "dashboard", rules }] }),
    );
    await promtool(["check", "rules", fileURLToPath(ALERTS)]);
    assert.match(
      await promtool(["check", "rules", file]),
      new RegExp(`${rules.length} rules found`),
    );
  },
);

realPeerTest(
  "metrics: the alerts fire for an instance that is down, one that is absent, and one that restarts",
  { promtool: installed("promtool") },
  async () => {
    await using scratch = await Scratch.make();
    const up = 'up{job="mmproxy", instance="one:9100"}';
    const started = 'process_start_time_seconds{job="mmproxy", instance="one:9100"}';
    /** Samples, a minute each, and which of the three alerts fire after `at`. */
    const check = (series: Record<string, string>, at: string, firing: string[]) => ({
      interval: "1m",
      input_series: Object.entries(series).map(([series, values]) => ({ series, values })),
      alert_rule_test: ["MmproxyDown", "MmproxyAbsent", "MmproxyRestarting"].map((alertname) => ({
        alertname,
        eval_time: at,
        exp_alerts: firing.includes(alertname) ? [expected(alertname)] : [],
      })),
    });
    const whose = { job: "mmproxy", instance: "one:9100" };
    const expected = (alertname: string) => ({
      exp_labels: {
        severity: "page",
        ...(alertname === "MmproxyAbsent" ? { job: "mmproxy" } : whose),
      },
      exp_annotations: { summary: summaries.get(alertname)?.replace(/{{.*?}}/, "one:9100") },
    });
    const summaries = new Map(
      [...(await Deno.readTextFile(ALERTS)).matchAll(/alert: (\w+)\n[^]*?summary: "(.*)"/g)]
        .map(([, name = "", summary = ""]) => [name, summary]),
    );
    const tests = [
      check({ [up]: "1x20", [started]: "1000x20" }, "20m", []),
      check({ [up]: "1 1 1 0 0 0" }, "5m", ["MmproxyDown"]),
      check({ [up]: "1 1 1 0 1 1" }, "5m", []),
      check({ [up]: "1 1 1 _ _ _ _ _ _ _ _ _ _ _" }, "14m", ["MmproxyAbsent"]),
      check({ [up]: "1x20", [started]: "1x3 2x3 3x3 4x11" }, "15m", ["MmproxyRestarting"]),
      check({ [up]: "1x20", [started]: "1x9 2x11" }, "15m", []),
    ];
    const rules = fileURLToPath(ALERTS);
    const file = await scratch.write("t.yml", JSON.stringify({ rule_files: [rules], tests }));
    await promtool(["test", "rules", file]);
  },
);

/** Every expression of the dashboard, its variables filled in. */
async function dashboardQueries(): Promise<string[]> {
  const found: string[] = [];
  const visit = (node: unknown) => {
    if (typeof node !== "object" || node === null) return;
    for (const [key, value] of Object.entries(node)) {
      if ((key === "expr" || key === "definition") && typeof value === "string") found.push(value);
      else visit(value);
    }
  };
  visit(JSON.parse(await Deno.readTextFile(new URL("grafana-dashboard.json", DEPLOY))));
  return found.map((query) =>
    query.replaceAll("$__rate_interval", "1m").replaceAll(/\$(job|instance|listener)/g, ".*")
  );
}

/** The metrics that an expression names. */
function metricsOf(query: string): string[] {
  return query.match(/\b(mmproxy|process)_[a-z_]+/g) ?? [];
}
