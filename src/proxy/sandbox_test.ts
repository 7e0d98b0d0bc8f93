import assert from "node:assert/strict";
import { LITTLE_ENDIAN } from "../config/options.ts";
import type { Details } from "../log/log.ts";
import { SANDBOX, Sandbox, SANDBOX_REQUEST } from "../native/layout.ts";
import {
  capabilityNames,
  decodeResult,
  encodeRequest,
  enterSandbox,
  type Outcome,
  whatHolds,
  whatIsMissing,
} from "./sandbox.ts";
import { StartError } from "./start_error.ts";

type Mechanism = "no_new_privileges" | "lowered" | "files" | "filter";

/** A record whose mechanisms were all set, but for these; EPERM is why one is missing. */
function record(
  differences: Partial<Record<Mechanism, Outcome>> = {},
  capabilities = 1n << 13n,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(SANDBOX.size);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(SANDBOX.capabilities, capabilities, LITTLE_ENDIAN);
  for (const name of ["no_new_privileges", "lowered", "files", "filter"] as const) {
    const outcome = differences[name] ?? "set";
    view.setUint32(SANDBOX[name], Sandbox[outcome], LITTLE_ENDIAN);
    view.setInt32(SANDBOX[`${name}_errno`], outcome === "missing" ? 1 : 0, LITTLE_ENDIAN);
  }
  return bytes;
}

/** What `enterSandbox` logs. */
function logged(
  mode: "auto" | "on" | "off",
  answer: Uint8Array<ArrayBuffer>,
): [level: string, message: string, details: Details][] {
  const lines: [string, string, Details][] = [];
  enterSandbox(
    { sandbox: mode, mark: 0, autoRoutes: false, offload: false },
    { enterSandbox: () => answer },
    (...line) => lines.push(line),
  );
  return lines;
}

Deno.test("encodeRequest: the mark, routes that are removed at the end, offloaded connections", () => {
  const request = { mark: 0xffff_ffff, autoRoutes: true, offload: true };
  const view = new DataView(encodeRequest(request).buffer);
  assert.equal(view.getUint32(SANDBOX_REQUEST.mark, LITTLE_ENDIAN), 0xffff_ffff);
  assert.equal(view.getUint32(SANDBOX_REQUEST.routing, LITTLE_ENDIAN), 1);
  assert.equal(view.getUint32(SANDBOX_REQUEST.offload, LITTLE_ENDIAN), 1);
});

Deno.test("capabilityNames: by their bits, also of those to come", () => {
  assert.deepEqual(capabilityNames(1n << 13n | 1n << 10n), ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]);
  assert.deepEqual(capabilityNames(1n | 1n << 21n | 1n << 40n | 1n << 63n), [
    "CAP_CHOWN",
    "CAP_SYS_ADMIN",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_63",
  ]);
  assert.deepEqual(capabilityNames(0n), []);
});

Deno.test("whatHolds: mechanisms that the environment had set are marked, except for files", () => {
  assert.equal(
    whatHolds(decodeResult(record({ no_new_privileges: "held", files: "held" }))),
    "no new privileges (already), no capability except CAP_NET_RAW, no file open for writing, " +
      "system calls filtered",
  );
  assert.equal(
    whatHolds(decodeResult(record({ files: "missing", filter: "missing" }, 0n))),
    [
      "no new privileges",
      "no capability",
    ].join(", "),
  );
  const nothing = {
    no_new_privileges: "missing",
    lowered: "missing",
    files: "missing",
    filter: "missing",
  } as const;
  assert.equal(whatHolds(decodeResult(record(nothing))), "nothing");
});

Deno.test("whatIsMissing: each with its reason", () => {
  assert.equal(whatIsMissing(decodeResult(record())), "");
  assert.equal(
    whatIsMissing(decodeResult(record({ lowered: "missing", filter: "missing" }))),
    "capabilities cannot be dropped: operation not permitted (EPERM), " +
      "system calls cannot be filtered: operation not permitted (EPERM)",
  );
});

Deno.test("enterSandbox: auto takes what there is and warns, on does not start, off does not ask", () => {
  const [[level, message, details] = []] = logged("auto", record());
  assert.equal(level, "info");
  assert.match(message ?? "", /^Sandbox: no new privileges, /);
  assert.deepEqual(details, {
    event: "sandbox",
    sandbox: { no_new_privileges: "set", lowered: "set", files: "set", filter: "set" },
    capabilities: ["CAP_NET_RAW"],
  });
  const [[worse, warning] = []] = logged("auto", record({ filter: "missing" }));
  assert.equal(worse, "warn");
  assert.match(warning ?? "", /^Sandbox: incomplete: system calls cannot be filtered: /);
  assert.equal(logged("on", record({ lowered: "held" }))[0]?.[0], "info");
  assert.throws(() => logged("on", record({ filter: "missing" })), StartError);
  assert.deepEqual(logged("off", record({ filter: "missing" })), [
    ["info", "Sandbox: off", { event: "sandbox", sandbox: "off" }],
  ]);
});
