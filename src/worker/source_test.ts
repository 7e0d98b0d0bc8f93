import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import type { Report } from "./worker.ts";
import { spawnWorker } from "./supervisor.ts";
import { link, workerUrl } from "./source.ts";

Deno.test("link: replaces imports, also of types, by the modules before", async () => {
  const url = link([
    ["a.ts", "export interface A { readonly a: number }\nexport const a: A = { a: 1 };"],
    ["deep/b.ts", "export const b = 2;"],
    [
      "c.ts",
      `import { type A, a } from "./a.ts";
       import { b } from "./deep/b.ts";
       export const c: number = (a satisfies A).a + b;`,
    ],
  ]);
  assert.equal((await import(url)).c, 3);
});

Deno.test("link: leaves a string that is not an import alone", async () => {
  const url = link([["a.ts", `export const a = "./b.ts";`]]);
  assert.equal((await import(url)).a, "./b.ts");
});

Deno.test("link: refuses a module that is not linked before the one that imports it", () => {
  const modules = [
    ["b.ts", `import { a } from "./a.ts";`],
    ["a.ts", "export const a = 1;"],
  ] as const;
  assert.throws(() => link(modules), {
    message: "b.ts imports ./a.ts, which is not linked before it",
  });
});

Deno.test("workerUrl: is linked once, and its modules import without serving", async () => {
  const url = workerUrl();
  assert.match(url, /^blob:/);
  assert.equal(workerUrl(), url);
  await import(url);
  assert.equal(Reflect.get(globalThis, "onmessage"), undefined);
});

Deno.test("workerUrl: runs as a worker that opens the native core and reports", async () => {
  const library = fileURLToPath(new URL("../../target/release/libmmproxy.so", import.meta.url));
  const { promise, resolve } = Promise.withResolvers<Report>();
  const worker = spawnWorker(workerUrl())({ library, worker: 4_000_000_000 }, resolve);
  try {
    assert.deepEqual(await promise, {
      kind: "ended",
      status: -1,
      error: "No worker 4000000000",
    });
  } finally {
    worker.terminate();
  }
});
