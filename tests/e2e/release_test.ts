import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { pathToFileURL } from "node:url";
import { layOut, ReleaseError } from "../../deploy/release.ts";
import { freePort, show } from "./support/endpoints.ts";
import { v2 } from "./support/headers.ts";
import { Program, runToEnd } from "./support/program.ts";
import { Scratch } from "./support/real_peers.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";

const CLIENT = { ip: "203.0.113.35", port: 40_035 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
const LIBRARY = `libmmproxy-${Deno.build.arch}.so`;

Deno.test("release: runs from its folder, with no package cache and no home to write in", async () => {
  await using scratch = await Scratch.make();
  const root = `${scratch.path}/mmproxy`;
  await layOut(root);
  const names = Array.from(Deno.readDirSync(root), ({ name }) => name).sort();
  assert.deepEqual(names, [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "bin",
    "deno.json",
    "deno.lock",
    "deploy",
    "docs",
    "lib",
    LIBRARY,
    "main.ts",
    "node_modules",
    "src",
  ]);
  assert.ok(
    !(await Array.fromAsync(Deno.readDir(`${root}/src`))).some(({ name }) =>
      name.endsWith("_test.ts")
    ),
  );

  for (const page of ["README.md", ...pagesOf(root, "docs"), ...pagesOf(root, "docs/recipes")]) {
    const text = await Deno.readTextFile(`${root}/${page}`);
    for (const [, target = ""] of text.matchAll(/\]\((?!https?:|#)([^)#\s]+)[^)]*\)/g)) {
      // The tests are in the repository alone.
      if (/^(\.\.\/)+tests\//.test(target)) continue;
      const path = join(root, dirname(page), target);
      assert.doesNotThrow(() => Deno.statSync(path), `${page}: ${target}`);
    }
  }
  const core = (await Deno.stat(`${root}/${LIBRARY}`)).size;
  assert.ok(core < 3_000_000, `${core} bytes: not stripped`);

  await using service = new TcpService(tellAndEcho);
  const metrics = show({ ip: "127.0.0.1", port: freePort() });
  await using program = await Program.start({
    root,
    args: ["-4", service.address, "--metrics-addr", metrics],
    permissions: [`--allow-net=${metrics}`],
    // The tests' own cache is out of its reach.
    shell: 'unset DENO_DIR XDG_CACHE_HOME; export HOME=/proc/nowhere; exec "$@"',
  });
  using client = await Stream.connect(program.listen.port);
  await client.send(v2(CLIENT, BALANCER));
  assert.equal(await client.line(), show(CLIENT));
  client[Symbol.dispose]();
  // The status page and its charts, from the packages next to the program.
  for (const path of ["", "page/page.js", "page/uplot.js", "status.json"]) {
    const answer = await fetch(`http://${metrics}/${path}`);
    assert.equal(answer.status, 200, path);
    assert.ok((await answer.text()).length > 500, path);
  }
  const answer = await fetch(`http://${metrics}/metrics`);
  assert.match(await answer.text(), /^mmproxy_connections_accepted_total\{.*\} 1$/m);
  await program.stop();

  // The library beside main.ts is the one that was taken: without it there is none.
  await Deno.remove(`${root}/${LIBRARY}`);
  const ended = await runToEnd(["-l", show(program.listen)], { root });
  assert.equal(ended.code, 1);
  assert.ok(ended.stderr.includes(`${root}/${LIBRARY} (no such file)`), ended.stderr);
});

Deno.test("release: a start in the sandbox stores what Deno has compiled, for the next one", async () => {
  await using scratch = await Scratch.make();
  const root = `${scratch.path}/mmproxy`;
  await layOut(root);
  const cache = `${scratch.path}/cache`;
  await using program = await Program.start({
    root,
    args: ["--sandbox", "on"],
    shell: `export DENO_DIR=${cache}; exec "$@"`,
  });
  await program.stop();
  using stored = new DatabaseSync(`${cache}/v8_code_cache_v2`, { readOnly: true });
  const modules = stored.prepare("SELECT specifier FROM codecache").all()
    .map(({ specifier }) => String(specifier));
  const main = pathToFileURL(`${root}/lib/main.js`).href;
  assert.ok(modules.includes(main), modules.join(" "));
});

/** The pages in a folder of a release. */
function pagesOf(root: string, folder: string): string[] {
  return [...Deno.readDirSync(`${root}/${folder}`)].map(({ name }) => `${folder}/${name}`)
    .filter((name) => name.endsWith(".md"));
}

Deno.test("release: takes a library for another processor, and refuses a name that is never looked for", async () => {
  await using scratch = await Scratch.make();
  const root = `${scratch.path}/mmproxy`;
  await layOut(root, [await scratch.write("libmmproxy-riscv64.so", "a library")]);
  assert.equal(await Deno.readTextFile(`${root}/libmmproxy-riscv64.so`), "a library");
  await assert.rejects(layOut(root, [await scratch.write("libmmproxy.so", "")]), ReleaseError);
});
