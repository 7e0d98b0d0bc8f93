import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import { readConfig } from "../config/file.ts";
import type { Limits } from "../config/limits.ts";
import type { ProxyConfig } from "../config/model.ts";
import type { Details } from "../log/log.ts";
import { LISTENER, Status, TRUST } from "../native/layout.ts";
import { type ConfigurationRecords, NativeError } from "../native/library.ts";
import { Listeners } from "./listeners.ts";
import { Configuration } from "./reload.ts";

const SUBNETS = "/etc/mmproxy/subnets";
const FILE = `workers = 2
[[listener]]
name = "mail"
listen = "192.0.2.1:25"
ipv4 = "127.0.0.1"
[[listener]]
name = "web"
listen = "192.0.2.1:443"
ipv4 = "127.0.0.1"
`;

/** A program whose native core takes what it is told. */
class Stage {
  subnets: string | Error = "192.0.2.0/24\n# a comment\n2001:db8::/32\n";
  text = FILE;
  /** What the core refuses next. */
  refusals: NativeError[] = [];
  readonly configured: { records: ConfigurationRecords; budgets: Limits; grace: number }[] = [];
  readonly lines: { level: string; message: string; details: Details }[] = [];
  readonly listeners = new Listeners();
  #next = 1;

  readonly library = {
    readFile: (path: string) => {
      assert.equal(path, SUBNETS);
      if (this.subnets instanceof Error) throw this.subnets;
      return new TextEncoder().encode(this.subnets);
    },
    resolve: () => Promise.reject(new Error("there are no names")),
    isListenerInUse: () => false,
    configure: (
      _proxy: number,
      records: ConfigurationRecords,
      budgets: Limits,
      grace: number,
    ) => {
      const refusal = this.refusals.shift();
      if (refusal) throw refusal;
      this.configured.push({ records, budgets, grace });
      const view = new DataView(records.listeners.buffer);
      const count = records.listeners.length / LISTENER.size;
      return Array.from(
        { length: count },
        (_, index) => view.getUint32(index * LISTENER.size + LISTENER.id, true) || this.#next++,
      );
    },
  };

  async flags(...args: string[]): Promise<Configuration> {
    const request = parseArguments(args, "0");
    assert(request.kind === "run" && request.setup.kind === "flags");
    return await this.#open(request.setup.config);
  }

  async file(): Promise<Configuration> {
    const reread = () => {
      const config = readConfig(this.text, "m.toml");
      return Promise.resolve({ ...config, file: "m.toml" });
    };
    return await this.#open(await reread(), reread);
  }

  async #open(config: ProxyConfig, reread?: () => Promise<ProxyConfig>): Promise<Configuration> {
    const opened = await Configuration.open(config, {
      proxy: 1,
      workers: 2,
      fileLimit: 1_024,
      library: this.library,
      listeners: this.listeners,
      log: (level, message, details) => this.lines.push({ level, message, details }),
      ...(reread && { reread }),
    });
    this.lines.length = 0;
    return opened;
  }

  get open(): string {
    return this.listeners.open.map(({ id, config }) => `${id}:${config.name}`).join();
  }

  take(): string[] {
    return this.lines.splice(0).map(({ level, message }) => `${level} ${message}`);
  }
}

Deno.test("reload, flags: a valid subnet file is passed on completely and counted", async () => {
  const stage = new Stage();
  const configuration = await stage.flags("-a", SUBNETS);
  stage.subnets = "192.0.2.0/24\n";
  const { good, lines } = await configuration.reload();
  assert.ok(good);
  assert.deepEqual(stage.configured.map(({ records }) => records.rules.length), [
    2 * TRUST.size,
    TRUST.size,
  ]);
  assert.deepEqual(lines, [`Reloaded ${SUBNETS}: 1 allowed subnet`]);
  assert.equal(stage.lines[0]?.details.event, "subnets_reloaded");
});

for (
  const [what, content, says] of [
    ["a wrong line", "192.0.2.0/24\nnonsense\n", /line 2: "nonsense" is not an IP address/],
    ["no entry", "# nobody\n", /has no subnet/],
    [
      "one that cannot be read",
      new NativeError(Status.system, `Cannot read ${SUBNETS}: No such file`),
      /Cannot read \S+: No such file/,
    ],
  ] as const
) {
  Deno.test(`reload, flags: ${what} changes nothing and says so`, async () => {
    const stage = new Stage();
    const configuration = await stage.flags("-a", SUBNETS);
    stage.subnets = content;
    const { good } = await configuration.reload();
    assert.equal(good, false);
    assert.equal(stage.configured.length, 1);
    const [line, ...more] = stage.lines;
    assert.equal(more.length, 0);
    assert.equal(line?.level, "error");
    assert.match(line?.message ?? "", says);
    assert.match(line?.message ?? "", /; the old configuration stays in force$/);
    assert.equal(line?.details.event, "reload_failed");
    assert.equal(line?.details.path, SUBNETS);
  });
}

Deno.test("reload, flags: without a subnet file there is nothing to reload", async () => {
  const stage = new Stage();
  const { good, lines } = await (await stage.flags()).reload();
  assert.ok(good);
  assert.match(lines[0] ?? "", /--allowed-subnets/);
  assert.equal(stage.configured.length, 1);
});

Deno.test("reload, file: listeners come, change and go in one step", async () => {
  const stage = new Stage();
  const configuration = await stage.file();
  assert.equal(stage.open, "1:mail,2:web");
  stage.text = FILE.replace('"web"', '"ssh"').replace(":443", ":22").replace("workers = 2", "")
    .replace(":25", ":2525") + "\n[defaults]\nidle-timeout = 9\n";
  stage.text = `drain-timeout = 7\n${stage.text}`;
  assert.ok((await configuration.reload()).good);
  assert.equal(stage.configured.length, 2);
  assert.equal(stage.configured[1]?.grace, 7_000);
  assert.equal(stage.open, "1:mail,3:ssh");
  const [closed, kept, reloaded, ...more] = stage.take();
  assert.equal(closed, "info web: closed; its connections have 7 s to finish");
  assert.match(kept ?? "", /^warn Restart mmproxy to change workers: /);
  assert.equal(
    reloaded,
    "info Reloaded m.toml: 1 listener added (ssh), 1 listener changed (mail), 1 listener removed (web)",
  );
  assert.equal(more.filter((line) => line.includes("Listening on")).length, 2);
  assert.equal(configuration.config.workers, 2);
});

Deno.test("reload, file: descriptors are distributed again", async () => {
  const stage = new Stage();
  const configuration = await stage.file();
  stage.text = FILE + 'protocol = "udp"\n';
  assert.ok((await configuration.reload()).good);
  const [before, after] = stage.configured.map(({ budgets }) => budgets);
  assert(before && after);
  // Two transports have half each.
  assert.ok(after.connections < before.connections * 0.6, JSON.stringify([before, after]));
  assert.ok(after.flows < before.flows * 0.6);
});

Deno.test("reload, file: where nothing has changed the core is left alone", async () => {
  const stage = new Stage();
  const configuration = await stage.file();
  assert.ok((await configuration.reload()).good);
  assert.deepEqual(stage.take(), ["info Reloaded m.toml: 2 as before"]);
  assert.ok((await configuration.reload(true)).good);
  assert.deepEqual(stage.take(), []);
  assert.equal(stage.configured.length, 1);
});

Deno.test("reload, file: a wrong one changes nothing, and every mistake has a line", async () => {
  const stage = new Stage();
  const configuration = await stage.file();
  stage.text = FILE.replace("workers", "wokers").replace("192.0.2.1:25", "192.0.2.1:99999");
  assert.equal((await configuration.reload()).good, false);
  const lines = stage.take();
  assert.match(lines[0] ?? "", /^error m\.toml, line 1: wokers = 2: unknown key; did you mean/);
  assert.match(lines[1] ?? "", /^error m\.toml, line 4: listen = "192\.0\.2\.1:99999": /);
  assert.deepEqual(lines.slice(2), [
    "error Cannot reload m.toml: 2 mistakes; the old configuration stays in force",
  ]);
  assert.equal(stage.configured.length, 1);
  assert.equal(stage.open, "1:mail,2:web");
});

Deno.test("reload, file: what the core refuses changes nothing, and the next one counts", async () => {
  const stage = new Stage();
  const configuration = await stage.file();
  stage.text = FILE.replace(":443", ":8443");
  const taken = "Cannot listen on 192.0.2.1:8443 (TCP): Address already in use (os error 98)";
  stage.refusals = [new NativeError(Status.address_in_use, taken)];
  assert.equal((await configuration.reload()).good, false);
  const [line, ...more] = stage.take();
  assert(
    line?.startsWith(`error Cannot reload m.toml: web: ${taken}; another program uses it`),
    line,
  );
  assert.deepEqual(more, []);
  assert.equal(configuration.config.listeners[1]?.listen[0]?.port, 443);
  assert.ok((await configuration.reload()).good);
  assert.equal(configuration.config.listeners[1]?.listen[0]?.port, 8443);
});

Deno.test("reload: one after the other, and none after the end", async () => {
  const stage = new Stage();
  const configuration = await stage.file();
  stage.text = FILE.replace(":443", ":8443");
  const first = configuration.reload();
  stage.text = FILE;
  const second = configuration.reload();
  assert.ok((await first).good && (await second).good);
  assert.equal(configuration.config.listeners[1]?.listen[0]?.port, 443);
  configuration.close();
  assert.deepEqual(await configuration.reload(), { good: false, lines: [] });
});
