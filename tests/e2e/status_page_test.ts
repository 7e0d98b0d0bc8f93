/** The status page: what it says, to whom, and that a real browser shows it. */
import assert from "node:assert/strict";
import { Browser, installedBrowser } from "./support/browser.ts";
import { freePort, show } from "./support/endpoints.ts";
import { bytes, text, v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { ProgramCopy } from "./support/program_copy.ts";
import { realPeerTest, Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";
import { eventually } from "./support/time.ts";

const CLIENT = { ip: "192.0.2.81", port: 0 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
const DESKTOP = { width: 1280, height: 900, scheme: "light" } as const;
/** What a stranger might send instead of a header. */
const MARKUP = "<img src=x onerror=alert(1)>\r\n";

/** A running program with its page. */
class Shown implements AsyncDisposable {
  private constructor(
    readonly program: Program,
    readonly scratch: Scratch,
    readonly service: TcpService,
    readonly metricsPort: number,
    readonly ports: { readonly web: number; readonly down: number },
    readonly control: string,
  ) {}

  static async start(metricsIp = "127.0.0.1"): Promise<Shown> {
    const scratch = await Scratch.make();
    const service = new TcpService(tellAndEcho);
    const ports = { web: freePort(), down: freePort() };
    const metricsPort = freePort();
    const metrics = show({ ip: metricsIp, port: metricsPort });
    const control = `${scratch.path}/control`;
    const config = await scratch.write(
      "mmproxy.toml",
      `metrics-addr = "${metrics}"
control = "${control}"
[[listener]]
name = "web"
listen = "127.0.0.1:${ports.web}"
ipv4 = "${service.address}"
allowed-subnets = ["127.0.0.0/8"]
[[listener]]
name = "down"
listen = "127.0.0.1:${ports.down}"
ipv4 = "127.0.0.1:${freePort()}"
allowed-subnets = ["127.0.0.0/8"]
`,
    );
    const program = await Program.start({
      config,
      logLevel: "info",
      permissions: [`--allow-net=${metrics}`],
    });
    return new Shown(program, scratch, service, metricsPort, ports, control);
  }

  get url(): string {
    return `http://127.0.0.1:${this.metricsPort}/`;
  }

  async json(path: string) {
    return await (await fetch(this.url + path)).json();
  }

  /** A connection through the program, relayed. */
  async relay(port: number): Promise<Stream> {
    const stream = await Stream.connect(this.ports.web);
    await stream.send(v2({ ...CLIENT, port }, BALANCER));
    await stream.line();
    return stream;
  }

  /** A connection on which this comes instead of a header. */
  async refuse(words: string): Promise<void> {
    using stream = await Stream.connect(this.ports.web);
    await stream.send(words);
    await stream.end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.program[Symbol.asyncDispose]();
    await this.service[Symbol.asyncDispose]();
    await this.scratch[Symbol.asyncDispose]();
  }
}

realPeerTest(
  "status page: in a browser its numbers move under load; it asks nobody else and complains of nothing",
  { chromium: installedBrowser() },
  async () => {
    await using shown = await Shown.start();
    await using browser = await Browser.start();
    const page = await browser.open(shown.url, DESKTOP);
    const shows = (selector: string, expected: RegExp) =>
      eventually(
        async () => expected.test(await page.text(selector)),
        `${expected} in ${selector}`,
      );

    await shows("#tile-connections", /^0$/);
    await shows("#no-notes", /^None since the start/);
    await shows("#state", /^1 of 2 listeners not ready$/);
    const rows = await page.text("#listeners");
    assert.match(rows, /web\s+ready\s/);
    assert.match(
      rows,
      /down\s+not ready\s[^]*cannot connect to 127\.0\.0\.1:\d+ as 203\.0\.113\.77/,
    );
    assert.equal(await page.evaluate("document.querySelectorAll('canvas').length"), 4);
    await shows("#config", /workers\s+1\s[^]*allowed-subnets\s+127\.0\.0\.0\/8/);

    const clients = await Promise.all([1, 2, 3].map((port) => shown.relay(20_000 + port)));
    const ended = new AbortController();
    const load = (async () => {
      while (!ended.signal.aborted) {
        for (const client of clients) {
          await client.send(new Uint8Array(20_000));
          await client.exactly(20_000);
        }
      }
    })();
    await shown.refuse(MARKUP);
    await shown.refuse(MARKUP);
    await shows("#tile-connections", /^3$/);
    await shows("#tile-up", /[kM]B\/s$/);
    await shows("#charts", /to clients [\d.]+\s[kM]B\/s/);
    await shows("#listeners", /web\s+ready\s[^]*?\s3\s+0\s+\S+\s+[\d.]+\s[kM]B\/s/);
    await shows("#notes", /not_proxy\s+web, 2 times/);
    const notes = await page.text("#notes");
    assert.ok(notes.includes("<img src=x onerror=alert(1)>"), notes);
    assert.match(notes, /Configure the load balancer to send a PROXY header/);
    await shows("#charts", /not_proxy/);
    assert.equal(await page.evaluate("document.querySelector('img')"), null, "text is no markup");
    ended.abort();
    await load;
    for (const client of clients) client[Symbol.dispose]();
    await shows("#tile-connections", /^0$/);

    const ground = "getComputedStyle(document.body).backgroundColor";
    const light = await page.evaluate(ground);
    await page.look({ width: 360, height: 780, scheme: "dark" });
    await eventually(async () => await page.evaluate(ground) !== light, "dark page");
    // The charts follow the new size a moment later.
    const width = () => page.evaluate("document.documentElement.scrollWidth");
    await eventually(async () => await width() === 360, "page as wide as the screen");
    assert.deepEqual(page.complaints, []);
    const elsewhere = page.requests.filter((url) =>
      !url.startsWith(shown.url) && !url.startsWith("data:")
    );
    assert.deepEqual(elsewhere, []);
    assert.ok(page.requests.length > 10, "it did ask");

    await shown.program.stop();
    await shows("#trouble", /^No answer from mmproxy/);
    assert.notDeepEqual(page.complaints, [], "a complaint would have been seen");
  },
);

Deno.test("status page: status.json says what the control socket says", async () => {
  await using shown = await Shown.start();
  using _client = await shown.relay(20_010);
  await shown.refuse("GET / HTTP/1.1\r\n\r\n");
  const { status, notes } = await eventually(async () => {
    const answer = await shown.json("status.json");
    return answer.status.total.refused.not_proxy === 1 && answer.notes.length === 1 && answer;
  }, "refusal");
  const { stdout } = await runToEnd(["status", "--json", "--control", shown.control]);
  const asked = JSON.parse(stdout);
  const timeless = (one: typeof status) => ({
    ...one,
    uptime: 0,
    listeners: one.listeners.map((listener: object) => ({ ...listener, uptime: 0 })),
  });
  assert.deepEqual(timeless(status), timeless(asked));
  assert.equal(status.total.connections, 1);
  const [{ message, advice, listener, count, reason }] = notes;
  assert.deepEqual([listener, count, reason], ["web", 1, "not_proxy"]);
  const logged = await shown.program.event("header_refused");
  assert.equal(message, logged.message, "in the log's words");
  assert.match(advice, /Configure the load balancer/);
});

Deno.test("status page: by IP address and as localhost, and by no other name", async () => {
  await using shown = await Shown.start();
  const statusOf = async (path: string, host: string) => {
    using stream = await Stream.connect(shown.metricsPort);
    await stream.send(bytes(`GET ${path} HTTP/1.1\r\n${host}\r\n\r\n`));
    await stream.finish();
    const answer = text(await stream.rest());
    return { status: /^HTTP\/1\.1 (\d+)/.exec(answer)?.[1], answer };
  };
  for (const path of ["/", "/page/page.js", "/status.json", "/history.json", "/config.json"]) {
    for (const host of ["127.0.0.1:9", "localhost", "[::1]:80"]) {
      const { status, answer } = await statusOf(path, `Host: ${host}`);
      assert.equal(status, "200", `${path} ${host}`);
      assert.match(answer, /\r\ncontent-security-policy: default-src 'none'; /);
    }
    assert.equal((await statusOf(path, "Host: rebound.example.org")).status, "421", path);
  }
  // Prometheus asks by name, too.
  for (const path of ["/metrics", "/healthz"]) {
    assert.equal((await statusOf(path, "Host: mmproxy.example.org")).status, "200", path);
  }
  for (const method of ["POST", "PUT", "DELETE"]) {
    const answer = await fetch(`${shown.url}status.json`, { method });
    await answer.body?.cancel();
    assert.equal(answer.status, 405, method);
  }
});

Deno.test("status page: a start says where it is, and warns where other hosts can reach it", async () => {
  await using local = await Shown.start();
  const { message } = await local.program.event("metrics");
  assert.ok(message.includes(local.url), message);
  assert.deepEqual(local.program.all("metrics_exposed"), []);
  await using open = await Shown.start("0.0.0.0");
  const warned = await open.program.event("metrics_exposed");
  assert.equal(warned.level, "warn");
  assert.match(warned.message, /^Other hosts can reach http:\/\/0\.0\.0\.0:\d+\//);
});

Deno.test("status page: a start without --metrics-addr loads nothing of it", async () => {
  await using copy = await ProgramCopy.make();
  await copy.addFaultyLibrary();
  await Deno.remove(`${copy.root}/src/status`, { recursive: true });
  {
    await using service = new TcpService(tellAndEcho);
    await using program = await Program.start({ root: copy.root, args: ["-4", service.address] });
    await program.stop();
  }
  const metrics = show({ ip: "127.0.0.1", port: freePort() });
  const { code, stderr } = await runToEnd(["--metrics-addr", metrics], {
    root: copy.root,
    permissions: [`--allow-net=${metrics}`],
  });
  assert.equal(code, 1);
  assert.match(stderr, /status\/site\.ts/, "with it, they would have been loaded");
});
