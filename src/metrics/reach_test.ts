import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import type { Outcome, ProbeRequest } from "../native/probe.ts";
import { findProblems } from "./reach.ts";

const ERRNOS: Record<Outcome, number> = { ok: 0, refused: 111, silent: 110, failed: 1 };

/** What is found where each family's probe ends so, and what was requested. */
async function found(args: string[], outcomes: { 4?: Outcome; 6?: Outcome } = {}) {
  const asked = parseArguments(args, "0");
  assert(asked.kind === "run" && asked.setup.kind === "flags");
  const [listener] = asked.setup.config.listeners;
  assert(listener);
  const requests: ProbeRequest[] = [];
  const problem = await findProblems(listener, (request) => {
    requests.push(request);
    const outcome = outcomes[request.service.family] ?? "ok";
    return Promise.resolve({ outcome, errno: ERRNOS[outcome] });
  });
  return { problem, requests, families: requests.map(({ service }) => service.family) };
}

Deno.test("findProblems: what is named is tried as a client, with mark and timeout", async () => {
  const { problem, requests: [request, ...more] } = await found(
    ["-6", "[2001:db8::2]:80", "-m", "7", "--connect-timeout", "3"],
  );
  assert.equal(problem, undefined);
  assert.deepEqual(more, []);
  assert.ok(request);
  const { service, ...rest } = request;
  assert.equal(service.text, "[2001:db8::2]:80");
  assert.deepEqual(rest, { protocol: "tcp", spoofed: true, mark: 7, timeout: 3000 });
});

Deno.test("findProblems: each of two that are named has to be reached", async () => {
  const both = ["-4", "127.0.0.1:80", "-6", "[::1]:80"];
  assert.equal((await found(both)).problem, undefined);
  assert.match(
    (await found(both, { 6: "refused" })).problem ?? "",
    /^cannot connect to \[::1\]:80 as 2001:db8::77: connection refused \(ECONNREFUSED\): is the upstream running/,
  );
});

Deno.test("findProblems: where none is named, one is enough", async () => {
  assert.equal((await found([], { 6: "refused" })).problem, undefined);
  const { problem, families } = await found([], { 4: "refused", 6: "silent" });
  assert.deepEqual(families, [4, 6]);
  assert.match(
    problem ?? "",
    /^cannot connect to 127\.0\.0\.1:443 .*; cannot connect to \[::1\]:443 .*no answer within 5 s/,
  );
});

Deno.test("findProblems: with UDP only, silence is acceptable, and a refusal is a problem", async () => {
  const udp = ["-p", "udp", "-4", "127.0.0.1:53"];
  const { problem, requests: [request] } = await found(udp, { 4: "silent" });
  assert.equal(problem, undefined);
  assert.deepEqual([request?.protocol, request?.timeout], ["udp", 500]);
  assert.match((await found(udp, { 4: "refused" })).problem ?? "", /ECONNREFUSED/);
  assert.match((await found(udp, { 4: "failed" })).problem ?? "", /EPERM.*CAP_NET_RAW/);
});

Deno.test("findProblems: both protocols are tried over TCP", async () => {
  const { requests, problem } = await found(["-p", "both", "-4", "127.0.0.1:53"], { 4: "silent" });
  assert.deepEqual(requests.map(({ protocol }) => protocol), ["tcp"]);
  assert.notEqual(problem, undefined);
});

Deno.test("findProblems: each block of ports is tried by its first, and a range may refuse", async () => {
  const mail = ["-l", "0.0.0.0:25", "-l", "0.0.0.0:587", "-4", "127.0.0.1"];
  const { requests } = await found(mail);
  assert.deepEqual(requests.map(({ service }) => service.port), [25, 587]);
  assert.notEqual((await found(mail, { 4: "refused" })).problem, undefined);
  const range = ["-l", "0.0.0.0:1000-1999", "-4", "127.0.0.1"];
  const refused = await found(range, { 4: "refused" });
  assert.deepEqual([refused.problem, refused.requests.length], [undefined, 1]);
  assert.notEqual((await found(range, { 4: "silent" })).problem, undefined);
});
