import assert from "node:assert/strict";
import { readConfig } from "../config/file.ts";
import { LISTENER, PROXY } from "../config/schema.ts";
import { inForce } from "./in_force.ts";

const SUBNETS = Array.from({ length: 30 }, (_, index) => `"192.0.2.${index}"`).join(", ");
const CONFIG = readConfig(
  `workers = 2
metrics-addr = "127.0.0.1:9100"
drain-timeout = 6
[[listener]]
name = "mail"
listen = ["192.0.2.10:25", "192.0.2.10:465"]
ipv4 = "127.0.0.1:2525"
allowed-subnets = [${SUBNETS}]
[[listener]]
name = "any"
listen = "0.0.0.0:9000"
upstream = "destination"
allowed-destinations = ["127.0.0.0/8:1024-65535"]
trust = [{ from = "10.0.0.0/8", header = "optional" }]
max-connections-per-client = 5
[[listener]]
name = "file"
listen = "0.0.0.0:9001"
ipv4 = "127.0.0.1:80"
allowed-subnets = "/etc/mmproxy/subnets.txt"
`,
  "/etc/mmproxy.toml",
);

Deno.test("inForce: keys of the configuration file, with what is in force", () => {
  const { proxy, listeners, omitted } = inForce(CONFIG, 100);
  assert.equal(omitted, 0);
  const entries = Object.fromEntries(proxy);
  assert.equal(entries.workers, "2");
  assert.equal(entries["metrics-addr"], "127.0.0.1:9100");
  assert.equal(entries["drain-timeout"], "6 s");
  assert.ok(!("control" in entries), "what is not set is not shown");
  const [mail = {}, any = {}, file = {}] = listeners.map(({ entries }) =>
    Object.fromEntries(entries) as Record<string, string>
  );
  assert.equal(mail.listen, "192.0.2.10:25, 192.0.2.10:465");
  assert.match(mail["allowed-subnets"] ?? "", /^192\.0\.2\.0\S*, .*, and 10 more$/);
  assert.equal(any["allowed-destinations"], "127.0.0.0/8:1024-65535");
  assert.equal(any.trust, "10.0.0.0/8 optional");
  assert.equal(any["max-connections-per-client"], "5");
  assert.equal(file["allowed-subnets"], "/etc/mmproxy/subnets.txt");
  const known = new Set(["file", ...Object.keys(PROXY), ...Object.keys(LISTENER)]);
  for (const [key] of [...proxy, ...listeners.flatMap(({ entries }) => entries)]) {
    assert.ok(known.has(key), `${key} is a key of the file`);
  }
});

Deno.test("inForce: so many listeners, and how many more there are", () => {
  const { listeners, omitted } = inForce(CONFIG, 1);
  assert.deepEqual([listeners.map(({ name }) => name), omitted], [["mail"], 2]);
});
