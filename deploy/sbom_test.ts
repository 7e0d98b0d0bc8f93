import assert from "node:assert/strict";
import config from "../deno.json" with { type: "json" };
import { TESTING } from "./release.ts";
import { bom } from "./sbom.ts";

Deno.test("the SBOM has every package that the program imports, and none that tests alone import", async () => {
  const { components } = await bom() as { components: { name: string }[] };
  const names = new Set(components.map(({ name }) => name));
  for (const key of Object.keys(config.imports)) {
    assert.equal(names.has(key.replace(/\/$/, "")), !TESTING.has(key), key);
  }
});
