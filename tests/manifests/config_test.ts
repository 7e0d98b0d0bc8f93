/** The configuration's JSON Schema, as an editor's validator takes it. */
import assert from "node:assert/strict";
import { Ajv } from "ajv/dist/ajv.js";
import { parse } from "smol-toml";

const read = (path: string) =>
  Deno.readTextFileSync(new URL(`../../docs/${path}`, import.meta.url));
const validate = new Ajv({ strict: true, allowUnionTypes: true }).compile(
  JSON.parse(read("mmproxy.schema.json")),
);
/** The document without what only TOML has. */
const document = (text: string) => JSON.parse(JSON.stringify(parse(text)));

Deno.test("the configuration's schema: takes every file of docs/config.md", () => {
  const files = [...read("config.md").matchAll(/^```toml\n([^]*?)^```/gm)];
  assert.ok(files.length >= 2);
  for (const [, text = ""] of files) {
    assert.ok(validate(document(text)), `${JSON.stringify(validate.errors)}\n${text}`);
  }
});

const WRONG = [
  "",
  "wrokers = 1\n[[listener]]",
  "workers = 0\n[[listener]]",
  'workers = "all"\n[[listener]]',
  "table = 254\n[[listener]]",
  "[[listener]]\nmark = -1",
  "[[listener]]\nheader-timeout = 2",
  "[[listener]]\nlisten = []",
  '[[listener]]\nprotocol = "sctp"',
  '[[listener]]\ntrust = [{ from = "::/0", header = "maybe" }]',
  '[[listener]]\ntrust = [{ from = "::/0", header = "skip", x = 1 }]',
  "[defaults]\nmarc = 1\n[[listener]]",
];

for (const text of WRONG) {
  Deno.test(`the configuration's schema: refuses ${JSON.stringify(text)}`, () => {
    assert.equal(validate(document(text)), false);
  });
}
