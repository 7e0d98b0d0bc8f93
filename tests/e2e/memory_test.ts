import assert from "node:assert/strict";
import { Program } from "./support/program.ts";

/** Many: what else differs between two runs, such as the engine's heaps, is shared out over them. */
const WORKERS = 16;
const MIB = 1 << 20;

/** Bytes that the kernel accounts for, used or not (proc(5), VmFlags: `ac`): vm.overcommit_memory=2. */
function accounted(pid: number): number {
  let [sum, size] = [0, 0];
  for (const line of Deno.readTextFileSync(`/proc/${pid}/smaps`).split("\n")) {
    const [, kilobytes] = /^Size:\s+(\d+) kB$/.exec(line) ?? [];
    if (kilobytes !== undefined) size = 1024 * Number(kilobytes);
    if (/^VmFlags:.* ac\b/.test(line)) sum += size;
  }
  return sum;
}

Deno.test("memory: what is accounted for a UDP worker before its first datagram is little", async () => {
  const start = (protocol: string) =>
    Program.start({ args: ["-p", protocol, "--workers", `${WORKERS}`] });
  await using tcp = await start("tcp");
  await using udp = await start("udp");
  const each = (accounted(udp.pid) - accounted(tcp.pid)) / WORKERS;
  // Most of it are 64 buffers for long datagrams; it was 45 MiB.
  assert.ok(each > 2 * MIB && each < 16 * MIB, `${each / MIB} MiB`);
});
