import assert from "node:assert/strict";
import { join } from "node:path";
import { checkStart, withoutNode } from "./bundle.ts";
import { ReleaseError } from "./release.ts";

Deno.test("withoutNode: modules of Node are loaded when they are used", async () => {
  const text = withoutNode(
    `import { createRequire as __deno_internal_createRequire } from "node:module";
var __require = __deno_internal_createRequire(import.meta.url);
import util from "node:util";
export const os = () => __require("os").EOL;
export const text = () => util.inspect({ a: [1] });
`,
  );
  assert.doesNotMatch(text, /^import /m);
  const module = await import(`data:text/javascript,${encodeURIComponent(text)}`);
  assert.equal(module.os(), "\n");
  assert.equal(module.text(), "{ a: [ 1 ] }");
});

Deno.test("checkStart: finds what the start loads of Node, and leaves out what is loaded later", async () => {
  const lib = await Deno.makeTempDir({ prefix: "mmproxy-bundle-" });
  const write = (name: string, text: string) => Deno.writeTextFile(join(lib, name), text);
  try {
    await write("main.js", `import {\n  a\n} from "./a.js";\nawait import("./later.js");\na();\n`);
    await write("a.js", `import "./b.js";\nexport { b as a } from "./b.js";\n`);
    await write("b.js", `// from "node:fs";\nexport const b = () => {};\n`);
    await write("later.js", `import fs from "node:fs";\nfs.readFile;\n`);
    await checkStart(lib);
    await write("b.js", `import fs from "node:fs";\nexport const b = () => fs;\n`);
    await assert.rejects(
      checkStart(lib),
      new ReleaseError("Cannot make the release: lib/b.js imports node:fs at its start"),
    );
  } finally {
    await Deno.remove(lib, { recursive: true });
  }
});
