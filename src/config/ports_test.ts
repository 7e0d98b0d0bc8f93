import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import type { ListenerConfig } from "./model.ts";
import { listenPorts } from "./ports.ts";

function listener(line: string): ListenerConfig {
  const request = parseArguments(line.split(" "), "0");
  assert(request.kind === "run" && request.setup.kind === "flags");
  return request.setup.config.listeners[0] ?? assert.fail();
}

/** Each port as `listen → ipv4 ipv6`, with `!` where `[::]` leaves IPv4 out. */
function ports(line: string, ...others: string[]): string[] {
  const one = listener(line);
  const listeners = [one, ...others.map(listener)];
  return listenPorts(one, { listeners }).map(({ listen, ipv4, ipv6, onlyV6 }) =>
    `${listen.text}${onlyV6 ? "!" : ""} → ${ipv4?.text} ${ipv6?.text}`
  );
}

Deno.test("listenPorts: the port that was listened on, one for all, or one to one", () => {
  const listen = "-l 192.0.2.1:1000-1001 -l 192.0.2.2:1001-1002";
  assert.deepEqual(ports(`${listen} -4 127.0.0.1`), [
    "192.0.2.1:1000 → 127.0.0.1:1000 undefined",
    "192.0.2.1:1001 → 127.0.0.1:1001 undefined",
    "192.0.2.2:1001 → 127.0.0.1:1001 undefined",
    "192.0.2.2:1002 → 127.0.0.1:1002 undefined",
  ]);
  assert.deepEqual(
    ports(`${listen} -4 127.0.0.1:9`).map((text) => text.split(" ")[2]),
    Array(4).fill("127.0.0.1:9"),
  );
  assert.deepEqual(
    ports(`${listen} -4 127.0.0.1:2000-2002 -6 [::1]:9`).map((text) => text.slice(17)),
    [
      "127.0.0.1:2000 [::1]:9",
      "127.0.0.1:2001 [::1]:9",
      "127.0.0.1:2001 [::1]:9",
      "127.0.0.1:2002 [::1]:9",
    ],
  );
});

Deno.test("listenPorts: what TPROXY hands over has a port of its own, where the upstream has none", () => {
  const transparent = (line: string) => {
    const one = listener(`-l 0.0.0.0:1080 --transparent ${line}`);
    return listenPorts(one, { listeners: [one] }).map(({ ipv4, ipv6, transparent }) => [
      ipv4?.port,
      ipv6?.port,
      transparent,
    ]);
  };
  assert.deepEqual(transparent("-4 127.0.0.1 -6 [::1]:9"), [[0, 9, true]]);
});

Deno.test("listenPorts: one address is as it was written, and keeps its link", () => {
  assert.deepEqual(ports("-l [fe80::1%3]:25 -6 [fe80::2%3]"), [
    "[fe80::1%3]:25 → undefined [fe80::2%3]:25",
  ]);
});

Deno.test("listenPorts: [::] leaves IPv4 to the listener that has the port and transport", () => {
  const six = "-l [::]:53 -4 127.0.0.1:9";
  const has = (line: string, ...others: string[]) => ports(line, ...others)[0]?.includes("!");
  assert.equal(has(six), false);
  assert.equal(has(`${six} -l 0.0.0.0:53`), true);
  assert.equal(has(`${six} -l 192.0.2.1:50-60`), true);
  assert.equal(has(`${six} -l 0.0.0.0:54`), false);
  assert.equal(has(six, "-l 0.0.0.0:53 -4 127.0.0.1:9 -p both"), true);
  assert.equal(has(six, "-l 0.0.0.0:53 -4 127.0.0.1:9 -p udp"), false);
});

Deno.test("listenPorts: an upstream that is a name is left out", () => {
  assert.deepEqual(ports("-l 192.0.2.1:25 -4 mail.internal:25"), [
    "192.0.2.1:25 → undefined undefined",
  ]);
});
