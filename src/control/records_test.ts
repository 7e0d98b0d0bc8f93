import assert from "node:assert/strict";
import { LITTLE_ENDIAN, writeEndpoint } from "../config/options.ts";
import { parseAddress } from "../config/address.ts";
import { parseSubnet, type Subnet } from "../config/subnet.ts";
import { CONNECTION, Phase, Protocol, SELECTION, SURVEY } from "../native/layout.ts";
import { decodeConnection, decodeSurvey, encodeSelection } from "./records.ts";

Deno.test("encodeSelection: each field is where the native core reads it", () => {
  const record = encodeSelection(3, parseSubnet("192.0.2.0/24") as Subnet, true);
  const view = new DataView(record.buffer);
  assert.deepEqual([...record.subarray(10, 15)], [0xff, 0xff, 192, 0, 2]);
  assert.equal(view.getUint32(SELECTION.prefix, LITTLE_ENDIAN), 120);
  assert.equal(view.getUint32(SELECTION.listener, LITTLE_ENDIAN), 3);
  assert.equal(view.getUint32(SELECTION.closes, LITTLE_ENDIAN), 1);
  assert.ok(encodeSelection(0, undefined, false).every((byte) => byte === 0));
});

Deno.test("decodeSurvey, decodeConnection: read what the native core writes", () => {
  const survey = new Uint8Array(SURVEY.size);
  const counts = new DataView(survey.buffer);
  counts.setUint32(SURVEY.found, 9, LITTLE_ENDIAN);
  counts.setUint32(SURVEY.listed, 8, LITTLE_ENDIAN);
  counts.setUint32(SURVEY.silent, 1, LITTLE_ENDIAN);
  assert.deepEqual(decodeSurvey(survey), { found: 9, listed: 8, silentWorkers: 1 });

  const records = new Uint8Array(2 * CONNECTION.size);
  const view = new DataView(records.buffer, CONNECTION.size);
  view.setBigUint64(CONNECTION.age_ms, 2500n, LITTLE_ENDIAN);
  view.setBigUint64(CONNECTION.idle_ms, 500n, LITTLE_ENDIAN);
  view.setBigUint64(CONNECTION.bytes_up, 5n, LITTLE_ENDIAN);
  view.setBigUint64(CONNECTION.bytes_down, 6n, LITTLE_ENDIAN);
  view.setUint32(CONNECTION.listener, 2, LITTLE_ENDIAN);
  view.setUint32(CONNECTION.worker, 1, LITTLE_ENDIAN);
  view.setUint8(CONNECTION.protocol, Protocol.udp);
  view.setUint8(CONNECTION.phase, Phase.relayed);
  writeEndpoint(view, CONNECTION.client, parseAddress("[2001:db8::1]:9")!);
  assert.deepEqual(decodeConnection(records, 1, (id) => `listener ${id}`), {
    listener: "listener 2",
    protocol: "udp",
    phase: "relayed",
    worker: 1,
    client: "[2001:db8::1]:9",
    age: 2.5,
    idle: 0.5,
    bytesUp: 5,
    bytesDown: 6,
  });
});
