import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import { parseDestination } from "../config/destinations.ts";
import type { ListenerConfig } from "../config/model.ts";
import { Problem } from "../config/problem.ts";
import { datagramPorts, routingNeeds } from "./needs.ts";

function listener(line: string): ListenerConfig {
  const request = parseArguments(line.split(" "), "0");
  assert(request.kind === "run" && request.setup.kind === "flags");
  return request.setup.config.listeners[0] ?? assert.fail();
}

function destination(text: string) {
  const parsed = parseDestination(text);
  return parsed instanceof Problem ? assert.fail(parsed.text) : parsed;
}

Deno.test("routingNeeds: every upstream with its ports, mark and where it is written", () => {
  const one = listener(
    "-l 0.0.0.0:25 -l 0.0.0.0:587 -4 192.0.2.5 -6 [2001:db8::5]:26 -m 7 -p both",
  );
  const needs = routingNeeds({ listeners: [one] });
  assert.deepEqual(needs.map(({ text, writtenIn }) => [text, writtenIn]), [
    ["192.0.2.5:25", "-4"],
    ["192.0.2.5:587", "-4"],
    ["[2001:db8::5]:26", "-6"],
  ]);
  for (const { mark, transports, isSpare } of needs) {
    assert.deepEqual([mark, transports, isSpare], [7, ["tcp", "udp"], false]);
  }
});

Deno.test("routingNeeds: of several listeners each is named", () => {
  const listeners = ["mail", "web"].map((name) => ({ ...listener("-4 127.0.0.1:25"), name }));
  assert.deepEqual(routingNeeds({ listeners }).map(({ writtenIn }) => writtenIn), [
    "ipv4 of listener mail",
    "ipv4 of listener web",
  ]);
});

Deno.test("routingNeeds: the defaults are spare, a host name needs nothing yet", () => {
  const isSpare = (line: string) =>
    routingNeeds({ listeners: [listener(line)] }).map(({ isSpare }) => isSpare);
  assert.deepEqual(isSpare("-p tcp"), [true, true]);
  assert.deepEqual(isSpare("-4 127.0.0.1:443"), [false]);
  assert.deepEqual(isSpare("-4 mail.internal:25"), []);
});

Deno.test("routingNeeds: destinations of headers are subnets with ports", () => {
  const any: ListenerConfig = {
    ...listener("-l 0.0.0.0:9000 -4 127.0.0.1:1"),
    upstream: "destination",
    allowedDestinations: ["127.0.0.0/8:1024-65535", "10.0.0.5:22"].map(destination),
  };
  const needs = routingNeeds({ listeners: [any] }).slice(1);
  assert.deepEqual(
    needs.map(({ text, prefix, ports, writtenIn }) => [text, prefix, ports.first, writtenIn]),
    [
      ["127.0.0.0/8:1024-65535", 8, 1024, "allowed-destinations"],
      ["10.0.0.5:22", 32, 22, "allowed-destinations"],
    ],
  );
});

Deno.test("datagramPorts: those of IPv6 on which UDP is taken", () => {
  const listeners = [
    listener("-l [::]:53 -l 0.0.0.0:54 -p udp"),
    listener("-l [::]:55"),
    listener("-l [2001:db8::1]:30000-30999 -p both"),
  ];
  assert.deepEqual(datagramPorts({ listeners }), [
    { first: 53, last: 53 },
    { first: 30_000, last: 30_999 },
  ]);
});
