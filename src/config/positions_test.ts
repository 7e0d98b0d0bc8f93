import assert from "node:assert/strict";
import fc from "fast-check";
import { parse, stringify } from "smol-toml";
import { type Path, Positions } from "./positions.ts";

/** `line: source` of each path in a document. */
function places(text: string, paths: readonly Path[]): string[] {
  parse(text);
  const positions = new Positions(text);
  return paths.map((path) => {
    const { line, source } = positions.at(path) ?? assert.fail(`${path} has no position`);
    return source === undefined ? `${line}` : `${line}: ${source}`;
  });
}

const LAYOUTS: readonly (readonly [
  name: string,
  text: string,
  places: readonly (readonly [path: Path, place: string])[],
])[] = [
  ["plain keys, comments and blank lines", `# first\n\na = 1 # one\n\tb="two"\n`, [
    [["a"], "3: 1"],
    [["b"], `4: "two"`],
  ]],
  ["CRLF line ends", "a = 1\r\n\r\nb = 2\r\n", [[["a"], "1: 1"], [["b"], "3: 2"]]],
  ["a byte order mark", "\uFEFFa = 1\nb = 2", [[["a"], "1: 1"], [["b"], "2: 2"]]],
  ["no line end at the end", "a = 1", [[["a"], "1: 1"]]],
  ["dotted keys", `a.b.c = 1\na . "b" . d = 2`, [
    [["a"], "1"],
    [["a", "b"], "1"],
    [["a", "b", "c"], "1: 1"],
    [["a", "b", "d"], "2: 2"],
  ]],
  ["quoted keys", `"a.b" = 1\n'c"d' = 2\n"e\\u0066\\"" = 3\n"" = 4`, [
    [["a.b"], "1: 1"],
    [[`c"d`], "2: 2"],
    [[`ef"`], "3: 3"],
    [[""], "4: 4"],
  ]],
  ["tables", `[a]\nx = 1\n[ a . b ]\nx = 2\n[c]`, [
    [["a"], "1"],
    [["a", "x"], "2: 1"],
    [["a", "b"], "3"],
    [["a", "b", "x"], "4: 2"],
    [["c"], "5"],
  ]],
  ["arrays of tables", `[[l]]\nx = 1\n\n[[ "l" ]] # second\nx = 2\ny.z = 3`, [
    [["l"], "1"],
    [["l", 0], "1"],
    [["l", 0, "x"], "2: 1"],
    [["l", 1], "4"],
    [["l", 1, "x"], "5: 2"],
    [["l", 1, "y", "z"], "6: 3"],
  ]],
  [
    "tables and arrays below an array of tables",
    `[[l]]\n[l.a]\nx = 1\n[[l]]\n[[l.b]]\nx = 2\n[[l.b]]\nx = 3`,
    [
      [["l", 0, "a", "x"], "3: 1"],
      [["l", 1, "b", 0, "x"], "6: 2"],
      [["l", 1, "b", 1, "x"], "8: 3"],
    ],
  ],
  ["inline tables", `a = { x = 1, y.z = "}" , "q" = [1] }\nb = 2`, [
    [["a"], `1: { x = 1, y.z = "}" , "q" = [1] }`],
    [["a", "x"], "1: 1"],
    [["a", "y", "z"], `1: "}"`],
    [["a", "q", 0], "1: 1"],
    [["b"], "2: 2"],
  ]],
  ["inline tables over several lines", `a = {\n  x = 1, # one\n  y = 2,\n}\nb = 3`, [
    [["a", "x"], "2: 1"],
    [["a", "y"], "3: 2"],
    [["b"], "5: 3"],
  ]],
  ["arrays over several lines", `a = [ # list\n  "x", 'y',\n\n  # "no"\n  "z]",\n]\nb = 1`, [
    [["a", 0], `2: "x"`],
    [["a", 1], "2: 'y'"],
    [["a", 2], `5: "z]"`],
    [["b"], "7: 1"],
  ]],
  ["tables in an array", `a = [\n  { x = 1 },\n  { x = 2, y = [3, [4]] },\n]`, [
    [["a", 0, "x"], "2: 1"],
    [["a", 1], "3: { x = 2, y = [3, [4]] }"],
    [["a", 1, "y", 1, 0], "3: 4"],
  ]],
  ["empty arrays, tables and strings", `a = []\nb = {}\nc = [ ]\nd = ""\ne = ''\nf = ["", '']`, [
    [["a"], "1: []"],
    [["b"], "2: {}"],
    [["c"], "3: [ ]"],
    [["d"], `4: ""`],
    [["e"], "5: ''"],
    [["f", 1], "6: ''"],
  ]],
  ["strings with what looks like TOML", `a = "# \\" [x]\\n= 1"\nb = 'c:\\'\nd = 1`, [
    [["a"], `1: "# \\" [x]\\n= 1"`],
    [["b"], "2: 'c:\\'"],
    [["d"], "3: 1"],
  ]],
  ["strings over several lines", `a = """\nx = 1\n[t]\n"""\nb = '''\n"""\n'''\nc = 1`, [
    [["a"], `1: """\nx = 1\n[t]\n"""`],
    [["b"], `5: '''\n"""\n'''`],
    [["c"], "8: 1"],
  ]],
  [
    "quotes at the end of such strings",
    `a = """"x"""""\nb = """\\""""\nc = ''''x'''''\nd = """"""\ne = 1`,
    [
      [["a"], `1: """"x"""""`],
      [["b"], `2: """\\""""`],
      [["c"], "3: ''''x'''''"],
      [["d"], `4: """"""`],
      [["e"], "5: 1"],
    ],
  ],
  [
    "numbers, booleans and dates",
    `a = -1_000\nb = 0xFF\nc = 1979-05-27 07:32:00Z # day\nd = true\ne = [1e3,inf]`,
    [
      [["a"], "1: -1_000"],
      [["b"], "2: 0xFF"],
      [["c"], "3: 1979-05-27 07:32:00Z"],
      [["d"], "4: true"],
      [["e", 0], "5: 1e3"],
      [["e", 1], "5: inf"],
    ],
  ],
];

for (const [name, text, expected] of LAYOUTS) {
  Deno.test(`Positions: ${name}`, () => {
    assert.deepEqual(
      places(text, expected.map(([path]) => path)),
      expected.map(([, place]) => place),
    );
  });
}

Deno.test("Positions: knows the part of a path that is there", () => {
  const positions = new Positions("a = [1,\n2]\n[[l]]\nx = 1");
  const known: [path: Path, known: Path][] = [
    [["l", 0, "x"], ["l", 0, "x"]],
    [["l", 0, "y", "z"], ["l", 0]],
    [["l", 7], ["l"]],
    [["a", 1, "x"], ["a", 1]],
    [["b"], []],
  ];
  for (const [path, expected] of known) assert.deepEqual(positions.known(path), expected);
  assert.equal(positions.at(["l", 0, "y"]), undefined);
});

Deno.test("Positions: a text that is not TOML gives some positions, and an end", () => {
  for (const text of ["= 1", "[", "a = ", "a = [1", "a = {", "]", `a = "`, "a = 1\n???\nb = 2"]) {
    new Positions(text);
  }
  assert.equal(new Positions("a = 1\n???\nb = 2").at(["a"])?.line, 1);
});

/** Every path of a value, with what is there. */
function leaves(value: unknown, path: Path = []): [Path, unknown][] {
  if (Array.isArray(value)) {
    return value.flatMap((item, index) => leaves(item, [...path, index]));
  }
  if (typeof value !== "object" || value === null || value instanceof Date) return [[path, value]];
  return Object.entries(value).flatMap(([key, item]) => leaves(item, [...path, key]));
}

Deno.test("Positions: every value of every document is read again from its position", () => {
  const key = fc.oneof(fc.constantFrom("a", "b", "listener"), fc.string({ maxLength: 4 }));
  const { table } = fc.letrec<{ table: Record<string, unknown>; value: unknown }>((tie) => ({
    table: fc.dictionary(key, tie("value"), { maxKeys: 4 }),
    value: fc.oneof(
      { depthSize: "small" },
      fc.string({ maxLength: 8 }),
      fc.string({ unit: fc.constantFrom('"', "'", "\\", "\n", "#", "]", "}", ",", "=") }),
      fc.integer(),
      fc.boolean(),
      fc.array(fc.integer(), { maxLength: 3 }),
      fc.array(tie("table"), { maxLength: 3 }),
      tie("table"),
    ),
  }));
  fc.assert(fc.property(table, (table) => {
    const text = stringify(table);
    const positions = new Positions(text);
    const lines = text.split("\n");
    for (const [path, value] of leaves(parse(text))) {
      const place = positions.at(path);
      assert.ok(place, `${JSON.stringify(path)} in\n${text}`);
      assert.deepEqual(parse(`x = ${place.source}`).x, value);
      const [firstLine = ""] = place.source?.split("\n") ?? [];
      assert.ok(lines[place.line - 1]?.includes(firstLine));
    }
  }));
});
