import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { packagedUnit } from "../../deploy/dist.ts";
import { installed, realPeerTest, Scratch } from "./support/real_peers.ts";

const DEPLOY = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "deploy");
const LAUNCHER = join(DEPLOY, "..", "bin", "mmproxy");
const DOCS = join(DEPLOY, "..", "docs", "systemd.md");
const NEEDS = { "systemd-analyze": installed("systemd-analyze") };
const DROP_INS = ["low-ports.conf", "net-admin.conf", "routes.conf"];

/** The unit with these drop-ins, where systemd-analyze finds both; the path of the unit. */
async function unit(scratch: Scratch, dropIns: readonly string[]): Promise<string> {
  // The unit's program need not be installed here, and verify requests it.
  const read = async (path: string) =>
    (await Deno.readTextFile(path)).replaceAll("/opt/mmproxy/bin/mmproxy", LAUNCHER);
  const path = await scratch.write("mmproxy.service", await read(join(DEPLOY, "mmproxy.service")));
  await Deno.mkdir(`${path}.d`);
  for (const name of dropIns) {
    const content = await read(join(DEPLOY, "mmproxy.service.d", name));
    await scratch.write(`mmproxy.service.d/${name}`, content);
  }
  return path;
}

async function analyze(...args: string[]): Promise<{ code: number; said: string }> {
  const { code, stdout, stderr } = await new Deno.Command("systemd-analyze", {
    args: ["--no-pager", ...args],
    env: { SYSTEMD_COLORS: "0" },
  }).output();
  const decoder = new TextDecoder();
  return { code, said: decoder.decode(stdout) + decoder.decode(stderr) };
}

for (const dropIns of [[], ...DROP_INS.map((name) => [name]), DROP_INS]) {
  const title = dropIns.length === 0 ? "alone" : `with ${dropIns.join(", ")}`;
  realPeerTest(
    `systemd: the unit ${title} has nothing that systemd does not understand`,
    NEEDS,
    async () => {
      await using scratch = await Scratch.make();
      // It exits with 0 and says what it ignores.
      assert.deepEqual(await analyze("verify", await unit(scratch, dropIns)), {
        code: 0,
        said: "",
      });
    },
  );
}

realPeerTest(
  "systemd: the packages' unit has nothing that systemd does not understand",
  NEEDS,
  async () => {
    await using scratch = await Scratch.make();
    const text = packagedUnit(await Deno.readTextFile(join(DEPLOY, "mmproxy.service")));
    const here = text.replaceAll("/usr/bin/mmproxy", LAUNCHER).replace(/^Documentation=.*\n/m, "");
    const path = await scratch.write("mmproxy.service", here);
    assert.deepEqual(await analyze("verify", path), { code: 0, said: "" });
  },
);

realPeerTest("systemd: every drop-in is among those that were verified", NEEDS, async () => {
  const found = await Array.fromAsync(Deno.readDir(join(DEPLOY, "mmproxy.service.d")));
  assert.deepEqual(found.map(({ name }) => name).sort(), DROP_INS);
});

realPeerTest("systemd: the unit's exposure is what docs/systemd.md says", NEEDS, async () => {
  await using scratch = await Scratch.make();
  const { code, said } = await analyze("security", "--offline=true", await unit(scratch, []));
  assert.equal(code, 0, said);
  const [, exposure] = /Overall exposure level for mmproxy\.service: (\d+\.\d+)/.exec(said) ?? [];
  assert.ok(exposure !== undefined, said);
  const [, documented] = /exposure level of (\d+\.\d+)/.exec(await Deno.readTextFile(DOCS)) ?? [];
  assert.equal(exposure, documented);
});
