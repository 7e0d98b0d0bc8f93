import assert from "node:assert/strict";
import { Program } from "./support/program.ts";
import { runTool } from "./support/real_peers.ts";
import { freePort } from "./support/endpoints.ts";

/**
 * A peer and an upstream in one: sends datagrams for a client with a DSCP each, answers each with its
 * own, and prints what both sides received. Node's sockets know no DSCP.
 */
const PEER = `
import socket, sys
host, port, upstream_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
v6 = ":" in host
family = socket.AF_INET6 if v6 else socket.AF_INET
level, tos = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
receive = socket.IPV6_RECVTCLASS if v6 else 13
def udp():
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(15)
    s.setsockopt(level, receive, 1)
    return s
def read(s):
    data, control, _, sender = s.recvmsg(2048, 256)
    for l, kind, value in control:
        if (l, kind) == (level, tos):
            return data, value[0], sender
    return data, 0, sender
upstream = udp()
upstream.bind(("::1" if v6 else "127.0.0.1", upstream_port))
peer = udp()
source = socket.inet_pton(family, "2001:db8::7" if v6 else "192.0.2.7")
body = source + source + (4000).to_bytes(2, "big") + (53).to_bytes(2, "big")
header = b"\\r\\n\\r\\n\\0\\r\\nQUIT\\n" + bytes([0x21, 0x22 if v6 else 0x12]) + len(body).to_bytes(2, "big") + body
for up, down in [(0xb8, 0x28), (0x03, 0x00), (0x28, 0xff), (0x00, 0x48)]:
    peer.setsockopt(level, tos, up)
    for _ in range(3):
        peer.sendto(header + b"x" * 40, (host, port))
    for _ in range(3):
        data, seen, client = read(upstream)
        assert data == b"x" * 40
        upstream.setsockopt(level, tos, down)
        upstream.sendto(b"y" * 40, client)
    answered = {read(peer)[1] for _ in range(3)}
    print(f"{seen:02x} {' '.join(f'{value:02x}' for value in answered)}")
`;

for (
  const [name, listen, spokenTo] of [
    ["IPv4", "127.0.0.1", "127.0.0.1"],
    ["IPv4, a wildcard", "0.0.0.0", "127.0.0.1"],
    ["IPv6", "::1", "::1"],
    ["IPv6, a wildcard", "::", "::1"],
    ["IPv4 through a dual-stack socket", "::", "127.0.0.1"],
  ] as const
) {
  Deno.test(`udp dscp: ${name}: it goes along both ways, and ECN does not`, async () => {
    const upstream = freePort();
    await using program = await Program.start({
      listen: { ip: listen, port: freePort() },
      args: ["-p", "udp", "-4", `127.0.0.1:${upstream}`, "-6", `[::1]:${upstream}`],
    });
    const seen = await runTool("python3", [
      ...["-c", PEER, spokenTo, String(program.listen.port), String(upstream)],
    ]);
    assert.equal(seen.trim(), "b8 28\n00 00\n28 fc\n00 48");
    await program.stop();
  });
}
