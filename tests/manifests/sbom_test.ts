/** The SBOM against CycloneDX's own schema, which npm has in a package. */
import assert from "node:assert/strict";
import { Ajv } from "ajv/dist/ajv.js";
import { bom } from "../../deploy/sbom.ts";
import { installed, realPeerTest, runTool, Scratch } from "../e2e/support/real_peers.ts";

const LIBRARY = "@cyclonedx/cyclonedx-library@10.3.0";

interface Bom {
  readonly components: readonly { readonly purl: string; readonly hashes?: unknown[] }[];
}

realPeerTest(
  "sbom: is what CycloneDX 1.6 takes, and names what a release is made of",
  { npm: installed("npm"), cargo: installed("cargo") },
  async () => {
    await using scratch = await Scratch.make();
    const script = 'cd "$1" && npm pack --silent "$2" && tar xzf *.tgz package/res/schema';
    await runTool("sh", ["-ec", script, "sh", scratch.path, LIBRARY], 120_000);
    const schema = async (name: string) =>
      JSON.parse(
        await Deno.readTextFile(`${scratch.path}/package/res/schema/${name}.SNAPSHOT.schema.json`),
      );
    const ajv = new Ajv({ strict: false, validateFormats: false });
    // They refer to each other by the names of these files, and not by their own.
    for (const name of ["spdx", "jsf-0.82", "cryptography-defs"]) {
      ajv.addSchema(
        { ...await schema(name), $id: `http://cyclonedx.org/schema/${name}.SNAPSHOT.schema.json` },
      );
    }
    const validate = ajv.compile(await schema("bom-1.6"));

    const document = JSON.parse(JSON.stringify(await bom())) as Bom;
    assert.ok(validate(document), JSON.stringify(validate.errors));
    assert.equal(validate({ ...document, specVersion: 16 }), false);

    const names = document.components.map(({ purl }) => purl.replace(/@[^@]*$/, ""));
    for (const name of ["pkg:cargo/libc", "pkg:npm/commander", "pkg:npm/smol-toml"]) {
      assert.ok(names.includes(name), name);
    }
    // What tests and generators need is no part of it.
    for (const name of ["pkg:npm/fast-check", "pkg:cargo/deno_bindgen", "pkg:cargo/mmproxy-ffi"]) {
      assert.ok(!names.includes(name), name);
    }
    assert.ok(document.components.every(({ hashes }) => hashes?.length === 1));
  },
);
