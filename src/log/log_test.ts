import assert from "node:assert/strict";
import type { LevelName, LogFormat } from "../config/options.ts";
import { failureLines, openLog } from "./log.ts";

/** A log at `level`, and the lines that it has written. */
function open(level: LevelName, format: LogFormat, journal = false) {
  const lines: string[] = [];
  return { log: openLog(level, { format, journal }, (line) => lines.push(line)), lines };
}

const TIME = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`;
const LEVELS: readonly LevelName[] = ["error", "warn", "info", "access", "debug"];

Deno.test("openLog: text has time, level and message, the messages below each other", () => {
  const { log, lines } = open("debug", "text");
  for (const level of LEVELS) log(level, "Relaying", { event: "connection_opened", peer: "p" });
  assert.deepEqual(
    lines.map((line) => line.replace(new RegExp(`^${TIME} `), "")),
    LEVELS.map((level) => `${level.toUpperCase().padEnd(6)} Relaying\n`),
  );
});

Deno.test("openLog: JSON has the time, the level, the event, the message, then its fields", () => {
  const { log, lines } = open("debug", "json");
  log("access", "Relaying", { event: "connection_opened", listener: 0, peer: "p" });
  const [line = ""] = lines;
  assert.match(line, new RegExp(`^\\{"time":"${TIME}",`));
  assert.deepEqual(Object.entries(JSON.parse(line)).slice(1), [
    ["level", "access"],
    ["event", "connection_opened"],
    ["message", "Relaying"],
    ["listener", 0],
    ["peer", "p"],
  ]);
});

for (const [index, level] of LEVELS.entries()) {
  Deno.test(`openLog: at ${level} writes what is as grave, and nothing below`, () => {
    const { log, lines } = open(level, "json");
    for (const level of LEVELS) log(level, "A line", { event: "any" });
    assert.deepEqual(lines.map((line) => JSON.parse(line).level), LEVELS.slice(0, index + 1));
  });
}

for (const format of ["text", "json"] as const) {
  Deno.test(`openLog: braces in a message are literal in ${format}`, () => {
    const { log, lines } = open("info", format);
    log("info", "Got {event} and {{braces}}", { event: "any" });
    assert.equal(lines.length, 1);
    assert(lines[0]?.includes("Got {event} and {{braces}}"));
  });
}

Deno.test("openLog: a newline in a message or field forges no JSON line", () => {
  const { log, lines } = open("info", "json");
  const forged = '"}\n{"event":"forged"}\r\n';
  log("info", `Message ${forged}`, { event: "any", error: forged });
  const [line = ""] = lines;
  assert.equal(line.indexOf("\n"), line.length - 1);
  const { event, message, error } = JSON.parse(line);
  assert.deepEqual([event, message, error], ["any", `Message ${forged}`, forged]);
});

Deno.test("openLog: the journal gets a priority, and neither time nor level", () => {
  const { log, lines } = open("debug", "text", true);
  for (const level of LEVELS) log(level, "Two\nlines", { event: "any" });
  assert.deepEqual(lines, [3, 4, 6, 6, 7].map((priority) => `<${priority}>Two lines\n`));
});

Deno.test("openLog: JSON in the journal is JSON behind a priority", () => {
  const { log, lines } = open("info", "json", true);
  log("warn", "A line", { event: "any" });
  const [, priority, rest = ""] = /^<(\d)>(.*)\n$/.exec(lines[0] ?? "") ?? [];
  assert.equal(priority, "4");
  assert.equal(JSON.parse(rest).message, "A line");
});

Deno.test("failureLines: as other programs do, as JSON, and for the journal", () => {
  const message = "one\ntwo";
  const text = { format: "text", journal: false } as const;
  assert.equal(failureLines(message, 2, text), "mmproxy: one\nmmproxy: two\n");
  assert.equal(failureLines(message, 2, { ...text, journal: true }), "<3>one\n<3>two\n");
  const json = failureLines(message, 2, { format: "json", journal: false }).trimEnd().split("\n");
  for (const [index, line] of json.entries()) {
    const { time: _, ...fields } = JSON.parse(line);
    assert.deepEqual(fields, {
      level: "error",
      event: "failed",
      message: ["one", "two"][index],
      exit_code: 2,
    });
  }
});
