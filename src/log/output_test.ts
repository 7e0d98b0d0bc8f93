import assert from "node:assert/strict";
import { lostLines } from "./log.ts";
import { LogOutput } from "./output.ts";

/** A queue that takes as many lines as it has room for, and a clock. */
class Stage {
  readonly taken: string[] = [];
  room = Infinity;
  failed = 0;
  now = 0;
  flushed = 0;
  readonly output = new LogOutput(
    {
      pushLog: (line: string) => {
        if (this.taken.length >= this.room) return false;
        this.taken.push(line);
        return true;
      },
      failedLogLines: () => this.failed,
      flushLog: (milliseconds: number) => {
        this.flushed = milliseconds;
        return true;
      },
    },
    (count) => `lost ${count}`,
    () => this.now,
  );
}

Deno.test("LogOutput: lines go in their order, and none is lost", () => {
  const { output, taken } = new Stage();
  for (const line of ["one", "two", "three"]) output.write(line);
  assert.deepEqual(taken, ["one", "two", "three"]);
  assert.equal(output.lost, 0);
});

Deno.test("LogOutput: where lines found no room, the next line is their number", () => {
  const stage = new Stage();
  const { output } = stage;
  output.write("one");
  stage.room = 1;
  for (const line of ["two", "three", "four"]) output.write(line);
  assert.equal(output.lost, 3);
  stage.room = Infinity;
  output.write("five");
  assert.deepEqual(stage.taken, ["one", "lost 3", "five"]);
  output.write("six");
  assert.deepEqual(stage.taken.slice(3), ["six"]);
  assert.equal(output.lost, 3);
});

Deno.test("LogOutput: a line for which the number leaves no room is lost, too", () => {
  const stage = new Stage();
  stage.room = 0;
  stage.output.write("one");
  stage.room = 1;
  stage.output.write("two");
  assert.deepEqual(stage.taken, ["lost 1"]);
  stage.room = Infinity;
  assert.equal(stage.output.tellLost(), true);
  assert.deepEqual(stage.taken, ["lost 1", "lost 1"]);
});

Deno.test("LogOutput: lost lines are reported at most once a second", () => {
  const stage = new Stage();
  const { output } = stage;
  stage.failed = 2;
  output.write("one");
  stage.failed = 4;
  output.write("two");
  assert.deepEqual(stage.taken, ["lost 2", "one", "two"]);
  stage.now = 1_000;
  output.tellLost();
  assert.deepEqual(stage.taken, ["lost 2", "one", "two", "lost 2"]);
  assert.equal(output.lost, 4);
});

Deno.test("LogOutput: a flush reports lost lines and waits no longer than allowed", () => {
  const stage = new Stage();
  stage.failed = 1;
  stage.output.flush(250);
  assert.deepEqual(stage.taken, ["lost 1"]);
  assert.equal(stage.flushed, 250);
});

Deno.test("lostLines: is a line of either format", () => {
  assert.match(
    lostLines(2, { format: "text", journal: false }),
    /^\S+Z WARN {3}2 lines were left out here: standard error did not take them\n$/,
  );
  const { time: _, ...fields } = JSON.parse(lostLines(1, { format: "json", journal: false }));
  assert.deepEqual(fields, {
    level: "warn",
    event: "log_lines_lost",
    message: "1 line was left out here: standard error did not take them",
    value: 1,
  });
});
