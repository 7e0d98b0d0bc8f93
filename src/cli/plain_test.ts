import assert from "node:assert/strict";
import fc from "fast-check";
import { parseArguments } from "./arguments.ts";
import { type Environment, NO_ENVIRONMENT } from "./environment.ts";
import { namesOf, ROWS } from "./options.ts";
import { readPlain } from "./plain.ts";
import type { Setup } from "./setup.ts";

const words = (line: string) => line.split(" ").filter((word) => word !== "");

/** A setup, or the message of its refusal, as text that can be compared. */
function outcome(read: () => Setup | undefined): unknown {
  try {
    return read();
  } catch (error) {
    assert(error instanceof Error);
    return `${error.name}: ${error.message}`;
  }
}

function byCommander(args: readonly string[], environment: Environment): Setup | undefined {
  const request = parseArguments(args, "0", environment);
  return request.kind === "run" ? request.setup : undefined;
}

const LINES = [
  "",
  "-l 192.0.2.1:8443 -4 127.0.0.1:9000 -6 [::1]:9000 -p tcp -a subnets.txt --workers auto",
  "-l 192.0.2.1:443 -l 192.0.2.2:443-450 --listen-addr=198.51.100.1:7 --auto-routes",
  "--listeners 2 --transparent --upstream destination --allowed-destinations 192.0.2.0/24:443",
  "--config mmproxy.toml --workers 2",
  "--config=a.toml --config b.toml",
  "--mark 5 --mark 6",
];

for (const line of LINES) {
  Deno.test(`readPlain: reads "${line}" as commander does`, () => {
    const plain = readPlain(words(line), NO_ENVIRONMENT);
    assert.notEqual(plain, undefined);
    assert.deepEqual(plain, byCommander(words(line), NO_ENVIRONMENT));
  });
}

for (
  const line of [
    ...["--help", "-h", "--version", "routes up", "help", "doctor --fix", "check --config a.toml"],
    ...["-ptcp", "--mark", "--mark -1", "--mark --workers", "-- -p tcp", "--transparent=yes"],
    ...["--unknown", "--Mark 5", "-p tcp status", "--listen 192.0.2.1:1", "-m= 5"],
  ]
) {
  Deno.test(`readPlain: leaves "${line}" to commander`, () => {
    assert.equal(readPlain(words(line), NO_ENVIRONMENT), undefined);
  });
}

Deno.test("readPlain: the environment gives what is not typed", () => {
  const environment: Environment = (name) =>
    ({ MMPROXY_MARK: "7", MMPROXY_LISTEN_ADDR: "192.0.2.1:1,192.0.2.2:2", MMPROXY_WATCH: "yes" })[
      name
    ];
  for (const line of ["", "--mark 5", "-l 192.0.2.3:3"]) {
    const plain = readPlain(words(line), environment);
    assert.notEqual(plain, undefined);
    assert.deepEqual(plain, byCommander(words(line), environment));
  }
  const file: Environment = (name) => name === "MMPROXY_CONFIG" ? "a.toml" : undefined;
  const setup = readPlain([], file);
  assert(setup?.kind === "file" && setup.path === "a.toml");
});

Deno.test("readPlain: whatever it reads, commander reads as the same setup or refuses alike", () => {
  const names = ROWS.flatMap(([, row]) =>
    [row, ...row.alias ? [row.alias] : []].flatMap((given) => namesOf(given).split(", "))
  );
  const values = [
    "",
    "1",
    "5",
    "tcp",
    "auto",
    "none",
    "off",
    "192.0.2.1:443",
    "[2001:db8::1]:9",
    "x",
  ];
  const word = fc.oneof(
    { weight: 6, arbitrary: fc.constantFrom(...names) },
    { weight: 6, arbitrary: fc.constantFrom(...values) },
    fc.tuple(fc.constantFrom(...names), fc.constantFrom(...values)).map((pair) => pair.join("=")),
    fc.constantFrom("--config", "--", "-", "routes", "-p=tcp", "-ptcp", "--no-watch", "-V"),
  );
  const pair = fc.tuple(fc.constantFrom(...names), fc.constantFrom(...values));
  const line = fc.array(fc.oneof(pair, pair, fc.tuple(word)), { maxLength: 6 })
    .map((parts) => parts.flat());
  let read = 0;
  fc.assert(
    fc.property(line, (args) => {
      const plain = outcome(() => readPlain(args, NO_ENVIRONMENT));
      if (plain === undefined) return;
      read++;
      assert.deepEqual(plain, outcome(() => byCommander(args, NO_ENVIRONMENT)));
    }),
    { numRuns: 2_000 },
  );
  assert(read > 200, `${read} of them were plain`);
});
