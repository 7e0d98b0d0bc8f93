import assert from "node:assert/strict";
import { freePort } from "./support/endpoints.ts";
import { Program, runToEnd } from "./support/program.ts";
import { assertSeenOverTcp, assertSeenOverUdp } from "./support/seen.ts";
import { TcpService, tellAndEcho } from "./support/tcp.ts";
import { tell, UdpService } from "./support/udp.ts";

const CLIENTS = [
  { family: 4, client: { ip: "203.0.113.36", port: 40_036 }, proxy: "198.51.100.1" },
  { family: 6, client: { ip: "2001:db8::36", port: 40_036 }, proxy: "2001:db8::1" },
] as const;

/**
 * A shell command that becomes the program with these capabilities and no way to more. Here, as
 * anyone, the only user is root: without its privileges (capabilities(7), SECBIT_NOROOT) it is a user
 * as others. tests/root has another user.
 */
function withOnly(capabilities: string): string {
  const sets = ["inh-caps", "ambient-caps", "bounding-set"].map((set) =>
    `--${set}=-all${capabilities}`
  );
  return `exec setpriv --no-new-privs --securebits=+noroot ${sets.join(" ")} "$@"`;
}

/** The capabilities of a process by their sets, as bits (proc(5), /proc/pid/status). */
async function capabilities(pid: number): Promise<Record<string, bigint>> {
  const status = await Deno.readTextFile(`/proc/${pid}/status`);
  const lines = status.matchAll(/^Cap(\w+):\s+([0-9a-f]+)$/gm);
  return Object.fromEntries(Array.from(lines, ([, set = "", bits]) => [set, BigInt(`0x${bits}`)]));
}

const NET_RAW = 1n << 13n;
/** The sandbox leaves no way to hand them on. */
const RAW_ALONE = { Inh: 0n, Prm: NET_RAW, Eff: NET_RAW, Bnd: NET_RAW, Amb: 0n };

for (const { family, client, proxy } of CLIENTS) {
  const balancer = { ip: proxy, port: 443 };
  const local = family === 4 ? "127.0.0.1" : "::1";

  Deno.test(`capabilities: CAP_NET_RAW alone serves TCP over IPv${family}`, async () => {
    await using service = new TcpService(tellAndEcho, local);
    await using program = await Program.start({
      args: [`-${family}`, service.address],
      shell: withOnly(",+net_raw"),
    });
    assert.deepEqual(await capabilities(program.pid), RAW_ALONE);
    await assertSeenOverTcp(program.listen, client, balancer);
  });

  Deno.test(`capabilities: CAP_NET_RAW alone serves UDP over IPv${family}`, async () => {
    await using service = await UdpService.start(tell, local);
    await using program = await Program.start({
      args: ["-p", "udp", `-${family}`, service.address],
      shell: withOnly(",+net_raw"),
    });
    assert.deepEqual(await capabilities(program.pid), RAW_ALONE);
    await assertSeenOverUdp(program.listen, client, balancer);
  });
}

for (
  const [named, capability] of [["none", ""], ["the wrong one", ",+net_bind_service"]] as const
) {
  Deno.test(`capabilities: with ${named} the start ends with 2 and one line that names it`, async () => {
    const ended = await runToEnd(["-l", `127.0.0.1:${freePort()}`], {
      shell: withOnly(capability),
    });
    assert.equal(ended.code, 2, ended.stderr);
    assert.match(
      ended.stderr,
      /^mmproxy: Cannot use the clients' addresses: [^\n]*CAP_NET_RAW[^\n]*\n$/,
    );
  });
}
