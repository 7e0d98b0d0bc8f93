import assert from "node:assert/strict";
import { customPeer, haproxy, nginx, ours, type Place, type Program } from "./programs.ts";

const PLACE: Place = {
  protocol: "udp",
  bulk: false,
  listen: "127.0.0.1:1",
  ports: 1,
  v4: "127.0.0.1:2",
  v6: "[::1]:2",
  service: "127.0.0.1:2",
  ipv6: false,
  subnets: "/s",
  directory: "/d",
};

Deno.test("customPeer: fills the command in", () => {
  const peer = customPeer(
    "some=/opt/x/some -l {listen} -4 {v4} -6 {v6} -p {protocol} -a={subnets}",
  );
  assert.equal(peer.name, "some");
  assert.deepEqual(peer.protocols, ["tcp", "udp"]);
  assert.deepEqual(peer.command(PLACE), [
    ...["/opt/x/some", "-l", "127.0.0.1:1", "-4", "127.0.0.1:2", "-6", "[::1]:2"],
    ...["-p", "udp", "-a=/s"],
  ]);
});

Deno.test("customPeer: of many ports, each has a process", async () => {
  const directory = await Deno.makeTempDir({ prefix: "mmproxy-bench-" });
  try {
    const place = { ...PLACE, listen: "127.0.0.1:7", ports: 2, directory };
    const [shell, path = ""] = customPeer("some=it's {listen} {v4}").command(place);
    assert.equal(shell, "sh");
    assert.deepEqual((await Deno.readTextFile(path)).split("\n"), [
      `'it'\\''s' '127.0.0.1:7' '127.0.0.1:2' &`,
      `'it'\\''s' '127.0.0.1:8' '127.0.0.1:2' &`,
      "wait",
      "",
    ]);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("ours: many ports are a range of one process", () => {
  const command = ours().command({ ...PLACE, listen: "127.0.0.1:7", ports: 3 });
  assert.equal(command[command.indexOf("-l") + 1], "127.0.0.1:7-9");
});

Deno.test("ours: a worker for each processor with TCP, unless said, and the default with UDP", () => {
  const workers = (program = ours(), place: Partial<Place> = {}) => {
    const command = program.command({ ...PLACE, protocol: "tcp", ...place });
    const at = command.indexOf("--workers");
    return at < 0 ? undefined : command[at + 1];
  };
  assert.equal(workers(), "auto");
  assert.equal(workers(ours("ours-1", 1)), "1");
  assert.equal(workers(ours(), { threads: 2 }), "2");
  assert.equal(workers(ours(), { protocol: "udp" }), undefined);
});

Deno.test("ours: one worker is for the table of each core, without UDP", () => {
  const { table, protocols } = ours("ours-1", 1);
  assert.deepEqual([table, protocols], ["each core", ["tcp"]]);
  assert.deepEqual([ours().table, ours("ours-2", 2).table], ["fair", "fair"]);
});

Deno.test("haproxy, nginx: a thread on each processor, or as many as the work or the name says", async () => {
  const directory = await Deno.makeTempDir({ prefix: "mmproxy-bench-" });
  const place = { ...PLACE, protocol: "tcp" as const, directory };
  const written = async (program: Program | undefined, threads?: number) => {
    program?.command({ ...place, threads });
    return await Deno.readTextFile(`${directory}/configuration`);
  };
  const processors = navigator.hardwareConcurrency;
  try {
    const all = await written(await haproxy("haproxy"));
    assert.match(all, new RegExp(`nbthread ${processors}\n`));
    assert.match(await written(await haproxy("haproxy-1", 1)), /nbthread 1\n/);
    assert.match(await written(await nginx("nginx", 2)), /worker_processes 2;[^]* reuseport;/);
    assert.doesNotMatch(await written(await nginx("nginx-1", 1)), /reuseport/);
    assert.match(await written(await nginx("nginx"), 3), /worker_processes 3;/);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("customPeer: the description names no directory of this machine", () => {
  assert.equal(customPeer("some=/opt/x/some -l {listen}").description, "some -l {listen}");
});

Deno.test("customPeer: a protocol behind the name, or TCP", () => {
  assert.deepEqual(customPeer("some/udp=x {listen}").protocols, ["udp"]);
  assert.deepEqual(customPeer("some=x {listen}").protocols, ["tcp"]);
});

Deno.test("customPeer: refuses what is no peer", () => {
  for (const text of ["", "some", "=x", "some=", "some/sctp=x"]) {
    assert.throws(() => customPeer(text), /is not of the form/, text);
  }
});
