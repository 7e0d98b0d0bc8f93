import assert from "node:assert/strict";
import { ClientSide } from "./support/client_side.ts";
import { freePort } from "./support/endpoints.ts";
import { certificate, Control, haproxy } from "./support/haproxy.ts";
import { nginx, NginxService } from "./support/nginx.ts";
import { Program } from "./support/program.ts";
import { installed, realPeerTest, Scratch, Server } from "./support/real_peers.ts";
import { eventually } from "./support/time.ts";

const needs = { haproxy, nginx, curl: installed("curl") };

/** HAProxy before the program, nginx behind it. */
interface Scene {
  clients: ClientSide;
  program: Program;
  service: NginxService;
  /** Where HAProxy takes connections. */
  port: number;
  control: Control;
}

/** Sets the scene up, acts, and takes it down. */
async function scene(
  options: { server: string; backend?: string; tls?: boolean },
  act: (scene: Scene) => Promise<void>,
): Promise<void> {
  await using scratch = await Scratch.make();
  await using clients = await ClientSide.open();
  await using service = await NginxService.start(scratch);
  await using program = await Program.start({
    args: ["-4", service.address4, "-6", service.address6],
  });
  const port = freePort();
  const control = new Control(`${scratch.path}/control`);
  const tls = options.tls ? `ssl crt ${await certificate(scratch)}` : "";
  const config = await scratch.write(
    "haproxy.cfg",
    `global
  stats socket ${control.path}
defaults
  mode tcp
  timeout connect 10s
  timeout client 30s
  timeout server 30s
frontend in
  bind ${clients.serverIp4}:${port} ${tls}
  bind ${clients.serverIp6}:${port} ${tls}
  unique-id-format %ci:%cp_%fi:%fp_%Ts_%rt
  default_backend out
backend out
  ${options.backend ?? ""}
  server proxy 127.0.0.1:${program.listen.port} ${options.server}
`,
  );
  await using _haproxy = await Server.start(port, "haproxy", ["-db", "-f", config]);
  await act({ clients, program, service, port, control });
}

const SENDERS: [server: string, tls: boolean, counter: "headers_v1" | "headers_v2"][] = [
  ["send-proxy", false, "headers_v1"],
  ["send-proxy-v2", false, "headers_v2"],
  ["send-proxy-v2 proxy-v2-options crc32c,unique-id", false, "headers_v2"],
  ["send-proxy-v2-ssl", true, "headers_v2"],
  [
    "send-proxy-v2-ssl-cn proxy-v2-options crc32c,unique-id,authority,ssl,cert-key",
    true,
    "headers_v2",
  ],
];

for (const [server, tls, counter] of SENDERS) {
  const tools = tls ? { ...needs, openssl: installed("openssl") } : needs;
  realPeerTest(
    `haproxy: with ${server}, nginx logs the client's address and port`,
    tools,
    async () => {
      await scene({ server, tls }, async ({ clients, program, service, port }) => {
        const scheme = tls ? "https" : "http";
        for (
          const [host, ip] of [[clients.serverIp4, clients.ip4], [
            `[${clients.serverIp6}]`,
            clients.ip6,
          ]]
        ) {
          const clientPort = await clients.run("curl", [
            ...["--silent", "--show-error", "--fail", "--insecure", "--max-time", "20"],
            ...["--output", "/dev/null", "--write-out", "%{local_port}"],
            `${scheme}://${host}:${port}/`,
          ]);
          await service.logged(ip ?? "", clientPort);
        }
        const counters = await program.stop();
        assert.equal(counters.get(counter), 2);
        assert.equal(counters.get("port_fallbacks"), 0);
        assert.equal(program.all("header_refused").length, 0);
      });
    },
  );
}

for (const server of ["send-proxy", "send-proxy-v2"]) {
  realPeerTest(
    `haproxy: its health checks with ${server} reach the service from the proxy's own address`,
    needs,
    async () => {
      const check = `${server} check check-send-proxy inter 200ms fall 2 rise 2`;
      await scene(
        { server: check, backend: "option httpchk GET /" },
        async ({ program, service, control }) => {
          const state = () => control.server("out", "proxy");
          const status = async () => (await state()).status;
          await eventually(async () => (await state()).check === "L7OK", "good check");
          assert.match((await service.log())[0] ?? "", /^127\.0\.0\.1 /);
          await service.stop();
          await eventually(
            async () => await status() === "DOWN",
            "server down after its service",
            30_000,
          );
          await service.start();
          await eventually(async () => await status() === "UP", "server up again", 30_000);
          const counters = await program.stop();
          // Version 1 has no LOCAL: HAProxy then names itself as the client.
          const checks = server === "send-proxy" ? "headers_v1" : "headers_own";
          assert.ok(counters.get(checks) >= 4);
          assert.equal(program.all("header_refused").length, 0);
        },
      );
    },
  );
}
