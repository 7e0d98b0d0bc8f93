/** A stand-in for an AWS Network Load Balancer, with the header that AWS has published. */

import assert from "node:assert/strict";
import type { Endpoint } from "./support/endpoints.ts";
import { bytes, concat, crc32c, text, Tlv, tlv, v2, v2Local } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import { Stream, TcpService, tellAndEcho } from "./support/tcp.ts";

const AWS = 0xea;
const VPC_ENDPOINT = 0x01;
/** Bytes before the TLVs: signature, command, family, length and the IPv4 addresses. */
const TLVS = 16 + 12;
const NLB: Endpoint = { ip: "192.0.2.10", port: 25 };

/** As an endpoint service sends it: a checksum, the endpoint's name, and NOOP for padding. */
function header(client: Endpoint): Uint8Array {
  const whole = v2(client, NLB, {
    tlvs: [
      tlv(Tlv.crc32c, new Uint8Array(4)),
      tlv(AWS, concat([VPC_ENDPOINT], bytes("vpce-08d2bf15fac5001c9"))),
      tlv(Tlv.noop, new Uint8Array(36)),
    ],
  });
  new DataView(whole.buffer).setUint32(TLVS + 3, crc32c(whole));
  return whole;
}

Deno.test("aws nlb: with on_first_ack, an upstream that sends first reaches the real client", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address] });
  using nlb = await Stream.connect(program.listen.port);
  await nlb.send(header({ ip: "203.0.113.7", port: 41_025 }));
  assert.equal(await nlb.line(), "203.0.113.7:41025");
  await nlb.send("EHLO client.example.org\r\n");
  assert.equal(text(await nlb.exactly(25)), "EHLO client.example.org\r\n");
  await nlb.finish();
  const { message } = await program.event("connection");
  assert.match(message, / client=203\.0\.113\.7:41025 .* vpc_endpoint=vpce-08d2bf15fac5001c9$/);
});

Deno.test("aws nlb: with on_first_ack_with_payload, a client that sends first is relayed", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address] });
  using nlb = await Stream.connect(program.listen.port);
  await nlb.send(header({ ip: "203.0.113.7", port: 41_026 }), "SSH-2.0-client\r\n");
  assert.equal(await nlb.line(), "203.0.113.7:41026");
  assert.equal(text(await nlb.exactly(16)), "SSH-2.0-client\r\n");
});

Deno.test("aws nlb: with on_first_ack_with_payload, clients that wait for the service are cut, and the log names the setting once", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({
    args: ["-4", service.address, "--header-timeout", "3"],
    logLevel: "info",
  });
  await Promise.all(Array.from({ length: 25 }, async () => {
    using nlb = await Stream.connect(program.listen.port);
    assert.equal(await nlb.end(), "closed");
  }));
  const { message } = await program.event("mostly_silent");
  assert.match(message, /header_placement=on_first_ack\b/);
  const counters = await program.stop();
  assert.equal(program.all("mostly_silent").length, 1);
  assert.deepEqual(program.events.filter(({ level }) => level === "warn").map((e) => e.event), [
    "all_allowed",
    "mostly_silent",
  ]);
  assert.equal(counters.get("silent"), 25);
  assert.equal(counters.get("refused_timeout"), 25);
  assert.deepEqual(service.clients, []);
});

Deno.test("aws nlb: a health check, which names no client, comes from the proxy's own address", async () => {
  await using service = new TcpService(tellAndEcho);
  await using program = await Program.start({ args: ["-4", service.address] });
  using nlb = await Stream.connect(program.listen.port);
  await nlb.send(v2Local());
  assert.match(await nlb.line(), /^127\.0\.0\.1:\d+$/);
});
