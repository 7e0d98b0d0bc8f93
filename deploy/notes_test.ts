import assert from "node:assert/strict";
import { notesOf, versions } from "./notes.ts";
import { ReleaseError } from "./release.ts";

const CHANGELOG =
  "# Changelog\n\n## Unreleased\n\n## 1.1.0 (2026-11-27)\n\n- One\n  more.\n\n## 1.1\n\n- Old.\n";

Deno.test("notes: are the section of the version", () => {
  assert.equal(notesOf(CHANGELOG, "1.1.0"), "- One\n  more.");
  assert.equal(notesOf(CHANGELOG, "1.1"), "- Old.");
});

Deno.test("notes: a version without a section, or with an empty one, is refused", () => {
  for (const version of ["1.2.0", "Unreleased", "1"]) {
    assert.throws(() => notesOf(CHANGELOG, version), ReleaseError, version);
  }
});

Deno.test("notes: every file names one version", async () => {
  const named = Object.values(await versions());
  assert.match(named[0] ?? "", /^\d+\.\d+\.\d+$/);
  assert.deepEqual(named, named.map(() => named[0]));
});
