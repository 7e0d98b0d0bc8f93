import assert from "node:assert/strict";
import { compile, layOutForCompile } from "../../deploy/compile.ts";
import { ROOT } from "../../deploy/release.ts";
import { WORKER_MODULES } from "../../src/worker/source.ts";
import { Program, type Start } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { assertSeenOverTcp } from "./support/seen.ts";
import { TcpService, tellAndEcho } from "./support/tcp.ts";

const CLIENT = { ip: "203.0.113.37", port: 40_037 };
const BALANCER = { ip: "198.51.100.1", port: 443 };

/** Asserts that a connection through the program comes from the client. */
async function assertServes(start: Start): Promise<void> {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ ...start, args: ["-4", service.address] });
  await assertSeenOverTcp(program.listen, CLIENT, BALANCER);
  await program.stop();
}

/** Whether a text is JavaScript, once it imports nothing. */
async function isJavaScript(text: string): Promise<boolean> {
  const alone = text.replaceAll(/^import [^]*?;$/gm, "");
  const url = URL.createObjectURL(new Blob([alone], { type: "text/javascript" }));
  try {
    await import(url);
    return true;
  } catch (error) {
    // What it would have imported is missed only when it runs.
    return error instanceof ReferenceError;
  } finally {
    URL.revokeObjectURL(url);
  }
}

Deno.test("compile: what is compiled runs, and its worker is JavaScript", async () => {
  await using scratch = await Scratch.make();
  const stage = `${scratch.path}/stage`;
  await layOutForCompile(stage);
  await assertServes({ root: stage });
  let typed = 0;
  for (const name of WORKER_MODULES) {
    const script = await Deno.readTextFile(`${stage}/worker/${name.replace(/ts$/, "js")}`);
    assert.ok(await isJavaScript(script), name);
    if (!await isJavaScript(await Deno.readTextFile(`${ROOT}/src/${name}`))) typed++;
  }
  assert.ok(typed > 0, "TypeScript is told from JavaScript");
});

Deno.test("compile: the binary holds the library and the worker", async () => {
  await using scratch = await Scratch.make();
  const stage = `${scratch.path}/stage`;
  await layOutForCompile(stage);
  // Another program in the runtime's place: what is put behind it is the same.
  const account = await compile(stage, `${scratch.path}/mmproxy`, Deno.execPath());
  assert.match(account, new RegExp(`libmmproxy-${Deno.build.arch}\\.so \\(\\d`));
  assert.match(account, /─ worker/);
  const { size } = await Deno.stat(`${scratch.path}/mmproxy`);
  assert.ok(size > (await Deno.stat(Deno.execPath())).size + (1 << 20), `${size} bytes`);
});

Deno.test("compile: deno task compile serves a connection, or says in one line what it lacks", async () => {
  // run.ts has tried, where the network is.
  const [code, said = ""] = JSON.parse(Deno.env.get("MMPROXY_COMPILED") ?? "[]");
  if (code === 0) {
    await assertServes({ binary: `${ROOT}/dist/mmproxy` });
    return;
  }
  assert.equal(code, 1, said);
  assert.match(
    said,
    /^compile: Cannot compile: Deno's runtime cannot be fetched from https:\S+ \([^\n]+\); compile where it can, or name one of Deno \d+\.\d+\.\d+ with DENORT_BIN\n$/,
  );
});
