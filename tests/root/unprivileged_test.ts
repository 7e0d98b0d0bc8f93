import assert from "node:assert/strict";
import { freePort } from "../e2e/support/endpoints.ts";
import { Program, runToEnd } from "../e2e/support/program.ts";
import { Scratch } from "../e2e/support/real_peers.ts";
import { assertSeenOverTcp, assertSeenOverUdp } from "../e2e/support/seen.ts";
import { TcpService, tellAndEcho } from "../e2e/support/tcp.ts";
import { tell, UdpService } from "../e2e/support/udp.ts";
import { asUser, installedFor } from "./support/users.ts";

/** nobody, who owns nothing. */
const NOBODY = 65_534;
const CLIENTS = [
  { family: 4, client: { ip: "203.0.113.38", port: 40_038 }, proxy: "198.51.100.1" },
  { family: 6, client: { ip: "2001:db8::38", port: 40_038 }, proxy: "2001:db8::1" },
] as const;

for (const { family, client, proxy } of CLIENTS) {
  const balancer = { ip: proxy, port: 443 };
  const local = family === 4 ? "127.0.0.1" : "::1";

  Deno.test(`unprivileged: nobody with CAP_NET_RAW serves TCP and UDP over IPv${family}`, async () => {
    await using scratch = await Scratch.make();
    const start = asUser(NOBODY, await installedFor(scratch), ",+net_raw");
    await using tcp = new TcpService(tellAndEcho, local);
    await using udp = await UdpService.start(tell, local, tcp.port);
    await using program = await Program.start({
      ...start,
      args: ["-p", "both", `-${family}`, tcp.address, "--sandbox", "on"],
    });
    const status = await Deno.readTextFile(`/proc/${program.pid}/status`);
    assert.match(status, new RegExp(`^Uid:(\\t${NOBODY}){4}$`, "m"));
    assert.match(status, /^CapBnd:\t0000000000002000$/m);
    assert.match(status, /^CapEff:\t0000000000002000$/m);
    assert.match(status, /^NoNewPrivs:\t1$/m);
    assert.match(status, /^Seccomp:\t2$/m);

    await assertSeenOverTcp(program.listen, client, balancer);
    await assertSeenOverUdp(program.listen, client, balancer);
    assert.equal(udp.received.length, 1);
  });
}

Deno.test("unprivileged: nobody without a capability is told what is missing, and the exit is 2", async () => {
  await using scratch = await Scratch.make();
  const start = asUser(NOBODY, await installedFor(scratch), "");
  const ended = await runToEnd(["-l", `127.0.0.1:${freePort()}`], start);
  assert.equal(ended.code, 2, ended.stderr);
  assert.match(
    ended.stderr,
    /^mmproxy: Cannot use the clients' addresses: [^\n]*CAP_NET_RAW[^\n]*\n$/,
  );
});
