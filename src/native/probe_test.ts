import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { fileURLToPath } from "node:url";
import { parseAddress } from "../config/address.ts";
import { loadLibrary } from "./library.ts";
import { PROBE } from "./layout.ts";
import { encodeProbe, probe, probePayload, type ProbeRequest } from "./probe.ts";

const BUILT = fileURLToPath(new URL("../../target/release/libmmproxy.so", import.meta.url));
const library = loadLibrary([BUILT]);

function request(port: number, protocol: "tcp" | "udp"): ProbeRequest {
  const service = parseAddress(`127.0.0.1:${port}`);
  assert(service);
  return { protocol, service, spoofed: false, mark: 0, timeout: 200 };
}

Deno.test("probe: a TCP service is there, or refuses", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  assert.deepEqual(await probe(library, request(port, "tcp")), { outcome: "ok", errno: 0 });
  listener.close();
  assert.deepEqual(await probe(library, request(port, "tcp")), { outcome: "refused", errno: 111 });
});

Deno.test("probe: a UDP service is silent, or answers", async () => {
  const service = createSocket("udp4");
  const asked: Uint8Array[] = [];
  service.on("message", (message, from) => {
    // Silent the first time.
    if (asked.push(message) > 1) service.send("yes", from.port, from.address);
  });
  await new Promise<void>((bound) => service.bind(0, "127.0.0.1", bound));
  const { port } = service.address();
  assert.deepEqual(await probe(library, request(port, "udp")), { outcome: "silent", errno: 110 });
  const answered = await probe(library, { ...request(port, "udp"), timeout: 5_000 });
  assert.deepEqual(answered, { outcome: "ok", errno: 0 });
  assert.deepEqual(asked.map((bytes) => Uint8Array.from(bytes)), [
    probePayload(port),
    probePayload(port),
  ]);
  await new Promise<void>((closed) => service.close(closed));
});

Deno.test("encodeProbe: the client is empty unless its address is used", () => {
  const plain = encodeProbe(request(80, "tcp"));
  assert.deepEqual(plain.subarray(PROBE.client, PROBE.upstream), new Uint8Array(24));
  const spoofed = encodeProbe({ ...request(80, "tcp"), spoofed: true });
  assert.deepEqual([...spoofed.subarray(PROBE.client, PROBE.client + 12)], [
    ...[4, 0, 0, 0, 0, 0, 0, 0],
    ...[203, 0, 113, 77],
  ]);
});

Deno.test("probePayload: DNS and NTP are asked what they answer", () => {
  assert.equal(probePayload(53).length, 17);
  assert.equal(probePayload(123).length, 48);
  assert.match(new TextDecoder().decode(probePayload(9987)), /^mmproxy asks/);
});
