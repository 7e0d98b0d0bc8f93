import assert from "node:assert/strict";
import { EventKind, REFUSALS } from "../native/layout.ts";
import { adviceFor } from "./advice.ts";
import { MOST_NOTES, Recent } from "./recent.ts";

Deno.test("Recent: one note a kind and listener, the latest first, counted", () => {
  const recent = new Recent();
  const refused = { event: "header_refused", refusal: "not_proxy", listener: "web" };
  recent.take("warn", "first", refused);
  recent.take("warn", "failed", { event: "connect_failed", listener: "web" });
  recent.take("warn", "second", { ...refused, left_out: 4 });
  recent.take("warn", "dropped", { event: "datagrams_refused", refusal: "no_session", value: 12 });
  recent.take("warn", "elsewhere", { ...refused, listener: "mail" });
  const notes = recent.notes.map(({ event, reason, listener, count, message }) =>
    [event, reason, listener, count, message].join(" ")
  );
  assert.deepEqual(notes, [
    "header_refused not_proxy mail 1 elsewhere",
    "datagrams_refused no_session  12 dropped",
    "header_refused not_proxy web 6 second",
    "connect_failed  web 1 failed",
  ]);
  assert.match(recent.notes[0]?.advice ?? "", /Configure the load balancer to send a PROXY header/);
});

Deno.test("Recent: an event that is neither a refusal nor a failure is not recorded", () => {
  const recent = new Recent();
  recent.take("info", "Sandbox", { event: "sandbox" });
  recent.take("debug", "Relaying", { event: "connection_opened" });
  assert.deepEqual(recent.notes, []);
  recent.take("debug", "Closed", { event: "header_timeout", refusal: "timeout" });
  assert.equal(recent.notes.length, 1);
});

Deno.test("Recent: bounded in number and length; a flood of one kind displaces no other", () => {
  const recent = new Recent();
  recent.take("warn", "rare", { event: "accept_paused" });
  for (let round = 0; round < 1_000; round++) {
    recent.take("warn", "x".repeat(10_000), { event: "header_refused", refusal: "v1_syntax" });
  }
  assert.deepEqual(recent.notes.map(({ count }) => count), [1_000, 1]);
  assert.ok((recent.notes[0]?.message.length ?? 0) < 1_000);
  for (let index = 0; index < 1_000; index++) {
    recent.take("warn", "many", { event: "peer_refused", listener: `listener-${index}` });
  }
  assert.equal(recent.notes.length, MOST_NOTES);
  assert.equal(recent.notes[0]?.listener, "listener-999");
});

Deno.test("adviceFor: every reason has one, and every failure to connect", () => {
  for (const reason of REFUSALS.slice(1)) {
    assert.match(adviceFor("header_refused", reason), /^[A-Z].*\.$/, reason);
  }
  for (const event of ["connect_failed", "flow_failed", "ports_exhausted", "accept_paused"]) {
    assert.ok(event in EventKind, event);
    assert.match(adviceFor(event, undefined), /^[A-Z].*\.$/, event);
  }
});
