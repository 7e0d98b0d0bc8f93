import assert from "node:assert/strict";
import { HelpError, page, topicList } from "./pages.ts";

const ROOT = new URL("../../", import.meta.url);
const read = (path: string) => Deno.readTextFileSync(new URL(path, ROOT));

Deno.test("help: every page of docs and of the recipes is a topic, and prints itself", () => {
  const list = topicList(read);
  for (const folder of ["docs", "docs/recipes"]) {
    for (const { name, isFile } of Deno.readDirSync(new URL(folder, ROOT))) {
      const topic = /^([a-z].*)\.md$/.exec(name)?.[1];
      if (!isFile || topic === undefined) continue;
      assert.equal(list.match(new RegExp(`^  ${topic} +\\S`, "gm"))?.length, 1, topic);
      assert.equal(page(topic, read), read(`${folder}/${name}`));
    }
  }
});

Deno.test("help: an unknown topic suggests the nearest", () => {
  assert.throws(
    () => page("ruotes", read),
    new HelpError('There is no page "ruotes"; did you mean routes?'),
  );
  assert.throws(
    () => page("../main", read),
    new HelpError('There is no page "../main"; mmproxy help lists the topics'),
  );
});

Deno.test("help: documentation that is not installed is one line", () => {
  const none = () => {
    throw new Error("/nowhere/docs/README.md: No such file or directory");
  };
  assert.throws(
    () => topicList(none),
    /^HelpError: Cannot read the documentation: \/nowhere[^\n]*$/,
  );
});
