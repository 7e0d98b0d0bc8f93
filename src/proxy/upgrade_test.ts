import assert from "node:assert/strict";
import { NativeError } from "../native/library.ts";
import { type Parts, reasonIn, Upgrade } from "./upgrade.ts";

const SUCCESSOR = { version: "2" };
const HANDED = { process: 7, sockets: 2, flows: 3, pausedMs: 4 };

/** A run in which everything goes well: the new program says nothing, and ends when it is told to. */
function parts(changes: Partial<Parts> = {}, native: Partial<Parts["library"]> = {}) {
  const logged: string[] = [];
  const said: string[] = [];
  const ended = Promise.withResolvers<undefined>();
  const all: Parts = {
    library: {
      startSuccessor: () => 7,
      successorWords: () => ended.promise,
      endSuccessor: () => {
        ended.resolve(undefined);
        return 9;
      },
      handOver: () => {
        ended.resolve(undefined);
        return Promise.resolve(HANDED);
      },
      answerRequest: (_control, _request, line) => void said.push(line),
      pushLog: (lines) => {
        said.push(lines);
        return true;
      },
      ...native,
    },
    proxy: 1,
    log: (_level, message) => void logged.push(message),
    alone: (work) => work(),
    obstacle: () => undefined,
    words: () => "{}",
    drain: ({ process }, { version }) => `process ${process} runs ${version}`,
    startingMs: 50,
    ...changes,
  };
  return { upgrade: new Upgrade(all), logged, said };
}

/** What a program says, piece by piece, and then nothing more. */
function saying(...pieces: string[]): Parts["library"]["successorWords"] {
  return () => {
    const next = pieces.shift();
    return Promise.resolve(next === undefined ? undefined : new TextEncoder().encode(next));
  };
}

Deno.test("the new program that was started takes over, and a second upgrade comes too late", async () => {
  const { upgrade, logged } = parts();
  const run = upgrade.run();
  await Promise.resolve();
  await upgrade.handOver(1, 1, SUCCESSOR);
  assert.deepEqual(await run, { good: true, lines: ["process 7 runs 2"] });
  assert.deepEqual(logged, ["Upgrading: process 7 starts"]);
  const late = "Cannot upgrade: another program has taken over already; this program continues";
  assert.deepEqual(await upgrade.run(), { good: false, lines: [late] });
});

Deno.test("two upgrades at once are one", async () => {
  const { upgrade } = parts();
  const first = upgrade.run();
  await Promise.resolve();
  const second = await upgrade.run();
  assert.match(second.lines[0] ?? "", /an upgrade is under way/);
  await upgrade.handOver(1, 1, SUCCESSOR);
  assert.equal((await first).good, true);
});

Deno.test("a new program that never starts is ended after its time", async () => {
  const { upgrade } = parts();
  assert.deepEqual((await upgrade.run()).lines, [
    "Cannot upgrade: the new program failed: it did not start within 0.05 s; this program continues",
  ]);
});

Deno.test("a new program that ends says why, and the log has its words in complete lines", async () => {
  const words = saying("a li", "ne\nmmproxy: Cannot listen", " on 0.0.0.0:1\n");
  const { upgrade, said } = parts({}, { successorWords: words });
  assert.deepEqual((await upgrade.run()).lines, [
    "Cannot upgrade: the new program failed: Cannot listen on 0.0.0.0:1; this program continues",
  ]);
  assert.equal(said.join(""), "a line\nmmproxy: Cannot listen on 0.0.0.0:1\n");
});

Deno.test("a new program that ends without a word has a status", async () => {
  const ended = parts({}, { successorWords: saying() });
  assert.match((await ended.upgrade.run()).lines[0] ?? "", /: signal 9 ended it;/);
  const code = parts({}, { successorWords: saying(), endSuccessor: () => 3 << 8 });
  assert.match((await code.upgrade.run()).lines[0] ?? "", /: it ended with code 3 without a word;/);
});

Deno.test("a hand-over that fails fails the upgrade", async () => {
  const handOver = () => Promise.reject(new NativeError(-1, "worker 1 did not answer in time"));
  const { upgrade } = parts({}, { handOver });
  const run = upgrade.run();
  await Promise.resolve();
  await upgrade.handOver(1, 1, SUCCESSOR);
  assert.match((await run).lines[0] ?? "", /: worker 1 did not answer in time;/);
});

Deno.test("nothing is started or handed over where it cannot be", async () => {
  const { upgrade, logged, said } = parts({ obstacle: () => "this program is stopping" });
  const line = "Cannot upgrade: this program is stopping; this program continues";
  assert.deepEqual(await upgrade.run(), { good: false, lines: [line] });
  await upgrade.handOver(1, 1, SUCCESSOR);
  assert.deepEqual(said, ['{"error":"this program is stopping"}']);
  assert.deepEqual(logged, [
    line,
    "Cannot hand over: this program is stopping; this program continues",
  ]);
});

Deno.test("the first process of a container starts no other, and hands over to one that is started next to it", async () => {
  const { upgrade } = parts({ process: 1 });
  assert.match((await upgrade.run()).lines[0] ?? "", /first process of its container/);
  await upgrade.handOver(1, 1, SUCCESSOR);
  assert.match((await upgrade.run()).lines[0] ?? "", /another program has taken over already/);
});

Deno.test("why a program has ended is in its own words, or Deno's, or its last line", () => {
  assert.equal(reasonIn("x\nmmproxy: one\nmmproxy: two\ny\n"), "one; two");
  assert.equal(reasonIn("<6>Sandbox: off\n<3>one\n"), "one");
  const json = '{"level":"info","message":"x"}\n{"level":"error","message":"one"}\n{"level":"err';
  assert.equal(reasonIn(json), "one");
  const deno = "\x1b[31merror\x1b[0m: Module not found\n    at file:///main.ts:1:1\n";
  assert.equal(reasonIn(deno), "Module not found");
  assert.equal(reasonIn('{"event":"x"}\nkilled\n\n'), "killed");
  assert.equal(reasonIn('{"event":"x"}\n'), undefined);
});
