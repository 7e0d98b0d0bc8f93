/** docs/recipes/ftp.md: which of FTP's data connections work. */
import assert from "node:assert/strict";
import { haproxy, startHaproxy } from "./support/haproxy.ts";
import { installed, realPeerTest, Server } from "./support/real_peers.ts";
import { blockOf, Recipe } from "./support/recipe.ts";

realPeerTest(
  "recipes: FTP, passive transfers work and vsftpd logs the client, active ones are refused",
  { haproxy, vsftpd: installed("vsftpd"), curl: installed("curl") },
  async () => {
    await using recipe = await Recipe.make("ftp.md");
    const { client, scratch, server, stack } = recipe;
    const log = `${scratch.path}/vsftpd.log`;
    await Deno.mkdir(`${scratch.path}/files`);
    await scratch.write("files/hello.txt", "hello\n");
    await Deno.chmod(`${scratch.path}/files`, 0o555);
    // A user namespace that maps one user has no other to become.
    const more = `
background=NO
run_as_launching_user=YES
ftp_username=root
anon_root=${scratch.path}/files
anon_world_readable_only=NO
xferlog_enable=YES
dual_log_enable=NO
vsftpd_log_file=${log}
xferlog_std_format=NO
seccomp_sandbox=NO
`;
    const config = await scratch.write("vsftpd.conf", await blockOf(recipe.page, "vsftpd") + more);
    stack.use(await server.act(() => Server.start(21, "vsftpd", [config])));
    const program = await recipe.start();
    await startHaproxy(recipe, 21);
    const curl = (path: string, ...flags: string[]) =>
      client.run(
        `curl --silent --show-error --max-time 20 ${flags.join(" ")} ftp://203.0.113.1${path}`,
      );
    assert.match(await curl("/", "--list-only"), /^hello\.txt$/m);
    assert.equal(await curl("/hello.txt", "--disable-epsv"), "hello\n");
    assert.equal(await curl("/hello.txt"), "hello\n");
    await assert.rejects(curl("/hello.txt", "--ftp-port", "-"), /curl: \(30\)/);
    const lines = (await Deno.readTextFile(log)).trim().split("\n");
    const downloads = lines.filter((line) => line.includes("OK DOWNLOAD"));
    assert.equal(downloads.length, 2);
    for (const line of downloads) assert.match(line, /Client "203\.0\.113\.7", ".*\/?hello\.txt"/);
    const counters = await program.stop();
    assert.equal(counters.get("headers_v2"), 4 + 3, "control connections, and data connections");
  },
);
