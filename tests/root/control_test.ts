/** The control socket and other users: the kernel says who asks, whatever the file's mode has become. */
import assert from "node:assert/strict";
import { Program } from "../e2e/support/program.ts";
import { runTool, Scratch } from "../e2e/support/real_peers.ts";
import { asUser, installedFor } from "./support/users.ts";

/** Users who own nothing. */
const NOBODY = 65_534, OTHER = 65_533;
const REQUEST = '{"command":"status"}\n';

/** What a user is answered; nothing if the connection is closed unheard. */
async function answerTo(user: number, path: string): Promise<string> {
  const script = `import os, socket, sys
user = int(sys.argv[3])
os.setgroups([])
os.setgid(user)
os.setuid(user)
asking = socket.socket(socket.AF_UNIX)
asking.settimeout(10)
asking.connect(sys.argv[1])
try:
    asking.sendall(sys.argv[2].encode())
    answer = b"".join(iter(lambda: asking.recv(65536), b""))
except (BrokenPipeError, ConnectionResetError):
    answer = b""
print(answer.decode(), end="")`;
  return await runTool("python3", ["-c", script, path, REQUEST, `${user}`]);
}

Deno.test("control: of a program of root's no other user is answered, not even with mode 0666", async () => {
  await using scratch = await Scratch.make();
  await Deno.chmod(scratch.path, 0o755);
  const path = `${scratch.path}/control`;
  await using program = await Program.start({ args: ["--control", path, "--sandbox", "on"] });
  await assert.rejects(answerTo(NOBODY, path), /PermissionError/);
  await Deno.chmod(path, 0o666);
  assert.equal(await answerTo(NOBODY, path), "");
  assert.match(await answerTo(0, path), /^\{.*"version"/);
  await program.stop();
});

Deno.test("control: of a user's program that user and root are answered, and nobody else", async () => {
  await using scratch = await Scratch.make();
  const start = asUser(NOBODY, await installedFor(scratch), ",+net_raw");
  const folder = `${scratch.path}/run`;
  await Deno.mkdir(folder);
  await Deno.chown(folder, NOBODY, NOBODY);
  const path = `${folder}/control`;
  await using program = await Program.start({ ...start, args: ["--control", path] });
  assert.equal((await Deno.stat(path)).mode! & 0o777, 0o600);
  await Deno.chmod(path, 0o666);
  assert.equal(await answerTo(OTHER, path), "");
  assert.match(await answerTo(NOBODY, path), /^\{.*"version"/);
  assert.match(await answerTo(0, path), /^\{.*"version"/);
  await program.stop();
});
