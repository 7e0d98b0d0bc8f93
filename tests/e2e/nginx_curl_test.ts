import assert from "node:assert/strict";
import { ClientSide } from "./support/client_side.ts";
import { freePort } from "./support/endpoints.ts";
import { nginx, NginxService, startNginx, streamModule } from "./support/nginx.ts";
import { Program } from "./support/program.ts";
import { installed, realPeerTest, Scratch } from "./support/real_peers.ts";

const curl = installed("curl");

realPeerTest(
  "nginx stream: with proxy_protocol on, nginx behind logs the client's address and port",
  { nginx, "nginx's stream module": streamModule, curl },
  async () => {
    await using scratch = await Scratch.make();
    await using clients = await ClientSide.open();
    await using service = await NginxService.start(scratch);
    await using program = await Program.start({
      args: ["-4", service.address4, "-6", service.address6],
    });
    const port = freePort();
    await using _front = await startNginx(
      scratch,
      "front",
      port,
      `stream {
  server {
    listen ${clients.serverIp4}:${port};
    listen [${clients.serverIp6}]:${port};
    proxy_pass 127.0.0.1:${program.listen.port};
    proxy_protocol on;
  }
}
`,
      `load_module ${streamModule};`,
    );
    for (
      const [host, ip] of [[clients.serverIp4, clients.ip4], [
        `[${clients.serverIp6}]`,
        clients.ip6,
      ]]
    ) {
      const clientPort = await clients.run("curl", [
        ...["--silent", "--show-error", "--fail", "--max-time", "20"],
        ...["--output", "/dev/null", "--write-out", "%{local_port}"],
        `http://${host}:${port}/`,
      ]);
      await service.logged(ip ?? "", clientPort);
    }
    assert.equal((await program.stop()).get("headers_v1"), 2);
  },
);

for (const family of [4, 6] as const) {
  realPeerTest(
    `curl: --haproxy-protocol over IPv${family}, nginx logs the client's address and port`,
    { nginx, curl },
    async () => {
      await using scratch = await Scratch.make();
      await using clients = await ClientSide.open();
      await using service = await NginxService.start(scratch);
      const ip = family === 4 ? clients.serverIp4 : clients.serverIp6;
      const port = freePort();
      await using program = await Program.start({
        listen: { ip, port },
        args: ["-4", service.address4, "-6", service.address6],
      });
      const clientPort = await clients.run("curl", [
        ...["--silent", "--show-error", "--fail", "--max-time", "20", "--haproxy-protocol"],
        ...["--output", "/dev/null", "--write-out", "%{local_port}"],
        `http://${family === 4 ? ip : `[${ip}]`}:${port}/`,
      ]);
      await service.logged(family === 4 ? clients.ip4 : clients.ip6, clientPort);
      assert.equal((await program.stop()).get("headers_v1"), 1);
    },
  );
}
