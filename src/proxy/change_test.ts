import assert from "node:assert/strict";
import { readConfig } from "../config/file.ts";
import { followable, type Intended, planChange, type Running } from "./change.ts";

/** Listeners by name, each on these addresses. */
function intended(listeners: Record<string, string[]>, more = ""): Intended[] {
  const tables = Object.entries(listeners).map(([name, listen]) =>
    `[[listener]]\nname = "${name}"\nlisten = ${
      JSON.stringify(listen)
    }\nipv4 = "127.0.0.1:9"\n${more}`
  );
  return readConfig(tables.join("\n"), "m.toml").listeners.map((config) => ({ config }));
}

function running(listeners: Record<string, string[]>): Running[] {
  return intended(listeners).map((known, index) => ({ ...known, id: index + 1, since: 1 }));
}

/** The change in short: `mail=1` continues the first, `web=` is new. */
function plan(before: Running[], after: Intended[]) {
  const { entries, added, changed, removed, unchanged } = planChange(before, after);
  const names = (some: readonly Intended[]) => some.map(({ config }) => config.name).join();
  return {
    entries: entries.map(({ id, config }) => `${config.name}=${id ?? ""}`).join(),
    added: names(added),
    changed: names(changed),
    removed: names(removed),
    unchanged,
  };
}

const MAIL = ["192.0.2.1:25", "192.0.2.1:465"];
const WEB = ["192.0.2.1:443"];

Deno.test("planChange: nothing is changed where nothing has changed", () => {
  assert.deepEqual(plan(running({ mail: MAIL, web: WEB }), intended({ web: WEB, mail: MAIL })), {
    entries: "web=2,mail=1",
    added: "",
    changed: "",
    removed: "",
    unchanged: 2,
  });
});

Deno.test("planChange: one is added, one changed, one removed", () => {
  const before = running({ mail: MAIL, web: WEB, dns: ["192.0.2.1:53"] });
  const after = intended({ mail: MAIL.slice(1), ssh: ["192.0.2.1:22"], web: WEB });
  assert.deepEqual(plan(before, after), {
    entries: "mail=1,ssh=,web=2",
    added: "ssh",
    changed: "mail",
    removed: "dns",
    unchanged: 1,
  });
});

Deno.test("planChange: a listener by another name is known by its address", () => {
  const before = running({ mail: MAIL, web: WEB });
  assert.equal(plan(before, intended({ post: MAIL, web: WEB })).entries, "post=1,web=2");
  // Of two parts one continues it.
  const parts = intended({ smtp: MAIL.slice(0, 1), smtps: MAIL.slice(1), web: WEB });
  assert.deepEqual(plan(before, parts).entries, "smtp=1,smtps=,web=2");
  // A name that moves to other addresses is still that listener.
  assert.equal(plan(before, intended({ mail: WEB, web: MAIL })).entries, "mail=1,web=2");
});

Deno.test("planChange: any key makes a change, and so do the peers", () => {
  const before = running({ web: WEB });
  assert.equal(plan(before, intended({ web: WEB }, "idle-timeout = 5")).changed, "web");
  const peers = (...bytes: number[]) => ({ peers: Uint8Array.from(bytes) });
  const [web] = before;
  assert(web);
  assert.equal(plan(before, [{ ...web, ...peers(1) }]).changed, "web");
  assert.equal(plan([{ ...web, ...peers(1) }], [{ ...web, ...peers(2) }]).changed, "web");
  assert.equal(plan([{ ...web, ...peers(1) }], [{ ...web, ...peers(1) }]).unchanged, 1);
});

Deno.test("followable: what cannot change at run time is named, and stays", () => {
  const listener = '\n[[listener]]\nlisten = "192.0.2.1:443"\nipv4 = "127.0.0.1:9"\n';
  const before = readConfig(`workers = 2\ndrain-timeout = 5${listener}`, "m.toml");
  const after = readConfig(
    `workers = 3\nmetrics-addr = "127.0.0.1:9100"\ndrain-timeout = 6${listener}`,
    "m.toml",
  );
  const { config, kept } = followable(before, after);
  assert.deepEqual(kept, ["workers", "metrics-addr"]);
  assert.deepEqual(config, { ...before, drainTimeout: 6 });
  assert.deepEqual(followable(before, before), { config: before, kept: [] });
});
