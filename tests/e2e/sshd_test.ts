import assert from "node:assert/strict";
import { ClientSide } from "./support/client_side.ts";
import { freePort } from "./support/endpoints.ts";
import { Program } from "./support/program.ts";
import { installed, realPeerTest, runTool, Scratch, Server } from "./support/real_peers.ts";
import { eventually } from "./support/time.ts";

const sshd = installed("sshd");
const USER = "no-such-user";

realPeerTest(
  "sshd: behind HAProxy, its log has the address and port that fail2ban would ban",
  { haproxy: installed("haproxy"), sshd, ssh: installed("ssh") },
  async () => {
    await using scratch = await Scratch.make();
    await using clients = await ClientSide.open();
    const [servicePort, port] = [freePort(), freePort()];
    await using service = await startSshd(scratch, servicePort);
    await using program = await Program.start({
      args: ["-4", `127.0.0.1:${servicePort}`, "-6", `[::1]:${servicePort}`],
    });
    const config = await scratch.write(
      "haproxy.cfg",
      `defaults
  mode tcp
  timeout connect 10s
  timeout client 30s
  timeout server 30s
listen ssh
  bind ${clients.serverIp4}:${port}
  bind ${clients.serverIp6}:${port}
  server ssh1 127.0.0.1:${program.listen.port} send-proxy-v2
`,
    );
    await using _haproxy = await Server.start(port, "haproxy", ["-db", "-f", config]);
    for (
      const [server, client] of [[clients.serverIp4, clients.ip4], [clients.serverIp6, clients.ip6]]
    ) {
      // Nobody of that name may log in, which leaves the line that fail2ban looks for.
      await clients.run("sh", ["-c", 'ssh "$@" || true', "ssh", ...attempt(scratch, server, port)]);
      const opened = await program.event(
        "connection_opened",
        (event) => event.client?.includes(client ?? "") ?? false,
      );
      const clientPort = opened.client?.split(":").at(-1);
      await eventually(
        async () =>
          (await service.log()).includes(`Invalid user ${USER} from ${client} port ${clientPort}`),
        `refused login of ${client} port ${clientPort} in sshd's log`,
      );
    }
    assert.equal((await program.stop()).get("headers_v2"), 2);
  },
);

/** A login of a user who does not exist; the client's own files play no part. */
function attempt(scratch: Scratch, server: string | undefined, port: number): string[] {
  const options = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    `IdentityFile=${scratch.path}/key`,
  ];
  return [
    ...["-F", "none", "-p", String(port), ...options.flatMap((option) => ["-o", option])],
    `${USER}@${server}`,
    "true",
  ];
}

/** sshd on both loopback addresses, and its log. */
async function startSshd(
  scratch: Scratch,
  port: number,
): Promise<AsyncDisposable & { log(): Promise<string> }> {
  await runTool("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${scratch.path}/key`]);
  const log = `${scratch.path}/sshd.log`;
  const config = await scratch.write(
    "sshd_config",
    `ListenAddress 127.0.0.1:${port}
ListenAddress [::1]:${port}
HostKey ${scratch.path}/key
PidFile none
UsePAM no
LogLevel VERBOSE
`,
  );
  // As root it would change to a user of its own, whom a namespace of one user does not have.
  const asAnother = ["--user", "--map-user=1000", "--map-group=1000"];
  const server = await Server.start(port, "unshare", [
    ...asAnother,
    ...[sshd ?? "", "-D", "-E", log, "-f", config],
  ]);
  return {
    log: () => Deno.readTextFile(log),
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}
