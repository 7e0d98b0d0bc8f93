import assert from "node:assert/strict";
import { readConfig } from "../config/file.ts";
import type { Details } from "../log/log.ts";
import { ENDPOINT } from "../native/layout.ts";
import { encodeAnyEndpoint } from "../config/records.ts";
import { parseAddress } from "../config/address.ts";
import { Names } from "./names.ts";

const [LISTENER] = readConfig(
  `[[listener]]
  name = "mail"
  listen = "192.0.2.1:25"
  ipv4 = "mail.internal:2525"
  ipv6 = "Mail.Internal"`,
  "m.toml",
).listeners;

/** `Endpoint` records with port 0. */
function records(texts: string[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(texts.length * ENDPOINT.size);
  texts.forEach((text, index) => {
    const address = parseAddress(text.includes(":") ? `[${text}]:1` : `${text}:1`);
    assert(address);
    all.set(encodeAnyEndpoint({ ...address, port: 0 }), index * ENDPOINT.size);
  });
  return all;
}

class Stage {
  answers: Record<4 | 6, string[] | string> = { 4: ["203.0.113.1"], 6: ["2001:db8::1"] };
  readonly lines: { level: string; message: string; details: Details }[] = [];
  readonly asked: string[] = [];
  readonly names = new Names(
    {
      resolve: (name, family) => {
        this.asked.push(`${name} ${family}`);
        const answer = this.answers[family];
        return Promise.resolve(typeof answer === "string" ? answer : records(answer));
      },
    },
    (level, message, details) => this.lines.push({ level, message, details }),
  );

  /** What the listener's upstreams are. */
  async look(adopt = true): Promise<string[]> {
    assert(LISTENER);
    const lookup = await this.names.look([LISTENER]);
    if (adopt) lookup.adopt();
    const [listener] = lookup.listeners;
    return [listener?.ipv4, listener?.ipv6].map((upstream) => {
      assert(upstream?.kind === "address");
      return upstream.address.bytes.join(".");
    });
  }

  take(): string[] {
    return this.lines.splice(0).map(({ level, message }) => `${level} ${message}`);
  }
}

Deno.test("look: each family is resolved, and the first answer reported", async () => {
  const stage = new Stage();
  const [four] = await stage.look();
  assert.equal(four, "203.0.113.1");
  assert.deepEqual(stage.asked.toSorted(), ["mail.internal 4", "mail.internal 6"]);
  assert.deepEqual(stage.take().toSorted(), [
    "info Resolved mail.internal to 2001:db8::1 (ipv6 of listener mail)",
    "info Resolved mail.internal to 203.0.113.1 (ipv4 of listener mail)",
  ]);
  await stage.look();
  assert.deepEqual(stage.take(), []);
});

Deno.test("look: an address that is still among the answers stays, in whatever order", async () => {
  const stage = new Stage();
  await stage.look();
  stage.take();
  stage.answers[4] = ["203.0.113.2", "203.0.113.1"];
  assert.equal((await stage.look())[0], "203.0.113.1");
  assert.deepEqual(stage.take(), []);
  stage.answers[4] = ["203.0.113.2", "203.0.113.3"];
  // Not adopted: as if it had not been looked up.
  assert.equal((await stage.look(false))[0], "203.0.113.2");
  assert.deepEqual(stage.take(), []);
  await stage.look();
  assert.deepEqual(stage.take(), [
    "info Resolved mail.internal to 203.0.113.2, was 203.0.113.1 (ipv4 of listener mail)",
  ]);
});

Deno.test("look: a failure keeps the last address, and is logged once until it works again", async () => {
  const stage = new Stage();
  await stage.look();
  stage.take();
  stage.answers[4] = "Temporary failure in name resolution";
  for (const told of [1, 0, 0]) {
    assert.equal((await stage.look())[0], "203.0.113.1");
    assert.deepEqual(
      stage.take(),
      [
        "warn Cannot resolve mail.internal (ipv4 of listener mail): Temporary failure in name " +
        "resolution; 203.0.113.1 stays in use until the lookup succeeds",
      ].slice(0, told),
    );
  }
  stage.answers[4] = ["203.0.113.1"];
  await stage.look();
  assert.deepEqual(stage.take(), [
    "info Resolved mail.internal again to 203.0.113.1 (ipv4 of listener mail)",
  ]);
  stage.answers[4] = "Name or service not known";
  await stage.look();
  assert.equal(stage.take().length, 1, "told anew");
});

Deno.test("look: without an address there is no start, and each name has a line", async () => {
  const stage = new Stage();
  // What blocks a name answers zeroes.
  stage.answers = { 4: ["0.0.0.0"], 6: "Name or service not known" };
  await assert.rejects(stage.look(), {
    name: "StartError",
    message:
      "Cannot resolve mail.internal (ipv4 of listener mail): 0.0.0.0 is not the address of a server\n" +
      "Cannot resolve mail.internal (ipv6 of listener mail): Name or service not known",
  });
  stage.answers[6] = ["::ffff:203.0.113.1"];
  await assert.rejects(stage.look(), /::ffff:cb00:7101 is not the address/);
});
